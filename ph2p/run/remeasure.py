"""Measure or render the finished prompts of a results folder anew, with its own configuration or a changed one."""

import json
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch

from ph2p.config.schema import Config
from ph2p.config.settings import difference, settings
from ph2p.data import Target, TargetError, Targets, slug
from ph2p.errors import UserError
from ph2p.evaluation.measurement import JUDGES, Measurement
from ph2p.evaluation.result import InversionResult
from ph2p.inversion.batch import Batch
from ph2p.inversion.selection import Candidate
from ph2p.inversion.trail import Trail
from ph2p.inverter import Inverter
from ph2p.report.records import parsed, read_results
from ph2p.run.build import load_inverter, make_targets, quiet_libraries
from ph2p.run.results import ResultsFolder, read_config
from ph2p.run.screen import Screen
from ph2p.run.standing import Record
from ph2p.run.work import write

RENDERING = ("evaluation.renders", "generator.steps", "generator.guidance_scale", "generator.guidance_rescale")
MEASURING = (*RENDERING, "evaluation.draws", "evaluation.timesteps", *(f"evaluation.{key}" for key in JUDGES))
LOSSES = ("loss", "loss_empty", "loss_caption", "loss_reference", "loss_soft", "notes")

Load = Callable[[Config], Inverter]


def repaint(folder: str | Path, overrides: Sequence[str] = (), load: Load = load_inverter) -> int:
    """Render the finished prompts of a folder anew; losses stay. Returns how many images it was.

    `overrides` are words such as "evaluation.renders=4". Raises UserError for a key that decides more than the
    renderings, and for what stops a run.
    """
    return _Redo(Path(folder), overrides, RENDERING).run(load)


def remeasure(folder: str | Path, overrides: Sequence[str] = (), load: Load = load_inverter) -> int:
    """Measure and render the finished prompts of a folder anew. Returns how many images it was.

    As `repaint`, with the keys of the evaluation too. A continuous prompt is kept nowhere: its loss stays as long as
    the evaluation does, and is dropped otherwise.
    """
    return _Redo(Path(folder), overrides, MEASURING).run(load)


@dataclass
class _Redo:
    """One pass over a folder, in which the keys `allowed` may have other values than before."""

    folder: Path
    overrides: Sequence[str]
    allowed: tuple[str, ...]

    def __post_init__(self) -> None:
        path = self.folder / "config.yaml"
        before, self.cfg = read_config(path), read_config(path, self.overrides)
        self.same = settings(before) == settings(self.cfg)
        fixed = [{k: v for k, v in settings(c).items() if k not in self.allowed} for c in (before, self.cfg)]
        if key := difference(*fixed):
            keys = ", ".join(self.allowed)
            raise UserError(f"{key}: decides more than what is done anew here; only {keys} may change")
        self.losses = "evaluation.draws" in self.allowed

    def run(self, load: Load) -> int:
        quiet_libraries()
        targets, screen = make_targets(self.cfg), Screen()
        index, parts = {name: k for k, name in enumerate(targets.ids)}, self._parts()
        inverter, count = load(self.cfg), 0
        targets.image_size = inverter.generator.image_size
        for part, records in parts.items():
            results = ResultsFolder(self.folder, self.cfg, part, force=True)
            try:
                with screen.progress(len(records)) as progress:
                    for some in _chunks(records, self.cfg.batch_size):
                        progress.begin(len(some))
                        known = list(_matching(some, targets, index, screen))
                        if known:
                            progress.report(0.0, "measuring")
                            self._redo(inverter, known, results)
                        count += len(known)
                        progress.finish()
            finally:
                results.close()
        return count

    def _parts(self) -> dict[str, list[Record]]:
        """The finished records of each part, those that count: the last one of an image."""
        last = {str(record["image_id"]): record for record in read_results(self.folder)}
        owner: dict[str, str] = {}  # the last part that an image stands in, where its record is read
        for path in sorted((self.folder / "results").glob("part-*.jsonl")):
            found = map(parsed, path.read_text("utf-8", "replace").split("\n"))
            owner |= {str(record["image_id"]): path.stem for record in found if "image_id" in record}
        parts: dict[str, list[Record]] = {}
        for name, record in last.items():
            if record.get("status") == "ok":
                parts.setdefault(owner[name], []).append(record)
        return parts

    def _redo(self, inverter: Inverter, known: Sequence[tuple[Target, Record]], results: ResultsFolder) -> None:
        """Measure a batch, and write what came out in the place of what was there."""
        cfg = self.cfg if self.losses else replace(self.cfg, evaluation=replace(self.cfg.evaluation, draws=1))
        batch = Batch([target for target, _ in known], inverter.generator, inverter.scorer)
        measure = Measurement(inverter.generator, inverter.scorer, cfg, inverter.backbones)
        saved = [_saved(self.folder, record) for _, record in known]
        curves = torch.zeros(len(known), 0)
        found = measure(batch, [candidates for candidates, _ in saved], None, curves, 0.0)
        for result, (_, record), (_, content) in zip(found, known, saved, strict=True):
            result.loss_curve, result.search_curve = content["loss_curve"], content["search_curve"]
            result.trail = content["trail"]
            self._take_over(result, record)
            write(result, results)

    def _take_over(self, result: InversionResult, record: Record) -> None:
        """What was not done anew is as it was."""
        for name in ("forward_samples", "backward_samples", "seconds", "method", "seed"):
            setattr(result, name, record[name])
        result.agreement = record.get("agreement")
        result.cut_short, result.alternatives = record.get("cut_short", ""), record.get("alternatives", [])
        if not self.losses:
            for name in LOSSES:
                setattr(result, name, record.get(name))
            fixed = {key: record["measured_with"][key] for key in ("draws", "timesteps")}
            result.measured_with = {**result.measured_with, **fixed}
        elif self.same:
            result.loss_soft = record.get("loss_soft")


def _chunks(records: Sequence[Record], size: int) -> Iterator[Sequence[Record]]:
    return (records[k : k + size] for k in range(0, len(records), size))


def _matching(
    records: Sequence[Record], targets: Targets, index: dict[str, int], screen: Screen
) -> Iterator[tuple[Target, Record]]:
    """The records whose picture is still there, with it; of the others a line is said."""
    for record in records:
        image_id = str(record["image_id"])
        try:
            target = targets.load(index[image_id])
        except (KeyError, TargetError):
            screen.say(f"{image_id}: the picture cannot be read any more; left as it is")
            continue
        if target.key != record.get("content", target.key):
            screen.say(f"{image_id}: the picture was replaced; left as it is, the next run inverts it anew")
            continue
        yield target, record


def _saved(folder: Path, record: Record) -> tuple[list[Candidate], dict[str, Any]]:
    """The candidates of an image, the winner first, and what stands beside them: the curves, and the trail if any."""
    path = folder / "candidates" / f"{slug(str(record['image_id']))}.json"
    try:
        content = json.loads(path.read_bytes())
        rows = content["candidates"]
        found = [
            Candidate(tuple(row["token_ids"]), row["prompt"], row["epoch"], row["loss"], row["clip_similarity"])
            for row in rows
        ]
        trail = Trail(**content["trail"]) if "trail" in content else None  # older records have none
        return found, {name: content[name] for name in ("loss_curve", "search_curve")} | {"trail": trail}
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise UserError(f"{path}: cannot be read; remove the image's record, and run again") from error
