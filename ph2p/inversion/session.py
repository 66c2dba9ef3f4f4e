"""How an inversion is run, as far as the algorithm knows of it: it reports, saves and may be stopped."""

import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
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


class Session:
    """What one image batch is inverted with; this one fits and does nothing else.

    A subclass may show, save, log and stop. `report` hears of a stage's beginning with `done` = 0, of all stages before
    the first one begins. `check_stop` is called before each call of the denoiser: what it raises ends the work.
    """

    def __init__(self) -> None:
        self.started = time.perf_counter()

    def report(self, stage: str, done: int, total: int) -> None:
        """Hear that `done` of `total` steps of a stage are finished."""

    def check_stop(self) -> None:
        """Raise whatever is to end the work."""

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
        device = module.prompt.device
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
