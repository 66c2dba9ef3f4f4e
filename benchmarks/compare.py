"""Compare methods at equal cost: one table, on held-out scenes, several seeds, bootstrap intervals over scenes.

    make compare                                              # all methods
    python benchmarks/compare.py --methods ph2p random --count 8 --seeds 0 1

Every method gets the same budget of denoiser samples (forward plus backward) an image, all in one run and one
process. A scene's figure is its mean over the seeds; the intervals resample scenes.
"""

import argparse
import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from rich.console import Console
from rich.table import Table

from ph2p.config.compose import config_dir, load_config
from ph2p.data import TargetError, WorldTargets
from ph2p.errors import UserError
from ph2p.evaluation.formatting import NOTHING, Show, signed
from ph2p.evaluation.intervals import confidence_interval
from ph2p.evaluation.metrics import Metric, regret, shown_in
from ph2p.evaluation.result import InversionResult, as_record
from ph2p.files import as_json
from ph2p.inversion.session import Session
from ph2p.run.build import load_inverter

Values = NDArray[np.float64]
COLUMNS = shown_in("benchmark")


@dataclass(frozen=True)
class Runner:
    """Inverts the same scenes with every method and seed; the model is loaded once."""

    args: argparse.Namespace

    def __iter__(self) -> Iterator[InversionResult]:
        args = self.args
        inverter = load_inverter(load_config(args.overrides))
        size = inverter.generator.image_size
        targets = WorldTargets(
            count=args.count, seed=args.scene_seed, objects=args.objects, image_size=size, split=args.split
        )
        scenes = [targets.load(index) for index in range(len(targets))]
        for method in args.methods:
            for seed in args.seeds:
                bound = replace(inverter, cfg=load_config(self.words(method, seed)))
                for start in range(0, len(scenes), args.batch_size):
                    batch = scenes[start : start + args.batch_size]
                    for result in bound(batch, Progress(f"{method:>14}  seed {seed}  scenes from {start}")):
                        if isinstance(result, TargetError):
                            raise result
                        yield result

    def words(self, method: str, seed: int) -> list[str]:
        """The command line's words for one method and seed at the common budget."""
        args = self.args
        words = [f"method={method}", f"seed={seed}", f"evaluation.renders={args.renders}", *args.overrides]
        if not args.budget:
            return words
        words.append(f"method.budget={args.budget}")
        if method == "random":  # as many prompts as the budget pays for, all of them scored
            choice = load_config(["method=random"]).method.selection
            number = (args.budget - 2 * choice.finalists * choice.steps) // choice.draws
            words += [f"method.restarts={number}", f"method.selection.shortlist={number}"]
        return words


class Progress(Session):
    """Says on one line how far a batch is."""

    def __init__(self, what: str) -> None:
        super().__init__()
        self.what = what

    def report(self, stage: str, done: int, total: int) -> None:
        print(f"\r{self.what}: {stage} {done}/{total}   ", end="", file=sys.stderr, flush=True)


def by_scene(results: Sequence[InversionResult]) -> dict[str, Values]:
    """Average each scene's metrics over its seeds: {metric's key: (scenes,)}, nan where one is not known."""
    scenes = sorted({r.image_id for r in results})
    values: dict[str, Values] = {}
    for metric in COLUMNS:
        known = [(r.image_id, value) for r in results if (value := r.metrics[metric.key]) is not None]
        rows = [[value for image_id, value in known if image_id == scene] for scene in scenes]
        values[metric.key] = np.array([np.mean(row) if row else np.nan for row in rows], dtype=np.float64)
    return values


def statistic(metric: Metric) -> Callable[[Values], float]:
    """How a metric's values of several scenes become one."""
    return np.nanmedian if metric.over == "median" else np.nanmean


def show(results: Sequence[InversionResult], title: str, reference: str) -> None:
    """Print the table; the last column is the mean, over scenes, of a method's regret minus the reference's."""
    methods = {r.method: by_scene([s for s in results if s.method == r.method]) for r in results}
    heads = [f"{metric.over} {metric.name}" if metric.over == "median" else metric.name for metric in COLUMNS]
    heads += [f"regret above {reference}"] if reference in methods else []
    table = Table("method", *heads, title=title)
    for method, values in methods.items():
        cells = [_interval(values[metric.key], statistic(metric), metric.show) for metric in COLUMNS]
        if reference in methods and method != reference:
            cells.append(_interval(values["regret"] - methods[reference]["regret"], np.nanmean, signed))
        table.add_row(method, *cells)
    Console(width=170).print(table)
    losses = [(r.loss_soft, r.loss_caption, r.loss_empty) for r in results]
    soft = [regret(loss, caption, empty) for loss, caption, empty in losses if loss is not None and caption is not None]
    if soft:
        print(f"soft: median regret of its continuous prompts (the bound) {np.median(soft):.2f}")


def _interval(values: Values, middle: Callable[[Values], float], write: Show) -> str:
    known = values[np.isfinite(values)]
    if not len(known):
        return NOTHING
    low, high = confidence_interval(known, middle)
    return f"{write(float(middle(known)))} [{write(low)}, {write(high)}]"


def parse() -> argparse.Namespace:
    known = sorted(path.stem for path in (config_dir() / "method").glob("*.yaml"))
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--methods", nargs="+", choices=known, default=known)
    parser.add_argument("--count", type=int, default=16, help="scenes")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--budget", type=int, default=2000, help="denoiser samples an image; 0: each method's own")
    parser.add_argument("--reference", choices=known, default="ph2p", help="method that the others are held against")
    parser.add_argument("--split", choices=("val", "test"), default="test")
    parser.add_argument("--scene-seed", type=int, default=21)
    parser.add_argument("--objects", type=int, choices=(1, 2), default=1)
    parser.add_argument("--batch-size", type=int, default=16)
    parser.add_argument("--renders", type=int, default=2)
    parser.add_argument("--output", type=Path, default=Path("outputs/compare.jsonl"), help="every single result")
    parser.add_argument("overrides", nargs="*", help="further keys of train.py, after --")
    return parser.parse_args()


def main() -> None:
    args = parse()
    args.output.parent.mkdir(parents=True, exist_ok=True)
    results: list[InversionResult] = []
    with args.output.open("w", encoding="utf-8") as file:
        for result in Runner(args):
            results.append(result)
            file.write(as_json(as_record(result)).decode() + "\n")
            file.flush()
    print(file=sys.stderr)
    budget = f"{args.budget} denoiser samples an image" if args.budget else "each method's own budget"
    show(results, f"{args.count} scenes of {args.split}, seeds {args.seeds}, {budget}", args.reference)


if __name__ == "__main__":
    try:
        main()
    except UserError as error:
        sys.exit(f"error: {error}")
