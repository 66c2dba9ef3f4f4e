"""The digest of an evidence run: docs/evidence.md with tables, bootstrap intervals, paired differences and plots."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any

import numpy as np
from design import Experiment
from numpy.typing import NDArray
from plots import plot_experiment

from ph2p.evaluation.formatting import NOTHING, Show, decimal, finite, percent, signed
from ph2p.evaluation.intervals import confidence_interval
from ph2p.evaluation.metrics import METRICS, samples_to
from ph2p.files import write_whole

Line = dict[str, Any]
Values = NDArray[np.float64]


def write_digest(path: Path, size: str, found: Sequence[tuple[Experiment, list[Line]]]) -> None:
    """Write the file, and the plots into a folder of its name beside it."""
    folder = path.with_suffix("")
    folder.mkdir(parents=True, exist_ok=True)
    parts = [HEAD.format(size=size, today=datetime.now().strftime("%Y-%m-%d"))]
    for experiment, lines in found:
        parts.append(section(experiment, lines, folder))
    write_whole(path, "\n".join(parts).encode())


HEAD = """# Evidence

Written by `make evidence SIZE={size}` on {today}. Regret is (loss - loss of the true caption) / (loss of no words -
loss of the true caption) on draws that chose nothing: 0 is as good as the caption, 1 no better than nothing. An
interval resamples scenes, each of which counts with its mean over the seeds (bootstrap, 95 %); "above" is the mean over
scenes of a row's regret (or gap closed) minus the reference's on the same scenes and seeds. Where its interval holds 0
the two do not stand apart. "Samples to" a regret is a median over scenes, with how many of them ever get there and
stay; one that does not counts as never. `retrieval` has words that CLIP alone finds, `caption` a caption that it chose.
"As good as the true caption", a plain sentence that names everything: the part of runs at a regret of 0 or below.
"Picked of eight": the prompt alone tells its picture from seven others of its kind, to a judge of the embedded world
who looks at its renderings, or by the words it shares with each.
"""


def section(experiment: Experiment, lines: list[Line], folder: Path) -> str:
    """What one experiment found."""
    command = f"make evidence SIZE={experiment.size} EXPERIMENT={experiment.name}"
    text = [f"## {experiment.title}", "", experiment.question, "", f"    {command}", ""]
    if not lines:
        return "\n".join([*text, "Not run with the present settings and weights.", ""])
    text += [made_with(lines), ""]
    own = [line for line in lines if "probe" not in line]
    failed = sum(line["record"]["status"] != "ok" for line in own)
    text += [f"{failed} of {len(own)} images have no prompt.", ""] if failed else []
    known = [line for line in own if line["record"]["status"] == "ok"]
    text += [said, ""] if (said := not_run(experiment, own)) else []
    for scenes in experiment.scenes:
        some = [line for line in known if line["scenes"] == scenes]
        if some:
            text += [f"**{scenes}**", "", *table(experiment, some), "", answer(experiment, some), ""]
            text += [said, ""] if (said := overtaken(experiment, some)) else []
            text += examples(some, experiment.examples) if experiment.examples else []
    for name in plot_experiment(experiment, lines, folder):
        text += [f"![{experiment.title}: {name}]({folder.name}/{name}.svg)", ""]
    return "\n".join(text)


def examples(lines: Sequence[Line], count: int) -> list[str]:
    """The prompts of the first pictures and the first seed, side by side: a table in Markdown."""
    first = min(line["seed"] for line in lines)
    said: dict[str, dict[str, str]] = {}
    for line in sorted(lines, key=lambda line: line["image_id"]):
        if line["seed"] == first:
            row = said.setdefault(line["image_id"], {"true caption": line["record"]["caption"]})
            row[line["variant"]] = line["record"]["prompt"]
    heads = list(dict.fromkeys(name for row in said.values() for name in row))
    rows = [heads, ["---"] * len(heads)]
    rows += [[row.get(name, NOTHING).replace("|", r"\|") for name in heads] for row in list(said.values())[:count]]
    return [f"The first {len(rows) - 2} pictures, seed {first}:", "", *(f"| {' | '.join(row)} |" for row in rows), ""]


def not_run(experiment: Experiment, lines: Sequence[Line]) -> str:
    """Which variants have no line yet; empty if all have."""
    there = {line["variant"] for line in lines}
    lacking = dict.fromkeys(cell.variant.label for cell in experiment.cells() if cell.variant.label not in there)
    return f"Not run yet: {', '.join(lacking)}." if lacking else ""


def made_with(lines: list[Line]) -> str:
    """When, from which commits and on what the lines were made, and on how many scenes and seeds."""
    keys = ("date", "commit", "hardware", "torch")
    several = {key: ", ".join(sorted({str(line[key]) for line in lines})) for key in keys}
    scenes = len({line["image_id"] for line in lines})
    seeds = len({line["seed"] for line in lines if "seed" in line}) or 1
    return (
        f"{several['date']}, commit {several['commit']}, {several['hardware']}, torch {several['torch']}; "
        f"{plural(scenes, 'scene')}, {plural(seeds, 'seed')}."
    )


def plural(number: int, what: str) -> str:
    return f"{number} {what}{'' if number == 1 else 's'}"


def by_scene(lines: Sequence[Line], variant: str, key: str) -> dict[str, float]:
    """A column's value of each scene where it is known: a metric's mean over the seeds, or what `OWN` makes of it."""
    own = column(key)
    values: dict[str, list[float]] = {}
    for line in lines:
        value = finite(line["record"].get(own.metric))
        if line["variant"] == variant and value is not None:
            values.setdefault(line["image_id"], []).append(value)
    found = {scene: float(own.over_seeds(some)) for scene, some in values.items()}
    return {scene: value for scene, value in found.items() if np.isfinite(value)}


def paired(lines: Sequence[Line], variant: str, reference: str, key: str = "regret") -> Values:
    """Differences of a metric to the reference, scene by scene, over the scenes and seeds that both have."""
    values = {
        name: {(line["image_id"], line["seed"]): line["record"][key] for line in lines if line["variant"] == name}
        for name in (variant, reference)
    }
    scenes: dict[str, list[float]] = {}
    for place in values[variant].keys() & values[reference].keys():
        pair = finite(values[variant][place]), finite(values[reference][place])
        if pair[0] is not None and pair[1] is not None:
            scenes.setdefault(place[0], []).append(pair[0] - pair[1])
    return np.array([np.mean(scenes[name]) for name in sorted(scenes)], dtype=np.float64)


def table(experiment: Experiment, lines: list[Line]) -> list[str]:
    """A table in Markdown: a row for each variant that has lines."""
    columns = {key: column(key) for key in experiment.columns if key not in ON_DEMAND or anyone(lines, key)}
    measure = METRICS[experiment.measure or "regret"]
    heads = ["", *(one.head for one in columns.values()), f"{measure.name} above {experiment.reference}"]
    rows = [heads, ["---"] * len(heads)]
    there = {line["variant"] for line in lines}
    for variant in [variant.label for variant in experiment.variants if variant.label in there]:
        cells = [variant]
        for key, one in columns.items():
            if key in REACHED:
                cells.append(reached(lines, variant, key))
            else:
                values = np.array(list(by_scene(lines, variant, key).values()))
                cells.append(interval(values, one.over_scenes, one.show))
        same = variant == experiment.reference
        cells.append(
            "" if same else interval(paired(lines, variant, experiment.reference, measure.key), np.mean, signed)
        )
        rows.append(cells)
    return [f"| {' | '.join(cells)} |" for cells in rows]


# Columns that need a model beside the embedded ones: ARGS="-- evaluation.transfer=..."
ON_DEMAND = ("transfer_similarity",)


def anyone(lines: Sequence[Line], key: str) -> bool:
    """Whether any line knows a metric."""
    return any(finite(line["record"].get(key)) is not None for line in lines)


def _deviation(values: Sequence[float]) -> float:
    """The standard deviation of a scene's values over its seeds; nan of one alone."""
    return float(np.std(values, ddof=1)) if len(values) > 1 else float("nan")


