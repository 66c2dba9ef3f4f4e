"""The plots of an evidence run, as SVG."""

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import matplotlib

matplotlib.use("svg")

import matplotlib.pyplot as plt
import numpy as np
from design import Experiment
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from ph2p.evaluation.formatting import finite
from ph2p.evaluation.intervals import confidence_interval

Line = dict[str, Any]
MEASURED = {
    "regret": "regret (0: the true caption, 1: no words)",
    "gap_closed": "gap closed (0: no words; above it the part of their loss that is gone)",
}
TRACED = {
    "soft": "loss of the continuous prompt",
    "hard": "loss of its projection",
    "gradient": "norm of the gradient",
    "distance": "mean distance to the vocabulary",
    "changed": "tokens changed by the projection",
}


def plot_experiment(experiment: Experiment, lines: list[Line], folder: Path) -> Iterator[str]:
    """Draw what there is of an experiment into `folder`; yields the names of the files."""
    own = [line for line in lines if "probe" not in line and line["record"]["status"] == "ok"]
    figures = {
        experiment.name: rows_plot(experiment, [line for line in own if not line["panel"]]),
        f"{experiment.name}-sweeps": sweeps_plot([line for line in own if line["panel"]]),
        f"{experiment.name}-curves": curves_plot(own),
        f"{experiment.name}-trace": trace_plot(own),
        f"{experiment.name}-probes": probes_plot([line for line in lines if "probe" in line]),
    }
    for name, figure in figures.items():
        if figure is not None:
            # The same values give the same file.
            with matplotlib.rc_context({"svg.hashsalt": name, "svg.fonttype": "none"}):
                figure.savefig(folder / f"{name}.svg", metadata={"Date": None}, bbox_inches="tight")
            plt.close(figure)
            yield name


def values_of(lines: Sequence[Line], measure: str = "regret", **wanted: Any) -> np.ndarray:
    """The values of a metric in the lines that fit, a mean over the seeds for each scene."""
    scenes: dict[str, list[float]] = {}
    for line in lines:
        value = finite(line["record"].get(measure))
        if value is not None and all(line[key] == one for key, one in wanted.items()):
            scenes.setdefault(line["image_id"], []).append(value)
    return np.array([np.mean(values) for values in scenes.values()])


def point(axes: Axes, at: float, values: np.ndarray, colour: str, upright: bool) -> None:
    """A median with its interval."""
    low, high = confidence_interval(values, np.median)
    middle = float(np.median(values))
    ends = [[max(0.0, middle - low)], [max(0.0, high - middle)]]
    if upright:
        axes.errorbar([at], [middle], yerr=ends, fmt="o", color=colour, capsize=3)
    else:
        axes.errorbar([middle], [at], xerr=ends, fmt="o", color=colour, capsize=3)


def rows_plot(experiment: Experiment, lines: list[Line]) -> Figure | None:
    """The median regret, or other measure, of each variant, a colour for each set of scenes."""
    measure = experiment.measure or "regret"
    names = list(dict.fromkeys(line["variant"] for line in lines))
    if not names:
        return None
    figure, axes = plt.subplots(figsize=(7, 1 + 0.35 * len(names)))
    sets = list(experiment.scenes)
    for k, scenes in enumerate(sets):
        for row, name in enumerate(names):
            values = values_of(lines, measure, variant=name, scenes=scenes)
            if len(values):
                point(axes, row + 0.2 * (k - (len(sets) - 1) / 2), values, f"C{k}", upright=False)
        axes.plot([], [], "o", color=f"C{k}", label=scenes)
    axes.set_yticks(range(len(names)), names)
    axes.invert_yaxis()
    axes.set_xlabel(f"median {MEASURED[measure]}")
    axes.axvline(0, color="0.7", lw=1)
    axes.legend(frameon=False)
    return figure


def sweeps_plot(lines: list[Line]) -> Figure | None:
    """A panel for each sweep: the median regret over its key's values."""
    panels = list(dict.fromkeys(line["panel"] for line in lines))
    if not panels:
        return None
    figure, all_axes = plt.subplots(1, len(panels), figsize=(3.2 * len(panels), 3), squeeze=False, sharey=True)
    for axes, panel in zip(all_axes[0], panels, strict=True):
        some = [line for line in lines if line["panel"] == panel]
        places = sorted({line["x"] for line in some})
        for k, x in enumerate(places):
            values = values_of(some, x=x)
            if len(values):
                point(axes, k, values, "C0", upright=True)
        axes.set_xticks(range(len(places)), [f"{x:g}" for x in places])
        axes.set_xlabel(panel)
    all_axes[0][0].set_ylabel("median regret")
    return figure


