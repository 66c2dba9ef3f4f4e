"""The units of a prompt's coordinates: in them lengths and rates mean the same on models of any scale."""

from typing import NamedTuple

import torch
from torch import Tensor

from ph2p.models.vocabulary import Vocabulary

LEAST = 1e-6  # of a number's deviation, as a part of their root mean square: a number that never varies has none


class Units(NamedTuple):
    """The coordinates X (..., D) of prompt embeddings P = origin + scale * X, number by number."""

    origin: Tensor  # (D,)
    scale: Tensor  # (D,), above 0

    def prompt(self, coordinates: Tensor) -> Tensor:
        """The prompt embeddings (..., D) of coordinates."""
        return self.origin + self.scale * coordinates

    def coordinates(self, prompt: Tensor) -> Tensor:
        """The coordinates (..., D) of prompt embeddings."""
        return (prompt - self.origin) / self.scale


def units_of(name: str, vocabulary: Vocabulary) -> Units:
    """The units that `method.units` names.

    deviation: the mean and the standard deviation of the allowed tokens' embeddings. A model whose embeddings are
    a hundred times as large, and which reads them so, is optimised by the same steps.
    embedding: X is P itself, as in others' code, whose rates are of the model that it was written for.
    """
    table = vocabulary.embeddings[vocabulary.allowed_ids]  # (A, D)
    if name == "embedding":
        return Units(torch.zeros_like(table[0]), torch.ones_like(table[0]))
    deviation = vocabulary.deviation()
    least = LEAST * deviation.square().mean().sqrt()
    scale = deviation.clamp(min=least) if least > 0 else torch.ones_like(deviation)  # one token alone has no spread
    return Units(table.mean(0), scale)