def _as_good(values: Sequence[float]) -> float:
    """The part of a scene's regrets that are those of the true caption or lower."""
    return float(np.mean([value <= 0 for value in values]))


@dataclass(frozen=True)
class Column:
    """A column: its head, how scenes become one value, how that is written, and how it is made from the lines."""

    head: str
    over_scenes: Callable[..., Any]
    show: Show
    metric: str  # the number of a line
    over_seeds: Callable[[Sequence[float]], Any] = np.mean  # how a scene's numbers become one


# Columns beside the table of metrics.
OWN = {
    "regret_own": Column("median regret on its own timesteps", np.median, signed, "regret_own"),
    "as_good": Column("as good as the true caption", np.mean, percent, "regret", _as_good),
    "spread": Column("deviation over seeds", np.mean, decimal, "regret", _deviation),
    "picked_by_judge": Column("picked of eight, by the judge", np.mean, percent, "picked_by_judge"),
    "picked_by_reader": Column("picked of eight, by its words", np.mean, percent, "picked_by_reader"),
}


def column(key: str) -> Column:
    """The column of a key: one of `OWN`, or of the table of metrics."""
    if key in OWN:
        return OWN[key]
    metric = METRICS[key]
    median = metric.over == "median"
    head = f"median {metric.name}" if median else metric.name
    return Column(head, np.median if median else np.mean, metric.show, key)


