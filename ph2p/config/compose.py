"""The configuration: composed by Hydra from `configs/` and the words of a command line, and checked.

`ph2p.config.schema` says what each key means. Whatever is wrong gives one line.
"""

import time
from collections.abc import Sequence
from copy import deepcopy
from functools import lru_cache
from pathlib import Path
from typing import Any, cast

from hydra import compose, initialize_config_dir
from hydra.core.config_store import ConfigStore
from hydra.core.global_hydra import GlobalHydra
from hydra.errors import HydraException
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import InterpolationKeyError, OmegaConfBaseException, ValidationError
from yaml import YAMLError

from ph2p.config import schema
from ph2p.config.keys import options, schema_keys
from ph2p.config.method import MethodConfig
from ph2p.config.validate import validate
from ph2p.config.words import CONSTRUCTORS, SEARCHPATH, Grammar, Word, flatten, group_words
from ph2p.errors import UserError
from ph2p.files import label

PACKAGE = Path(__file__).resolve().parents[1]


def config_dir() -> Path:
    """The folder of the YAML files: beside the package in a checkout, inside it when installed."""
    inside = PACKAGE / "configs"
    return inside if inside.exists() else PACKAGE.parent / "configs"


def load_config(words: Sequence[str] = ()) -> schema.Config:
    """The configuration that `key=value` words make; raises UserError, one line, for anything wrong in them."""
    cfg = compose_config(words)
    try:
        for key in sorted(OmegaConf.missing_keys(cfg)):
            raise UserError(f"{key}: has no value; give {key}=...")
        config = cast(schema.Config, OmegaConf.to_object(cfg))
    except OmegaConfBaseException as error:
        raise UserError(_one_line(error, words)) from error
    validate(config)
    return config


def compose_config(words: Sequence[str] = ()) -> DictConfig:
    """The configuration as composed, its interpolations and missing values as they stand; raises UserError."""
    grammar, cfg = _grammar_of(words)
    try:
        for word in words:
            if not grammar.chooses(word):
                key, value = grammar.read(word)
                OmegaConf.update(cfg, key, value, force_add=key.startswith(CONSTRUCTORS))
    except OmegaConfBaseException as error:
        raise UserError(_one_line(error, words)) from error
    return cfg


def grammar_of(words: Sequence[str]) -> Grammar:
    """What words may say where these choose the groups' options; raises UserError for an option there is not."""
    return _grammar_of(words)[0]


def _grammar_of(words: Sequence[str]) -> tuple[Grammar, DictConfig]:
    """And the configuration of those options."""
    if isinstance(words, str):
        raise UserError(f"{words}: give a list of words, [{words!r}]")
    groups = options(config_dir())
    chosen = group_words(words, groups)
    try:
        cfg = deepcopy(_compose(chosen))
    except (HydraException, OmegaConfBaseException, YAMLError) as error:  # of a file, be it somebody's own
        raise UserError(_one_line(error, words)) from error
    return Grammar(flatten(cast(dict[str, Any], OmegaConf.to_container(cfg))), groups, chosen), cfg


def _compose(chosen: tuple[str, ...]) -> DictConfig:
    """The configuration of the chosen options, by Hydra; not to be changed."""
    own = any(Word.of(word).key == SEARCHPATH for word in chosen)
    files = () if own else tuple(file.stat().st_mtime_ns for file in sorted(config_dir().rglob("*.yaml")))
    return _compose_anew(chosen, files or (time.monotonic_ns(),))


@lru_cache(maxsize=64)
def _compose_anew(chosen: tuple[str, ...], files: tuple[int, ...]) -> DictConfig:
    """Kept as long as the files are what they were: a sweep or a session has many configurations."""
    _register()
    GlobalHydra.instance().clear()
    with initialize_config_dir(str(config_dir()), version_base="1.3"):
        return compose("train", list(chosen))


def _register() -> None:
    """Make the schema and the resolvers `${package:...}` and `${label:...}` known to Hydra."""
    OmegaConf.register_new_resolver("package", lambda path: str(PACKAGE / path), replace=True)
    OmegaConf.register_new_resolver("label", label, replace=True)
    store = ConfigStore.instance()
    store.store("schema", schema.Config)
    store.store("schema", schema.GeneratorConfig, group="generator")
    store.store("schema", schema.ScorerConfig, group="scorer")
    store.store("schema", MethodConfig, group="method")


def _one_line(error: Exception, words: Sequence[str]) -> str:
    """What Hydra or OmegaConf says of a wrong value, in our form: the word, and what its key takes."""
    behind = error.__cause__ or error.__context__
    if isinstance(error, HydraException) and isinstance(behind, OmegaConfBaseException | YAMLError):
        error = behind
    key = str(getattr(error, "full_key", None) or "").partition("[")[0]
    word = next((word for word in reversed(words) if Word.of(word).key == key), key)
    known = schema_keys().get(key)
    if known and isinstance(error, ValidationError):
        return f"{word}: {known.wanted}"
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    first = " ".join(lines) if isinstance(error, YAMLError) else (lines or [type(error).__name__])[0]
    if isinstance(error, InterpolationKeyError):
        first = f"${{...}} names no key; a shell's variable goes without braces ({first})"
    return f"{word}: {first}" if word else first
