"""What a stage of the work has cost."""

import lightning as L
import torch
from torch import Tensor

from ph2p.models.counter import Counter, Spent


class Meter(L.Callback):
    """Denoiser samples from now on, in an interrupted run too: the state says what was spent before."""

    def __init__(self, counter: Counter) -> None:
        self.counter = counter
        self.before, self.mark = Spent(), counter.read()

    def total(self) -> Spent:
        """All samples so far."""
        return self.before + (self.counter.read() - self.mark)

    def state_dict(self) -> dict[str, Tensor]:
        """For a checkpoint: the total (2)."""
        return {"spent": torch.tensor([self.total().forward, self.total().backward])}

    def load_state_dict(self, state: dict[str, Tensor]) -> None:
        """Go on from what `state_dict` gave."""
        forward, backward = state["spent"].tolist()
        self.before, self.mark = Spent(forward, backward), self.counter.read()
