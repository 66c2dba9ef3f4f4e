"""Several runs from one command line: `ph2p -m seed=0,1,2`."""

import itertools
import re
from collections.abc import Sequence
from dataclasses import replace
from pathlib import PurePath

from hydra import initialize_config_dir
from hydra.core.global_hydra import GlobalHydra
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.errors import HydraException

from ph2p.config.compose import config_dir, load_config
from ph2p.config.schema import Config
from ph2p.errors import UserError

NAMED = ("data", "method", "name")  # the default name holds what is swept over in these already


def sweep(words: Sequence[str], several: bool = True) -> list[Config]:
    """The configurations of a command line, one a run, each checked; one alone unless `several` are asked for.

    A run's name says what is its own: `examples-ph2p_plus-seed-0`. Raises UserError for anything wrong in any of
    them, and when two have the same name.
    """
    if not several:
        return [load_config(list(words))]
    choices = _choices(words)
    named = any(word.startswith("name=") for word in words)
    jobs: list[Config] = []
    for job in itertools.product(*choices):
        cfg = load_config(list(job))
        if cfg.trainer.get("devices") not in (1, "1"):  # each rank would run the whole sweep again
            raise UserError(f"trainer.devices={cfg.trainer['devices']}: a sweep (-m) takes one device a run; give 1")
        own = [word for word, choice in zip(job, choices, strict=True) if len(choice) > 1]
        jobs.append(cfg if named else replace(cfg, name="-".join([cfg.name, *filter(None, map(_label, own))])))
    names = [cfg.name for cfg in jobs]
    for name in names:
        if names.count(name) > 1:
            raise UserError(f"name={name}: two runs of the sweep have it; put what differs in it: name='run-${{seed}}'")
    return jobs


def _choices(words: Sequence[str]) -> list[list[str]]:
    """For each word the words that it stands for: `seed=0,1` is `seed=0` and `seed=1`, any other is itself."""
    GlobalHydra.instance().clear()
    with initialize_config_dir(str(config_dir()), version_base="1.3"):
        parser = OverridesParser.create(GlobalHydra.instance().config_loader())
        return [_values(parser, word) for word in words]


def _values(parser: OverridesParser, word: str) -> list[str]:
    try:
        override = parser.parse_override(word)
    except HydraException:  # text that is no value of Hydra's grammar, such as a path with a bracket
        return [word]
    if not override.is_sweep_override():
        return [word]
    key = word.partition("=")[0]
    return [f"{key}={value}" for value in override.sweep_string_iterator()]


def _label(word: str) -> str:
    """`method.budget=2000` as a part of a name: `budget-2000`."""
    key, _, value = word.lstrip("+").partition("=")
    if key in NAMED:
        return ""
    return f"{key.rpartition('.')[2]}-" + re.sub(r"[^\w.+-]+", "-", PurePath(value).name).strip("-")
