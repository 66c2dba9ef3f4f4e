"""The settings of the applications: dataclasses, filled in by `configs/application/` and by words."""

import difflib
from collections.abc import Sequence
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any, cast

from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException
from yaml import YAMLError

from ph2p.config import checks
from ph2p.config.compose import config_dir
from ph2p.config.words import Word
from ph2p.errors import UserError

PREFIX = "application."


@dataclass
class AttentionSettings:
    """Of `attention.attention_maps` and its masks."""

    timesteps: list[int] = field(default_factory=lambda: [200, 800])  # t in [first, last)
    draws: int = 8  # N noisy copies of the picture, one in each N-th part of the timesteps
    threshold: float = 0.4  # of a map's maximum, above which a place belongs to the word, in (0, 1); DAAM's
    words: list[str] = field(default_factory=list)  # of the prompt, to be told apart in one picture; []: none

    def __post_init__(self) -> None:
        checks.require_whole(self, PREFIX, ("draws",))
        checks.require_window(f"{PREFIX}timesteps", self.timesteps)
        checks.require(0 < self.threshold < 1, f"{PREFIX}threshold", self.threshold, "give a number in (0, 1)")


Settings = AttentionSettings
SETTINGS: dict[str, type[Settings]] = {"attention": AttentionSettings}


def split_words(words: Sequence[str]) -> tuple[list[str], list[str]]:
    """The words that set an application's keys, and those that are a run's, such as `generator=sd15`."""
    own = [word for word in words if Word.of(word).key.startswith(PREFIX)]
    return own, [word for word in words if word not in own]


def yaml_file(name: str) -> Path:
    """The file of an application's settings."""
    return config_dir() / "application" / f"{name}.yaml"


def load_settings(name: str, words: Sequence[str] = ()) -> Settings:
    """The settings of the application `name`, as its YAML file and `application.KEY=VALUE` words give them.

    Raises UserError, one line, for a key that there is not and a value that it cannot take.
    """
    kind, file = SETTINGS[name], yaml_file(name)
    known = [one.name for one in fields(kind)]
    settings: Any = OmegaConf.structured(kind)
    try:
        settings = OmegaConf.merge(settings, OmegaConf.load(file))
        for word in map(Word.of, words):
            key = word.key.removeprefix(PREFIX)
            if key not in known or word.value is None or word.sign:
                near = difflib.get_close_matches(key, known, 1) or known
                raise UserError(f"{word}: no such key; {name} has {PREFIX}{f', {PREFIX}'.join(near)}, as in KEY=VALUE")
            settings = OmegaConf.merge(settings, OmegaConf.from_dotlist([f"{key}={word.value}"]))
        return cast(Settings, OmegaConf.to_object(settings))
    except (OmegaConfBaseException, YAMLError) as error:
        given = " ".join(map(str, words)) or str(file)
        raise UserError(f"{given}: {' '.join(str(error).splitlines()[:1])}") from error
