"""What a denoiser has really done: samples forward and backward, counted where they arise."""

from dataclasses import dataclass
from typing import Any

from torch import nn


@dataclass(frozen=True)
class Spent:
    """Denoiser samples: rows that went through forward, and those of them for a gradient."""

    forward: int = 0
    backward: int = 0

    def __sub__(self, earlier: "Spent") -> "Spent":
        return Spent(self.forward - earlier.forward, self.backward - earlier.backward)

    def __add__(self, other: "Spent") -> "Spent":
        return Spent(self.forward + other.forward, self.backward + other.backward)


class Counter:
    """Counts the rows of every call of a denoiser, whoever calls it: the loss, or the pipeline as it samples.

    A call is charged backward too where its output keeps a gradient. Take the difference of two `read()`.
    """

    def __init__(self, denoiser: nn.Module) -> None:
        self.forward = self.backward = 0
        denoiser.register_forward_hook(self._count)

    def read(self) -> Spent:
        return Spent(self.forward, self.backward)

    def _count(self, module: nn.Module, args: tuple[Any, ...], output: Any) -> None:
        prediction = output[0]  # of a tuple, and of the output objects of diffusers
        self.forward += len(prediction)
        self.backward += len(prediction) if prediction.requires_grad else 0
