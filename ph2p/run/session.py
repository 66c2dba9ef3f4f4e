"""How a run inverts a batch: with the configured Trainer, a checkpoint, curves, progress, and a way to be stopped."""

import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import lightning as L
import torch
from lightning.pytorch.utilities.exceptions import SIGTERMException
from torch import Tensor

from ph2p.inversion.module import PromptInversion
from ph2p.inversion.projection import DelayedProjection
from ph2p.inversion.session import PLAIN, EpochProgress, Session
from ph2p.inversion.steps import InversionData
from ph2p.run import stopping
from ph2p.run.checkpoint import BatchCheckpoint
from ph2p.run.logs import RunLog
from ph2p.run.ranks import trainer_options

Report = Callable[[float, str], None]  # how much of a batch is finished, in [0, 1], and what is happening
WEIGHTS = {"optimising": 0.45, "searching": 0.45, "choosing": 0.05, "measuring": 0.05}  # about their parts of the time
PAUSE = 10.0  # seconds between two savings within a long epoch


def part_done(stages: Mapping[str, float]) -> float:
    """How much of a batch's work is done, in [0, 1], of how much of each of its stages is."""
    return sum(WEIGHTS[name] * part for name, part in stages.items()) / sum(WEIGHTS[name] for name in stages)


class RunSession(Session):
    """One image batch of a run: goes on from its checkpoint, writes it, logs, reports and looks for signals.

    `trainer` is the configuration's; the `checkpoint` was opened for the batch's images.
    """

    def __init__(self, trainer: Mapping[str, Any], checkpoint: BatchCheckpoint, log: RunLog, report: Report) -> None:
        self.trainer, self.checkpoint, self.log, self._report = trainer, checkpoint, log, report
        self.started = time.perf_counter() - checkpoint.about["seconds"]
        self.stages: dict[str, float] = {}  # how much of each is finished, in [0, 1]
        self.epochs = 0

    @property
    def images(self) -> list[str]:
        """The ids of the batch's images."""
        return list(self.checkpoint.about["images"])

    def report(self, stage: str, done: int, total: int) -> None:
        self.stages[stage] = done / total
        self._report(part_done(self.stages), stage)
        self.check_stop()

    def check_stop(self) -> None:
        stopping.check()

    def save_search(self, state: dict[str, Tensor]) -> None:
        losses = state["losses"]  # (B S, 1 + rounds so far)
        best = losses[:, -1].view(len(self.images), -1).amin(1).tolist()
        values = {name: {"search_loss": loss} for name, loss in zip(self.images, best, strict=True)}
        self.log.write(self.epochs + losses.shape[1] - 1, values)
        self.checkpoint.save_search(state, self.seconds())

    def search_state(self) -> dict[str, Tensor] | None:
        state: dict[str, Tensor] | None = self.checkpoint.about["search"]
        return state

    def fit(self, module: PromptInversion, data: InversionData, epochs: int, callbacks: Sequence[L.Callback]) -> None:
        self.epochs = epochs
        options = trainer_options(self.trainer)
        options["plugins"] = [*options["plugins"], self.checkpoint]
        saving = SaveProgress(self.checkpoint, self.seconds)  # after all whose work belongs into the checkpoint
        every = [*callbacks, LogCurves(self.log, self.images), saving, EpochProgress(self)]
        trainer = L.Trainer(**options, **PLAIN, max_epochs=epochs, callbacks=every)
        try:
            trainer.fit(module, data, ckpt_path=self.checkpoint.fit_path, weights_only=True)
        except SIGTERMException:  # Lightning has seen the signal between two of our looks, and would exit with 0
            stopping.check()
            raise


class LogCurves(L.Callback):
    """Write each epoch of a fit to a `RunLog`, for all prompts of the `images`: their restarts are `name#1` and so on.

    `loss` is the epoch's last, `gradient_norm` that of the last evaluation (L2, over all tokens of a prompt, in
    `method.units`), and `evaluations` counts those of the objective since the first epoch. `candidate_loss` is that
    of the hard prompt which the epoch began with (a projection that snaps) or is at (straight-through); a method that
    never stands at one has none.
    """

    def __init__(self, log: RunLog, images: Sequence[str]) -> None:
        self.run_log, self.images = log, list(images)

    @torch.no_grad()
    def on_train_epoch_end(self, trainer: L.Trainer, module: PromptInversion) -> None:
        values = {"loss": module.losses.tolist()}
        snap = any(isinstance(other, DelayedProjection) and other.snap for other in trainer.callbacks)
        if snap or module.straight_through:
            values["candidate_loss"] = (module.losses if module.straight_through else module.first_losses).tolist()
        if (gradient := module.coordinates.grad) is not None:
            norms = gradient.float().flatten(1).norm(dim=1)
            values["gradient_norm"] = norms.masked_fill(~module.alive, torch.nan).tolist()
        restarts = len(module.coordinates) // len(self.images)
        names = [f"{name}#{r}" if r else name for name in self.images for r in range(restarts)]
        values["evaluations"] = [int(module.evaluations)] * len(names)
        by_row = {name: {key: some[row] for key, some in values.items()} for row, name in enumerate(names)}
        self.run_log.write(trainer.current_epoch, by_row)


class SaveProgress(L.Callback):
    """Save the fit at the end of each epoch, and within a long one every `PAUSE` seconds and when told to stop.

    A stop within a step of the optimiser saves nothing: the step is made again, from where the last saving was.
    """

    def __init__(self, checkpoint: BatchCheckpoint, seconds: Callable[[], float]) -> None:
        self.checkpoint, self.seconds = checkpoint, seconds
        self.saved = seconds()

    def on_train_batch_end(
        self, trainer: L.Trainer, module: PromptInversion, outputs: Any, batch: Any, batch_index: int
    ) -> None:
        # After the last step the epoch's end saves: before it, the projection would be missing.
        if batch_index + 1 < trainer.num_training_batches:
            if stopping.requested() or self.seconds() - self.saved > PAUSE:
                self._save(trainer)
            stopping.check()

    def on_train_epoch_end(self, trainer: L.Trainer, module: PromptInversion) -> None:
        self._save(trainer)
        stopping.check()

    def _save(self, trainer: L.Trainer) -> None:
        self.saved = self.checkpoint.about["seconds"] = self.seconds()
        trainer.save_checkpoint(self.checkpoint.path)
