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
from ph2p.data.sets import WEIGHT, require_weight
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


@dataclass
class DistillationSettings:
    """Of `distillation.distil` and `distillation.shortest`."""

    timesteps: list[int] = field(default_factory=lambda: [500, 1000])  # t in [first, last)
    draws: int = 16  # N that choose which word goes
    measure: int = 64  # N of further draws that measure what is left
    keep: float = 0.9  # of what the whole prompt gains, the part that the short prompt must keep, in (0, 1]

    def __post_init__(self) -> None:
        checks.require_whole(self, PREFIX, ("draws", "measure"))
        checks.require_window(f"{PREFIX}timesteps", self.timesteps)
        checks.require(0 < self.keep <= 1, f"{PREFIX}keep", self.keep, "give a number in (0, 1]")


@dataclass
class RemovalSettings:
    """Of `removal.remove`."""

    renders: int = 32  # N renderings without and N with the negative prompt, by the same seeds
    concept: str | None = None  # the word for which CLIP looks; null: the negative prompt
    alternatives: list[str] = field(default_factory=list)  # the words for what may be there instead, at least one
    template: str = "{}"  # the text around such a word for CLIP, as in "a {} background"

    def __post_init__(self) -> None:
        checks.require_whole(self, PREFIX, ("renders",))
        fits = self.template.count("{}") == 1
        checks.require(fits, f"{PREFIX}template", self.template, "give a text with one {} for the word")


@dataclass
class EvolutionSettings:
    """Of `evolution.evolve` and of what suits a picture."""

    by: str = "denoising"  # what suits a picture: denoising, the part of its loss taken away; clip, of a rendering
    generations: int = 6  # after the first, which are the prompts that are given
    population: int = 16  # prompts that live in a generation
    survivors: int = 4  # the fittest, which live on, at least 2
    mutation: float = 0.1  # the chance of each token of a child, in [0, 1]
    neighbours: int = 8  # nearest tokens of the vocabulary, one of which takes the place of one that mutates
    timesteps: list[int] = field(default_factory=lambda: [500, 1000])  # t in [first, last), for by=denoising
    draws: int = 8  # N of a picture, for by=denoising

    def __post_init__(self) -> None:
        checks.require_whole(self, PREFIX, ("generations", "population", "neighbours", "draws"))
        checks.require_whole(self, PREFIX, ("survivors",), least=2)  # a child has two parents
        checks.require_choice(f"{PREFIX}by", self.by, ("denoising", "clip"))
        checks.require_window(f"{PREFIX}timesteps", self.timesteps)
        checks.require(0 <= self.mutation <= 1, f"{PREFIX}mutation", self.mutation, "give a number in [0, 1]")
        fits, most = self.survivors < self.population, self.population - 1
        wanted = f"give less than {PREFIX}population={self.population}, at most {most}"
        checks.require(fits, f"{PREFIX}survivors", self.survivors, wanted)


@dataclass
class StyleSettings:
    """Of `style.find_style`."""

    weight: float = WEIGHT  # of the negatives' mean loss, which is taken from the pictures' mean loss, in (0, 1]

    def __post_init__(self) -> None:
        require_weight(f"{PREFIX}weight", self.weight)


Settings = AttentionSettings | DistillationSettings | RemovalSettings | EvolutionSettings | StyleSettings
SETTINGS: dict[str, type[Settings]] = {
    "attention": AttentionSettings,
    "distillation": DistillationSettings,
    "removal": RemovalSettings,
    "evolution": EvolutionSettings,
    "style": StyleSettings,
}


def split_words(words: Sequence[str]) -> tuple[list[str], list[str]]:
    """The words that set an application's keys, and those that are a run's, such as `generator=sd15`."""
    own = [word for word in words if Word.of(word).key.startswith(PREFIX)]
    return own, [word for word in words if word not in own]


def require_timesteps(window: Sequence[int], known: int) -> tuple[int, int]:
    """[first, last) of a model that knows so many timesteps; raises UserError for any beyond."""
    first, last = window
    fits, wanted = last <= known, f"this model has {known} timesteps"
    checks.require(fits, f"{PREFIX}timesteps", list(window), wanted)
    return first, last


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
