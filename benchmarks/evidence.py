"""The evidence: what an experiment of configs/experiment/ compares, run at one size, and told in docs/evidence.md.

    make evidence SIZE=small                        # all experiments
    make evidence SIZE=small EXPERIMENT=timesteps   # one of them
    make evidence SIZE=small ARGS=--estimate        # run nothing, say about how long it takes
    make evidence SIZE=full EXPERIMENT=main ARGS="--shard 0/2"   # half of its cells; the other half with --shard 1/2

Every single result is a line of outputs/evidence/<size>/<experiment>/part-*.jsonl. The same command continues: what was
made with the same settings, scenes and weights is not made again. design.py says how the YAML files are read.
"""

import argparse
import hashlib
import json
import os
import platform
import subprocess
import sys
from collections import Counter
from collections.abc import Iterator
from dataclasses import asdict, dataclass, field, replace
from datetime import datetime
from functools import cache
from pathlib import Path
from typing import Any

import torch
from design import SAMPLES_A_SECOND, SIZES, Cell, Experiment, experiments, samples
from digest import write_digest
from material import loaded, targets_of
from picking import picks
from probes import PROBES
from watch import Watch

from ph2p.config.checks import parse_shard
from ph2p.config.compose import load_config
from ph2p.config.schema import Config
from ph2p.data import Target, TargetError, WorldTargets
from ph2p.errors import UserError
from ph2p.evaluation.metrics import regret
from ph2p.evaluation.result import InversionResult, as_record
from ph2p.evaluation.texts import text_losses
from ph2p.files import as_json, write_whole
from ph2p.inversion.batch import Batch
from ph2p.inverter import Inverter
from ph2p.run.build import load_inverter, quiet_libraries

ROOT = Path(__file__).resolve().parents[1]
Line = dict[str, Any]