def interval(values: Values, statistic: Callable[..., Any], show: Show) -> str:
    """A value with its interval, such as `0.12 [0.08, 0.20]`."""
    if not len(values):
        return NOTHING
    low, high = confidence_interval(values, statistic)
    middle = show(float(statistic(values)))
    return f"{middle} [{show(low)}, {show(high)}]" if low != high else middle


REACHED = ("samples_to_tenth", "samples_to_zero")


def reached(lines: Sequence[Line], variant: str, key: str) -> str:
    """How many samples it takes, such as `1,200, 75% of scenes`: the median over scenes, and how many ever get there.

    A scene that never does counts with more than any number, or the median would be that of the easy ones. Lines whose
    way was not followed do not count.
    """
    scenes: dict[str, list[float]] = {}
    for line in lines:
        if line["variant"] == variant and line["record"].get("regret_curve"):
            value = finite(line["record"].get(key))
            scenes.setdefault(line["image_id"], []).append(np.inf if value is None else value)
    if not scenes:
        return NOTHING
    values = np.array([np.median(some) for some in scenes.values()])
    middle = METRICS[key].show(finite(float(np.median(values))))
    return f"{middle}, {np.isfinite(values).mean():.0%} of scenes"


def overtaken(experiment: Experiment, lines: Sequence[Line]) -> str:
    """One sentence on how few samples the others need to the regret that the `rival` ends with, median over scenes."""
    rival = experiment.rival or ""
    last, spent = (list(by_scene(lines, rival, key).values()) for key in ("regret", "samples"))
    if not last:
        return ""
    goal, cost = float(np.median(last)), float(np.mean(spent))
    curves: dict[str, list[float]] = {}
    for line in lines:
        curve = [(at, value) for at, value in line["record"].get("regret_curve") or [] if value is not None]
        if curve and line["variant"] != rival:
            reached_at = samples_to(goal, curve)
            curves.setdefault(line["variant"], []).append(np.inf if reached_at is None else reached_at)
    medians = sorted((float(np.median(values)), name) for name, values in curves.items())
    told = [f"{name} {at:,.0f} (1/{cost / at:.1f})" for at, name in medians if 0 < at < cost]
    head = f"The median regret of {rival} is {goal:.2f} after {cost:,.0f} samples; half of the scenes get there with"
    return f"{head} fewer by: {', '.join(told) or 'nothing else'}."


def answer(experiment: Experiment, lines: list[Line]) -> str:
    """One sentence that says which row is best by the measure, and what stands apart from the reference."""
    measure = METRICS[experiment.measure or "regret"]
    values = {name: by_scene(lines, name, measure.key) for name in dict.fromkeys(line["variant"] for line in lines)}
    medians = {name: float(np.median(list(some.values()))) for name, some in values.items() if some}
    if not medians:
        return ""
    lower = measure.better == "lower"
    best, extreme = (min if lower else max)(medians, key=medians.__getitem__), "lowest" if lower else "highest"
    apart: dict[str, list[str]] = {"better": [], "worse": []}
    for name in medians.keys() - {experiment.reference}:
        differences = paired(lines, name, experiment.reference, measure.key)
        if len(differences) > 1:
            low, high = confidence_interval(differences)
            apart["worse" if lower else "better"] += [name] if low > 0 else []
            apart["better" if lower else "worse"] += [name] if high < 0 else []
    said = [f"{what} than {experiment.reference}: {', '.join(sorted(names))}" for what, names in apart.items() if names]
    if max(map(len, values.values())) < 2:
        return f"The {extreme} {measure.name} has {best}, {medians[best]:.2f}; one scene says nothing about the order."
    tail = f" Intervals apart, {'; '.join(said)}." if said else f" Nothing stands apart from {experiment.reference}."
    return f"The {extreme} median {measure.name} has {best}, {medians[best]:.2f}.{tail}"
