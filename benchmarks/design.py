"""What an experiment compares: the YAML files of configs/experiment/, taken apart into cells.

A cell is one variant on one set of scenes with one seed: `count` images inverted with the command line's words. Keys:

- `title`, `question`, `order`: what the digest says, and where.
- `words`: of every cell; `variants`: {label: words}, or {label: {words: ..., allow: N}} where only the N words that
  captions use most are allowed; `sweeps`: {title: {key, values, words}}, a variant for each value of a key.
- `scenes`: {label: arguments of `ph2p.data.WorldTargets`, or `layout: coco` with a seed, see material.py}.
- `reference`: the label that the others are held against, by the metric `measure` (regret if it is left out);
  `columns`: keys of the table of metrics, or of what digest.py adds.
- `whole`: the smallest size runs every variant too, not the first alone.
- `follow`: note the best prompt so far on the way; `trace`: plot losses, gradient and distance as well.
- `own_budgets`: its variants are not held against each other at equal cost.
- `picks`: whether a prompt alone picks its picture among others, see picking.py.
- `examples`: of how many pictures the digest shows the prompts side by side.
- `own_range`: measure the regret on the method's own timesteps too.
- `rival`: the label whose last regret the others' curves are held against: how many samples they need to get there.
- `probes`: what is measured without an inversion, see probes.py.
- `small`, `full`: how many scenes, of all sets or {set: number}, and which seeds.
"""

from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Any

import yaml

from ph2p.config.budget import plan, selection_cost
from ph2p.config.compose import config_dir, load_config
from ph2p.errors import UserError

SIZES = ("smoke", "small", "full")
# Of the embedded model, forward and backward counted apart, by two processes on two cores that are both busy: five
# experiments, half a million samples, at 300 a second.
SAMPLES_A_SECOND = 280
FOLLOWED = 10  # distinct best prompts on the way, about
# Scenes differ more than an image's draws and renderings do: a cheaper measurement pays for more of them.
SMALL = ["evaluation.draws=32", "evaluation.renders=2", "generator.steps=15"]
# One scene at hardly any cost: it shows that everything runs, and its numbers say nothing.
SMOKE = [
    *("evaluation.draws=2", "evaluation.renders=2", "generator.steps=2", "method.budget=160", "method.draws=1"),
    *("method.steps=1", "method.prompt_length=3", "method.selection.shortlist=3", "method.selection.draws=2"),
    *("method.selection.finalists=1", "method.selection.steps=2"),
]

SMOKE_SEARCH = [
    "method.search.share=0.3",
    "method.search.starts=2",
    "method.search.draws=1",
    "method.search.race=[[4,1]]",
]


@dataclass(frozen=True)
class Variant:
    """One row of a table: its label, its words, and where it lies on the axis of a sweep."""

    label: str
    words: tuple[str, ...]
    panel: str = ""  # the sweep it belongs to
    x: float | None = None
    allow: int | None = None  # only so many words


@dataclass(frozen=True)
class Cell:
    """What is run at once: `count` scenes of a set, one variant, one seed."""

    variant: Variant
    scenes: str
    world: dict[str, Any]
    seed: int
    words: tuple[str, ...]


@dataclass(frozen=True)
class Experiment:
    """A file of configs/experiment/ at one size."""

    name: str
    size: str
    content: dict[str, Any] = field(repr=False)

    @property
    def variants(self) -> list[Variant]:
        found = []
        for label, given in self.content.get("variants", {}).items():
            plain = {"words": given} if isinstance(given, list) else given
            found.append(Variant(label, tuple(plain.get("words", [])), allow=plain.get("allow")))
        for title, sweep in self.content.get("sweeps", {}).items():
            for value in sweep["values"]:
                words = (*sweep.get("words", []), f"{sweep['key']}={value}")
                found.append(Variant(f"{title} = {value}", words, title, float(value)))
        return found

    def cells(self) -> Iterator[Cell]:
        """In the order in which they are run: every variant of a scene set and seed before the next."""
        smoke = self.size == "smoke"
        scale = {"count": 1, "seeds": [0]} if smoke else self.content[self.size]
        sets, variants = list(self.content["scenes"].items()), self.variants
        if smoke:  # every method once, and enough of the rest to see that it runs
            swept = [variant for variant in variants if variant.panel]
            sets, variants = sets[:1], variants if self.whole else [variants[0], *swept[:1]]
        for name, arguments in sets:
            for seed in scale["seeds"]:
                for variant in variants:
                    words = [*self.content.get("words", []), *variant.words, f"seed={seed}"]
                    words += _smoke(words) if smoke else SMALL if self.size == "small" else []
                    count = scale["count"][name] if isinstance(scale["count"], dict) else scale["count"]
                    yield Cell(variant, name, {**arguments, "count": count}, seed, _apart(words))

    def __getattr__(self, key: str) -> Any:
        return self.content.get(key)


def samples(experiment: Experiment) -> int:
    """Denoiser samples of all inversions of an experiment, about: what is found, measured, painted and followed."""
    return sum(cell.world["count"] * _samples(cell.words, bool(experiment.follow)) for cell in experiment.cells())


@cache
def _samples(words: tuple[str, ...], follow: bool) -> int:
    """Of one inversion: the budget where the denoiser says how to go on, otherwise what the choice of the winner costs;
    and prompt, caption and no words measured."""
    cfg = load_config(list(words))
    method, evaluation = cfg.method, cfg.evaluation
    steps, found = plan(method), selection_cost(method)
    if (steps.epochs and method.objective == "denoising") or steps.rounds:
        found = method.budget
    measured = 3 * evaluation.draws + 2 * 2 * evaluation.renders * cfg.generator.steps
    return found + measured + (min(FOLLOWED, steps.epochs + steps.rounds) * evaluation.draws if follow else 0)


def _smoke(words: list[str]) -> list[str]:
    """The words that make a cell small: those of the search only where the method has one."""
    method = [word for word in words if word.startswith("method=")][-1:]
    return SMOKE + (SMOKE_SEARCH if load_config(method).method.search else [])


def _apart(words: list[str]) -> tuple[str, ...]:
    """The words, of each key only the last."""
    return tuple({word.lstrip("+").partition("=")[0]: word for word in words}.values())


def experiments(size: str, only: str | None = None) -> list[Experiment]:
    """The experiments at a size, or the one that is named; raises UserError where there is none."""
    files = sorted((config_dir() / "experiment").glob("*.yaml"))
    found = [Experiment(path.stem, size, read(path)) for path in files]
    found.sort(key=lambda one: one.content["order"])
    if only and only not in [one.name for one in found]:
        raise UserError(f"experiment={only}: choose one of {', '.join(one.name for one in found)}")
    return [one for one in found if only in (None, one.name)]


def read(path: Path) -> dict[str, Any]:
    content: dict[str, Any] = yaml.safe_load(path.read_text(encoding="utf-8"))
    return content
