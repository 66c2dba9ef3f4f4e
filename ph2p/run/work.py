"""A rank's images, batch after batch: read, invert, write."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ph2p.config.schema import Config
from ph2p.data import Target, TargetError, Targets
from ph2p.errors import UserError
from ph2p.evaluation.result import InversionResult, as_candidates, as_record, pictures
from ph2p.inverter import Inverter
from ph2p.report.records import read_results
from ph2p.run import stopping
from ph2p.run.assignment import batches
from ph2p.run.checkpoint import BatchCheckpoint
from ph2p.run.logs import RunLog
from ph2p.run.results import ResultsFolder
from ph2p.run.screen import BatchProgress, Screen
from ph2p.run.session import RunSession
from ph2p.run.sidecars import complete_sidecars, remove_sidecar, write_sidecar
from ph2p.run.standing import Standing, standing


@dataclass
class Work:
    """What a rank has to do with its images, and what with. `failed` and `written` count images of this run."""

    cfg: Config
    inverter: Inverter
    targets: Targets
    results: ResultsFolder
    screen: Screen
    log: RunLog
    failed: int = 0
    written: int = 0

    def __post_init__(self) -> None:
        self.checkpoint = BatchCheckpoint(self.results.checkpoint, self.results.settings)

    def look(self, index: Mapping[str, int]) -> Standing:
        """Where the images in `index` (id: number) stand."""
        records = read_results(self.results.folder)
        return standing(records, index, self.targets, self.results.change_since)

    def do(self, index: Mapping[str, int], state: Standing) -> None:
        """Invert what is left of the images in `index`, the batch that was interrupted first."""
        if self.cfg.sidecars:
            records = {str(record["image_id"]): record for record in read_results(self.results.folder)}
            prompts = {image_id: str(records[image_id]["prompt"]) for image_id in state.done}
            complete_sidecars(self.results.folder, prompts)
        begun = self._begun()
        todo = batches(list(index), begun, state.done, state.errors.keys(), self.cfg.batch_size)
        with self.screen.progress(sum(map(len, todo))) as progress:
            for batch in todo:
                self._batch({image_id: index[image_id] for image_id in batch}, state, progress)
        self.checkpoint.finish()  # it may be left from another number of ranks

    def _begun(self) -> list[str]:
        """The image ids of the interrupted batch: our own, or otherwise that of `ckpt_path`."""
        begun = self.checkpoint.read(force=self.cfg.resume == "force")
        if self.cfg.ckpt_path is None or begun:
            return begun
        begun = self.checkpoint.read(Path(self.cfg.ckpt_path))
        for image_id in sorted(set(begun) - set(self.targets.ids)):
            raise UserError(f"ckpt_path={self.cfg.ckpt_path}: its image {image_id} is not among the images of this run")
        return begun

    def _batch(self, index: Mapping[str, int], state: Standing, progress: BatchProgress) -> None:
        """Load, invert and write one batch; an image that cannot be read or inverted fails alone.

        A batch that was interrupted while it was written is the same again, and only what is not done is written.
        """
        progress.begin(len(index))
        batch = self._load(index, state)
        if batch:
            for image_id in self.checkpoint.begin({target.image_id: target.key for target in batch}):
                self.screen.say(f"{image_id}: the picture was replaced; its batch begins anew")
            session = RunSession(self.cfg.trainer, self.checkpoint, self.log, progress.report)
            for target, result in zip(batch, self.inverter(batch, session), strict=True):
                if isinstance(result, TargetError):
                    self._fail(target.image_id, target.source, result, state)
                elif target.image_id not in state.done:
                    if self.cfg.sidecars:
                        write_sidecar(self.results.folder, target.image_id, result.prompt)
                    write(result, self.results)
                    self.written += 1
                    self.log.show(result, len(state.done) + self.written)
                stopping.check()
            self.checkpoint.finish()
        progress.finish()

    def _load(self, index: Mapping[str, int], state: Standing) -> list[Target]:
        batch = []
        for image_id, number in index.items():
            stopping.check()
            try:
                batch.append(self.targets.load(number))
            except TargetError as error:
                self._fail(image_id, "", error, state)
        return batch

    def _fail(self, image_id: str, source: str, error: TargetError, state: Standing) -> None:
        self.failed += 1
        if self.cfg.sidecars:
            remove_sidecar(self.results.folder, image_id)
        self.screen.fail(str(error))
        if state.errors.get(image_id) != str(error):  # otherwise its record says so already
            self.results.append({"image_id": image_id, "source": source, "status": "failed", "error": str(error)})


def check_checkpoints(cfg: Config, results: ResultsFolder) -> None:
    """Raise UserError, before a model is loaded, for a checkpoint that the run cannot go on from."""
    checkpoint = BatchCheckpoint(results.checkpoint, results.settings)
    begun = checkpoint.read(force=cfg.resume == "force")
    if cfg.ckpt_path is not None and not begun:
        checkpoint.read(Path(cfg.ckpt_path))


def write(result: InversionResult, results: ResultsFolder) -> None:
    """Write an image's pictures and candidates, and then its record."""
    image_id, found = result.image_id, pictures(result)
    files: dict[str, Any] = {"target": results.write_picture(image_id, "target", found.pop("target"))}
    for key, some in found.items():  # renderings, caption_renderings
        name = key.removesuffix("s").replace("_", "-")
        files[key] = [results.write_picture(image_id, f"{name}-{k}", picture) for k, picture in enumerate(some)]
    files["candidates"] = results.write_candidates(image_id, as_candidates(result))
    results.append(as_record(result) | {"files": files, "settings": results.digest})
    results.prune(image_id, [files["target"], *(path for key in found for path in files[key])])