def curves_plot(lines: list[Line]) -> Figure | None:
    """The regret of the best prompt so far over the samples, median over scenes and seeds."""
    followed = [line for line in lines if len(line["record"].get("regret_curve") or []) > 1]
    if not followed:
        return None
    figure, axes = plt.subplots(figsize=(7, 4))
    end = max(line["record"]["samples"] for line in followed)
    grid = np.linspace(0, end, 100)
    axes.set_prop_cycle(color=plt.get_cmap("tab20").colors)
    for name in dict.fromkeys(line["variant"] for line in followed):
        curves = [line["record"]["regret_curve"] for line in followed if line["variant"] == name]
        table = np.array([steps(curve, grid) for curve in curves])
        known = np.isfinite(table).any(0)
        axes.plot(grid[known], np.nanmedian(table[:, known], axis=0), label=name, drawstyle="steps-post")
    axes.axhline(0, color="0.7", lw=1)
    axes.set_xlabel("denoiser samples")
    axes.set_ylabel("regret of the best prompt so far")
    axes.legend(frameon=False, fontsize="small")
    return figure


def steps(curve: Sequence[Sequence[float]], grid: np.ndarray) -> np.ndarray:
    """A curve of (samples, regret) as a step function on a grid; nan before its first point."""
    at = np.array([samples for samples, _ in curve])
    values = np.array([np.nan, *(np.nan if value is None else value for _, value in curve)], dtype=np.float64)
    return values[np.searchsorted(at, grid, side="right")]


def trace_plot(lines: list[Line]) -> Figure | None:
    """What happened at the end of each epoch, median over scenes and seeds."""
    traced = [line for line in lines if line.get("trace")]
    if not traced:
        return None
    figure, all_axes = plt.subplots(1, len(TRACED), figsize=(3.4 * len(TRACED), 3))
    for axes, (key, title) in zip(all_axes, TRACED.items(), strict=True):
        for name in dict.fromkeys(line["variant"] for line in traced):
            some = [line["trace"] for line in traced if line["variant"] == name]
            shortest = min(len(trace[key]) for trace in some)
            rows = np.array([trace[key][:shortest] for trace in some], dtype=np.float64)  # of null comes nan
            if shortest and np.isfinite(rows).any(0).all():
                axes.plot(some[0]["samples"][:shortest], np.nanmedian(rows, axis=0), label=name)
        axes.set_title(title, fontsize="small")
        axes.set_xlabel("denoiser samples")
    all_axes[-1].legend(frameon=False, fontsize="x-small", loc="upper left", bbox_to_anchor=(1, 1))
    return figure


def probes_plot(lines: list[Line]) -> Figure | None:
    """A panel for each probe: its values over the timesteps, mean over scenes with intervals."""
    probes = list(dict.fromkeys(line["probe"] for line in lines))
    if not probes:
        return None
    figure, all_axes = plt.subplots(1, len(probes), figsize=(5 * len(probes), 3.5), squeeze=False)
    for axes, probe in zip(all_axes[0], probes, strict=True):
        some = [line for line in lines if line["probe"] == probe]
        for k, kind in enumerate(dict.fromkeys(line["kind"] for line in some)):
            parts = sorted({line["part"] for line in some if line["kind"] == kind})
            means, lows, highs = [], [], []
            for part in parts:
                found = [finite(line["value"]) for line in some if (line["kind"], line["part"]) == (kind, part)]
                values = np.array([value for value in found if value is not None])
                low, high = confidence_interval(values) if len(values) else (np.nan, np.nan)
                means.append(values.mean() if len(values) else np.nan)
                lows.append(low)
                highs.append(high)
            middle = [(part + 0.5) * 1000 / some[0]["parts"] for part in parts]
            axes.plot(middle, means, color=f"C{k}", label=kind)
            axes.fill_between(middle, lows, highs, color=f"C{k}", alpha=0.15, lw=0)
        axes.set_title(probe, fontsize="small")
        axes.set_xlabel("timestep")
        axes.legend(frameon=False, fontsize="small")
    return figure
