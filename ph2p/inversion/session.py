"""How an inversion is run, as far as the algorithm knows of it: it reports, saves and may be stopped."""

import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import lightning as L
import torch
from torch import Tensor, nn

from ph2p.inversion.module import PromptInversion
from ph2p.inversion.steps import InversionData

# A Trainer that writes and shows nothing of its own.
PLAIN: dict[str, Any] = {
    "logger": False,
    "enable_checkpointing": False,
    "enable_progress_bar": False,
    "enable_model_summary": False,
}


@dataclass(frozen=True)
class BestSoFar:
    """The best prompt of an image among those visited until now, and its loss on the draws that it was met with."""

    image_id: str
    prompt: str
    loss: float  # inf where it is not known yet


class Session:
    """What one image batch is inverted with; this one fits and does nothing else.

    A subclass may show, save, log, stop and end early. `report` hears of a stage's beginning with `done` = 0, of all
    stages before the first one begins. `check_stop` is called before each call of the denoiser: what it raises ends the
    work.
    """

    def __init__(self) -> None:
        self.started = time.perf_counter()

    def report(self, stage: str, done: int, total: int) -> None:
        """Hear that `done` of `total` steps of a stage are finished."""

    def check_stop(self) -> None:
        """Raise whatever is to end the work."""

    def enough(self) -> bool:
        """Whether optimisation and search are to end at their next step; what was found until then is the result."""
        return False

    def hear(self, best: Callable[[], list[BestSoFar]]) -> None:
        """Hear after each epoch and round of every image's best prompt so far: `best()` makes them, and is not free."""

    def seconds(self) -> float:
        """What the batch has taken so far."""
        return time.perf_counter() - self.started

    def save_search(self, state: dict[str, Tensor]) -> None:
        """Keep the state of the search: at its beginning and after each round."""

    def search_state(self) -> dict[str, Tensor] | None:
        """The state that the search goes on from; None: it begins."""
        return None

    def fit(self, module: PromptInversion, data: InversionData, epochs: int, callbacks: Sequence[L.Callback]) -> None:
        """Train for so many epochs on the module's device."""
        device = module.coordinates.device
        devices = 1 if device.index is None else [device.index]
        every = [*callbacks, EpochProgress(self)]
        trainer = L.Trainer(accelerator=device.type, devices=devices, max_epochs=epochs, callbacks=every, **PLAIN)
        trainer.fit(module, data)


class EpochProgress(L.Callback):
    """Report each finished epoch to a session."""

    def __init__(self, session: Session) -> None:
        self.session = session

    def on_train_epoch_end(self, trainer: L.Trainer, module: PromptInversion) -> None:
        self.session.report("optimising", trainer.current_epoch + 1, trainer.max_epochs)


class EachStep(L.Callback):
    """After each epoch `tell`; end the fit at the next step where that is `enough`, the epoch with its projection."""

    def __init__(self, tell: Callable[[], None], enough: Callable[[], bool]) -> None:
        self.tell, self.enough = tell, enough

    def on_train_start(self, trainer: L.Trainer, module: PromptInversion) -> None:
        trainer.should_stop = self.enough()  # a fit that goes on from a checkpoint may have no time left

    def on_train_batch_end(
        self, trainer: L.Trainer, module: PromptInversion, outputs: Any, batch: Any, batch_index: int
    ) -> None:
        last = trainer.current_epoch + 1 == trainer.max_epochs and batch_index + 1 == trainer.num_training_batches
        trainer.should_stop = not last and self.enough()  # after the last step nothing is left to be cut

    def on_train_epoch_end(self, trainer: L.Trainer, module: PromptInversion) -> None:
        self.tell()


@contextmanager
def stoppable(denoiser: nn.Module, session: Session) -> Iterator[None]:
    """While inside, the session is asked whether to stop before each call of the denoiser, whoever makes it."""

    @torch.compiler.disable
    def look(module: nn.Module, args: tuple[Any, ...]) -> None:
        session.check_stop()

    handle = denoiser.register_forward_pre_hook(look)
    try:
        yield
    finally:
        handle.remove()
