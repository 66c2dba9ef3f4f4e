"""What happens around a fit: a checkpoint, progress."""

from collections.abc import Callable
from typing import Any

import lightning as L

from ph2p.inversion.module import PromptInversion
from ph2p.run import stopping
from ph2p.run.checkpoint import BatchCheckpoint


class SaveProgress(L.Callback):
    """Save the fit at the end of each epoch, and within one when told to stop; `Stopped` then ends it.

    Must stand after the callbacks that project and note, so that their work is in the checkpoint.
    """

    def __init__(self, checkpoint: BatchCheckpoint, seconds: Callable[[], float]) -> None:
        self.checkpoint, self.seconds = checkpoint, seconds

    def on_train_batch_end(
        self, trainer: L.Trainer, module: PromptInversion, outputs: Any, batch: Any, batch_index: int
    ) -> None:
        # After the last step the epoch's end saves: before it, the projection would be missing.
        if stopping.requested() and batch_index + 1 < trainer.num_training_batches:
            self._save(trainer)
            stopping.check()

    def on_train_epoch_end(self, trainer: L.Trainer, module: PromptInversion) -> None:
        self._save(trainer)
        stopping.check()

    def _save(self, trainer: L.Trainer) -> None:
        self.checkpoint.about["seconds"] = self.seconds()
        trainer.save_checkpoint(self.checkpoint.path)


class EpochProgress(L.Callback):
    """Report the finished share of the epochs, in (0, 1], to a function."""

    def __init__(self, report: Callable[[float], None]):
        self.report = report

    def on_train_epoch_end(self, trainer: L.Trainer, module: PromptInversion) -> None:
        self.report((trainer.current_epoch + 1) / trainer.max_epochs)
