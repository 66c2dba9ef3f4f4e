"""The configuration: composed by Hydra from `configs/` and the words of a command line, and checked.

`ph2p.config.schema` says what each key means. Whatever is wrong gives one line.
"""

from collections.abc import Sequence
from functools import lru_cache
from pathlib import Path
from typing import Any, cast

from hydra import compose, initialize_config_dir
from hydra.core.config_store import ConfigStore
from hydra.core.global_hydra import GlobalHydra
from hydra.errors import HydraException, OverrideParseException
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import InterpolationKeyError, OmegaConfBaseException, ValidationError

from ph2p.config import schema
from ph2p.config.keys import options, schema_keys
from ph2p.config.validate import validate
from ph2p.config.words import Grammar, Word, flatten, group_words
from ph2p.errors import UserError

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
    grammar = grammar_of(words)
    try:
        return _compose([grammar.read(word) for word in words])
    except (HydraException, OmegaConfBaseException) as error:
        raise UserError(_one_line(error, words)) from error
    except AttributeError as error:  # key={...} where the method has null, and OmegaConf does not say so
        tables = [word for word in words if "={" in word]
        if not tables:
            raise
        raise UserError(f"{' '.join(tables)}: give such keys in a file of configs/method/, not here") from error


def grammar_of(words: Sequence[str]) -> Grammar:
    """What words may say where these choose the groups' options; raises UserError for an option there is not."""
    groups = options(config_dir())
    chosen = group_words(words, groups)
    try:
        return Grammar(_values(tuple(chosen)), groups)
    except (HydraException, OmegaConfBaseException) as error:
        raise UserError(_one_line(error, words)) from error


@lru_cache(maxsize=64)
def _values(chosen: tuple[str, ...]) -> dict[str, Any]:
    """The flattened configuration of the chosen options."""
    return flatten(cast(dict[str, Any], OmegaConf.to_container(_compose(list(chosen)))))


def _compose(words: list[str]) -> DictConfig:
    _register()
    GlobalHydra.instance().clear()
    with initialize_config_dir(str(config_dir()), version_base="1.3"):
        return compose("train", words)


def _register() -> None:
    """Make the schema and the `${package:...}` resolver known to Hydra."""
    OmegaConf.register_new_resolver("package", lambda path: str(PACKAGE / path), replace=True)
    store = ConfigStore.instance()
    store.store("schema", schema.Config)
    store.store("schema", schema.GeneratorConfig, group="generator")
    store.store("schema", schema.ScorerConfig, group="scorer")
    store.store("schema", schema.MethodConfig, group="method")


def _one_line(error: Exception, words: Sequence[str]) -> str:
    """What Hydra or OmegaConf says of a wrong value, in our form: the word, and what its key takes."""
    if isinstance(error, OverrideParseException):
        return f"{error.override}: cannot be read as a value; quote text ('...'), close brackets"
    root = error.__cause__ if isinstance(error.__cause__, OmegaConfBaseException) else error
    key = str(getattr(root, "full_key", None) or "").partition("[")[0]
    word = next((word for word in reversed(words) if Word.of(word).key == key), key)
    known = schema_keys().get(key)
    if known and isinstance(root, ValidationError):
        return f"{word}: {known.wanted}"
    if isinstance(root, InterpolationKeyError):
        return f"{word}: ${{...}} names no key; a shell's variable goes without braces ({str(root).splitlines()[0]})"
    first = next((line.strip() for line in str(root).splitlines() if line.strip()), type(root).__name__)
    if first.startswith("Ambiguous value"):
        word = first.partition("'")[2].rstrip("'")
        return f"{word}: gives several values; add -m for a run with each, or give a list, [a,b]"
    return f"{word}: {first}" if word else first