@dataclass
class Runner:
    """Runs cells one after another; a model is loaded anew only where a cell asks for another one."""

    args: argparse.Namespace
    loaded: dict[str, Inverter] = field(default_factory=dict)
    ranked: list[str] = field(default_factory=list)  # the allowed words, those that captions use most first

    def run(self, experiment: Experiment) -> None:
        """All of its cells and probes that are not finished."""
        folder = self.folder(experiment)
        index, number = parse_shard(self.args.shard)
        done = {(line["cell"], line["image_id"]) for line in lines(folder)}
        folder.mkdir(parents=True, exist_ok=True)
        with (folder / f"part-{index}-of-{number}.jsonl").open("a", encoding="utf-8") as file:
            for place, (key, work) in enumerate(self.work(experiment)):
                if place % number == index:
                    for line in work({image_id for cell, image_id in done if cell == key}):
                        file.write(as_json({"cell": key} | line | provenance()).decode() + "\n")
                        file.flush()

    def folder(self, experiment: Experiment) -> Path:
        return Path(self.args.output) / experiment.size / experiment.name

    def work(self, experiment: Experiment) -> Iterator[tuple[str, Any]]:
        """What is to be done, in its order: the key of each piece, and what makes those of its lines that lack."""
        for cell in experiment.cells():
            cfg = self.config(cell)
            yield key_of(cfg, cell.world, "inversion"), lambda done, c=cell, g=cfg: self.invert(experiment, c, g, done)
        for name, options in (experiment.probes or {}).items():
            cell = next(experiment.cells())
            cfg = self.config(cell)
            key = key_of(cfg, cell.world | options, name)
            yield key, lambda done, n=name, c=cell, g=cfg, o=options: self.probe(n, c, g, o, done)

    def keys(self, experiment: Experiment) -> set[str]:
        """The keys of all there is to do now: lines of other keys are of other settings, scenes or weights."""
        return {key for key, _ in self.work(experiment)}

    def config(self, cell: Cell) -> Config:
        words = [*cell.words, *self.args.overrides]
        if cell.variant.allow:
            words.append(f"generator.allowlist={self.word_list(cell.variant.allow)}")
        return load_config(words)

    def inverter(self, cfg: Config) -> Inverter:
        """The loaded model with these settings."""
        key = as_json(asdict(cfg.generator) | {"scorer": asdict(cfg.scorer), "trainer": cfg.trainer}).decode()
        if key not in self.loaded:
            self.loaded = {key: load_inverter(cfg)}  # one at a time in memory
        return replace(self.loaded[key], cfg=cfg)

    def pictures(self, scenes: Line, size: tuple[int, int]) -> list[Target]:
        """The pictures of a set of scenes, as a model of this size sees them."""
        return loaded(targets_of(scenes, Path(self.args.output), size))

    def word_list(self, count: int) -> Path:
        """A file of the `count` allowed words that captions of the validation split use most."""
        if not self.ranked:
            vocabulary = self.inverter(load_config(self.args.overrides)).generator.vocabulary
            known = [vocabulary.decode([token]) for token in vocabulary.allowed_ids.tolist()]
            scenes = self.pictures({"split": "val", "seed": 1, "count": 100}, (64, 64))
            used = Counter(word for scene in scenes for word in (scene.caption or "").split())
            self.ranked = sorted(known, key=lambda word: (-used[word], word))
        path = Path(self.args.output) / f"words-{count}.txt"
        path.parent.mkdir(parents=True, exist_ok=True)
        write_whole(path, ("\n".join(self.ranked[:count]) + "\n").encode())
        return path

    def invert(self, experiment: Experiment, cell: Cell, cfg: Config, done: set[str]) -> Iterator[Line]:
        """The lines of a cell's images that are not `done`."""
        lacking = [name for name in targets_of(cell.world, Path(self.args.output)).ids if name not in done]
        if not lacking:
            return
        inverter = self.inverter(cfg)
        targets = [t for t in self.pictures(cell.world, inverter.generator.image_size) if t.image_id in lacking]
        for start in range(0, len(targets), self.args.batch_size):
            some = targets[start : start + self.args.batch_size]
            say(f"{experiment.name}: {cell.variant.label}, {cell.scenes}, seed {cell.seed}: {start} of {len(targets)}")
            watch = Watch(inverter, len(some))
            results = inverter(some, watch)
            if experiment.follow:
                self.follow(inverter, some, results, watch)
            for row, (target, result) in enumerate(zip(some, results, strict=True)):
                line = {"image_id": target.image_id, "variant": cell.variant.label, "panel": cell.variant.panel}
                line |= {"x": cell.variant.x, "scenes": cell.scenes, "seed": cell.seed}
                if isinstance(result, TargetError):
                    yield line | {"record": {"status": "failed", "error": str(result)}}
                    continue
                record = as_record(result)
                record |= {"regret_own": own_regret(inverter, target, result)} if experiment.own_range else {}
                record |= self.picked(cell, target, result) if experiment.picks else {}
                trace = {name: [epoch[row] for epoch in rows] for name, rows in watch.trace.items()}
                yield line | {"record": record} | ({"trace": trace} if experiment.trace else {})

    def picked(self, cell: Cell, target: Target, result: InversionResult) -> Line:
        """Whether the prompt alone picks its picture among others of the embedded world."""
        targets = targets_of(cell.world, Path(self.args.output))
        assert isinstance(targets, WorldTargets) and result.renderings is not None
        place = targets.ids.index(target.image_id)
        return picks(targets, place, result.prompt, result.renderings.cpu().float())

    def follow(self, inverter: Inverter, targets: list[Target], results: list[Any], watch: Watch) -> None:
        """Give the results their curves, where all of the batch have been found."""
        if not any(isinstance(result, TargetError) for result in results):
            watch.curves(inverter, targets, results)

    def probe(self, name: str, cell: Cell, cfg: Config, options: Line, done: set[str]) -> Iterator[Line]:
        """The lines of a probe, which is made as a whole."""
        if done:
            return
        say(f"{name}: {cell.scenes}")
        inverter = self.inverter(cfg)
        world = cell.world if cell.world["count"] > 1 else cell.world | {"count": 2}
        few = {"draws": 2, "bins": 2} if self.args.size == "smoke" else {}
        targets = self.pictures(world, inverter.generator.image_size)
        for line in list(PROBES[name](inverter, targets, options | few)):  # all of them, or none
            yield line | {"probe": name, "parts": (options | few)["bins"]}


def own_regret(inverter: Inverter, target: Target, result: InversionResult) -> float | None:
    """The regret on the timesteps that the method itself looks at."""
    cfg, batch = inverter.cfg, Batch([target], inverter.generator, inverter.scorer)
    draws = batch.draws(cfg.seed, "own timesteps", cfg.evaluation.draws, cfg.method.timesteps)
    texts = [result.prompt, target.caption or "", ""]
    found, caption, empty = (text_losses(inverter.generator, batch.latents, [text], draws)[0] for text in texts)
    return regret(found, caption, empty) if target.caption else None


