"""Compare methods at equal cost: one table, on held-out scenes, several seeds, bootstrap intervals over scenes.

    make compare                                              # all methods
    python benchmarks/compare.py --methods ph2p random --count 8 --seeds 0 1

Every method gets the same budget of denoiser samples (forward plus backward) an image, all in one run and one
process. A scene's figure is its mean over the seeds; the intervals resample scenes.
"""

import argparse
import json
import sys
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
from rich.console import Console
from rich.table import Table

from ph2p.config.compose import config_dir, load_config
from ph2p.data import WorldTargets
from ph2p.errors import UserError
from ph2p.evaluation.metrics import confidence_interval
from ph2p.evaluation.result import Inversion, as_record
from ph2p.run.build import load_inverter

COLUMNS = {
    "regret": ("median regret", np.median),
    "word_recall": ("words found", np.mean),
    "clip_ratio": ("CLIP, share of caption's", np.mean),
    "samples": ("samples", np.mean),
    "seconds": ("seconds", np.mean),
}


def invert_all(args: argparse.Namespace) -> Iterator[Inversion]:
    """Yield the results of every method and seed on the same scenes; the model is loaded once."""
    inverter = load_inverter(load_config(args.overrides))
    size = inverter.generator.image_size
    targets = WorldTargets(args.count, args.objects, args.split, seed=args.scene_seed, image_size=size)
    loaded = [targets.load(index) for index in range(len(targets))]
    for method in args.methods:
        for seed in args.seeds:
            options = [f"method={method}", f"seed={seed}", f"evaluation.renders={args.renders}", *args.overrides]
            budget = [f"method.budget={args.budget}"] if args.budget else []
            if method == "random" and args.budget:  # as many prompts as the budget pays for, all of them scored
                choice = load_config(["method=random"]).method.selection
                number = (args.budget - 2 * choice.finalists * choice.steps) // choice.draws
                budget += [f"method.restarts={number}", f"method.selection.shortlist={number}"]
            bound = replace(inverter, cfg=load_config(options + budget))
            for start in range(0, len(loaded), args.batch_size):
                batch = loaded[start : start + args.batch_size]
                yield from bound(batch, lambda share, what, m=method, s=seed, n=start: _progress(m, s, n, share, what))


def _progress(method: str, seed: int, first: int, share: float, what: str) -> None:
    print(
        f"\r{method:>14}  seed {seed}  scenes from {first}: {what} {share:4.0%}   ", end="", file=sys.stderr, flush=True
    )


def by_scene(results: list[Inversion]) -> dict[str, np.ndarray]:
    """Average each scene's figures over its seeds: {figure: (scenes,)}."""
    scenes = sorted({r.image_id for r in results})
    figures = [
        {
            "regret": r.regret,
            "word_recall": r.word_recall,
            "clip_ratio": r.clip_similarity / r.clip_similarity_caption,
            "samples": r.forward_samples + r.backward_samples,
            "seconds": r.seconds,
        }
        for r in results
    ]
    owner = [r.image_id for r in results]
    return {
        name: np.array([np.mean([f[name] for f, o in zip(figures, owner, strict=True) if o == s]) for s in scenes])
        for name in COLUMNS
    }


def show(results: list[Inversion], title: str, reference: str) -> None:
    """Print the table; the last column is the mean, over scenes, of a method's regret minus the reference's."""
    methods = {r.method: by_scene([s for s in results if s.method == r.method]) for r in results}
    heads = [title for title, _ in COLUMNS.values()] + ([f"regret above {reference}"] if reference in methods else [])
    table = Table("method", *heads, title=title)
    for method, figures in methods.items():
        cells = [
            f"{statistic(figures[name]):.0f}" if name == "samples" else _interval(figures[name], statistic)
            for name, (_, statistic) in COLUMNS.items()
        ]
        if reference in methods:
            cells.append("" if method == reference else _interval(figures["regret"] - methods[reference]["regret"]))
        table.add_row(method, *cells)
    Console(width=150).print(table)
    soft = [(r.loss_soft - r.loss_caption) / (r.loss_empty - r.loss_caption) for r in results if r.loss_soft]
    if soft:
        print(f"soft: median regret of its continuous prompts (the bound) {np.median(soft):.2f}")


def _interval(values: np.ndarray, statistic: Callable = np.mean) -> str:
    low, high = confidence_interval(values, statistic)
    return f"{statistic(values):.2f} [{low:.2f}, {high:.2f}]"


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
    results = []
    with args.output.open("w") as file:
        for result in invert_all(args):
            results.append(result)
            file.write(json.dumps(as_record(result)) + "\n")
            file.flush()
    print(file=sys.stderr)
    budget = f"{args.budget} denoiser samples an image" if args.budget else "each method's own budget"
    show(results, f"{args.count} scenes of {args.split}, seeds {args.seeds}, {budget}", args.reference)


if __name__ == "__main__":
    try:
        main()
    except UserError as error:
        sys.exit(f"error: {error}")
