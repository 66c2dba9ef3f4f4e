"""What an image's record says of how its prompt came about: the losses as series, the words step by step."""

from collections.abc import Sequence
from dataclasses import dataclass
from difflib import SequenceMatcher
from itertools import pairwise
from typing import Any

from ph2p.evaluation.formatting import NOTHING, finite, loss
from ph2p.report.chart import Series
from ph2p.report.records import listed, mapping, number

STEPS = 60  # shown of the optimisation, and of the search
EPOCHS, JUDGE = "each epoch’s own draws", "the judge’s draws, always the same"  # noqa: RUF001


@dataclass(frozen=True)
class Step:
    """A prompt on the way: when, its loss as text, and its words with what became of them since the step before."""

    when: str
    loss: str
    words: list[tuple[str, str]]  # runs of words: (text, "": was there, "new" or "gone")


def series_of(found: dict[str, Any], candidates: Sequence[dict[str, Any]]) -> list[Series]:
    """The losses of a candidates file by their draws; a file of before the trail was kept has fewer of them."""
    trail = mapping(found.get("trail"))
    known = [(epoch, row.get("loss")) for row in candidates if (epoch := number(row, "epoch")) is not None]
    return [
        _optimisation(found, trail),
        Series("projections", JUDGE, hard=list(enumerate(listed(trail.get("judged")))), best=True),
        Series("search", "each round’s own draws", hard=list(enumerate(listed(found.get("search_curve"))))),  # noqa: RUF001
        Series("candidates", "validation draws", hard=known),
    ]


def _optimisation(found: dict[str, Any], trail: dict[str, Any]) -> Series:
    """A run of losses for each epoch, its first one of real tokens where the method projects for good."""
    losses, ends = listed(trail.get("losses")), [int(end) for end in map(finite, listed(trail.get("ends"))) if end]
    if not losses or not ends:
        curve = [[(epoch, value)] for epoch, value in enumerate(listed(found.get("loss_curve")), 1)]
        return Series("optimisation", EPOCHS, soft=curve)
    runs = [list(enumerate(losses[a:b], a + 1)) for a, b in pairwise([0, *ends]) if b > a]
    hard = trail.get("hard")
    if hard == "all":
        return Series("optimisation", EPOCHS, hard=[point for run in runs for point in run], weight=2)
    starts = [run[0] for run in (runs[:1] if hard == "first" else runs)]
    return Series("optimisation, by evaluation", EPOCHS, runs, starts, ends, weight=2)


def steps_of(found: dict[str, Any]) -> dict[str, list[Step]]:
    """The words from epoch to epoch and from round to round, those steps left out that changed nothing."""
    trail = mapping(found.get("trail"))
    return {
        "optimisation": _changes(_prompts(trail, "projected"), listed(trail.get("judged")), "projection"),
        "search": _changes(_prompts(trail, "rounds"), listed(found.get("search_curve")), "round"),
    }


def _prompts(trail: dict[str, Any], key: str) -> list[list[str]]:
    return [[str(word) for word in listed(prompt)] for prompt in listed(trail.get(key))]


def _changes(prompts: Sequence[list[str]], losses: Sequence[object], kind: str) -> list[Step]:
    steps = []
    for k, prompt in enumerate(prompts):
        if k and prompt == prompts[k - 1]:
            continue
        words = _compared(prompts[k - 1], prompt) if k else [(" ".join(prompt), "")]
        value = finite(losses[k]) if k < len(losses) else None
        steps.append(Step(f"{kind} {k}" if k else "start", NOTHING if value is None else loss(value), words))
    return steps if len(steps) <= STEPS else [*steps[: STEPS - 1], steps[-1]]


def _compared(before: list[str], now: list[str]) -> list[tuple[str, str]]:
    """Both prompts in one line: runs of words that stayed, that are gone, and that are new."""
    runs = []
    for kind, a0, a1, b0, b1 in SequenceMatcher(None, before, now, autojunk=False).get_opcodes():
        parts = [(now[b0:b1], "")] if kind == "equal" else [(before[a0:a1], "gone"), (now[b0:b1], "new")]
        runs += [(" ".join(words), what) for words, what in parts if words]
    return runs