def lines(folder: Path) -> list[Line]:
    """All lines of an experiment that are whole: a process that was killed may leave half of one."""
    found = []
    for path in sorted(folder.glob("part-*.jsonl")):
        for text in path.read_text(encoding="utf-8").splitlines():
            try:
                found.append(json.loads(text))
            except ValueError:
                continue
    return found


def key_of(cfg: Config, more: Line, kind: str) -> str:
    """What lines depend on, as a hash: settings, scenes and weights."""
    settings = {key: value for key, value in asdict(cfg).items() if key not in ("name", "output", "data", "logger")}
    models = [weights(cfg.generator.path), weights(cfg.scorer.path)]
    text = as_json({"kind": kind, "settings": settings, "more": more, "models": models})
    return hashlib.sha256(text).hexdigest()[:16]


@cache
def weights(path: str) -> str:
    """A hash of the files of a model's folder; a hub id stands for itself."""
    digest = hashlib.sha256()
    for file in sorted(Path(path).rglob("*")) if Path(path).is_dir() else []:
        if file.suffix in (".safetensors", ".json"):
            digest.update(file.name.encode() + file.read_bytes())
    return digest.hexdigest()[:16] if Path(path).is_dir() else path


@cache
def _place() -> Line:
    """Which commit, and on what it runs."""
    try:
        git = ["git", "-C", str(ROOT), "describe", "--always", "--dirty"]
        commit = subprocess.run(git, capture_output=True, text=True, check=True).stdout.strip()
    except (OSError, subprocess.CalledProcessError):
        commit = "unknown"
    gpu = torch.cuda.get_device_name() if torch.cuda.is_available() else ""
    info = Path("/proc/cpuinfo")
    rows = info.read_text(encoding="utf-8").splitlines() if info.exists() else []
    names = [row.partition(":")[2].strip() for row in rows if row.startswith("model name")]
    cpu = f"{os.cpu_count()} cores of {names[0] if names else platform.machine()}"
    return {"commit": commit, "hardware": gpu or cpu, "torch": torch.__version__}


def provenance() -> Line:
    return _place() | {"date": datetime.now().strftime("%Y-%m-%d")}


def say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


def parse(words: list[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--size", choices=SIZES, default="smoke")
    parser.add_argument("--experiment", help="the name of one; all if it is left out")
    parser.add_argument("--shard", default="0/1", help="i/n: every n-th cell from number i on")
    parser.add_argument("--batch-size", type=int, default=16, help="scenes inverted at once")
    parser.add_argument("--output", default="outputs/evidence", help="the folder of the raw results")
    parser.add_argument("--docs", type=Path, help="the digest; docs/evidence.md, for smoke beside the raw results")
    parser.add_argument("--digest-only", action="store_true", help="run nothing, tell what there is")
    parser.add_argument("--estimate", action="store_true", help="run nothing, say about how long it would take")
    parser.add_argument("overrides", nargs="*", help="further keys of train.py, after --")
    return parser.parse_args(words)


def estimate(chosen: list[Experiment]) -> None:
    """Say how many samples each experiment takes, and for how long two processes on two cores are busy with them."""
    counts = {experiment.name: samples(experiment) for experiment in chosen}
    for name, count in (counts | {"together": sum(counts.values())}).items():
        print(f"{name:12} {count:12,} denoiser samples, about {count / SAMPLES_A_SECOND / 3600:.1f} h")


def main(words: list[str] | None = None) -> None:
    args = parse(words)
    if args.estimate:
        estimate(experiments(args.size, args.experiment or None))
        return
    quiet_libraries()
    runner = Runner(args)
    for experiment in [] if args.digest_only else experiments(args.size, args.experiment or None):
        runner.run(experiment)
    beside = Path(args.output) / args.size / "evidence.md"
    docs = args.docs or (beside if args.size == "smoke" else ROOT / "docs" / "evidence.md")
    found = []
    for experiment in experiments(args.size):
        every, keys = lines(runner.folder(experiment)), runner.keys(experiment)
        found.append((experiment, [line for line in every if line["cell"] in keys]))
    write_digest(docs, args.size, found)
    say(f"{docs}")


if __name__ == "__main__":
    try:
        main()
    except UserError as error:
        sys.exit(f"error: {error}")
