"""Several starts of one image: the weaker half is dropped halfway, and how far their prompts agree in the end."""

from collections.abc import Callable, Sequence
from itertools import combinations

import lightning as L
import torch
from torch import Tensor

from ph2p.inversion.module import PromptInversion
from ph2p.inversion.objectives import finite_or_infinite
from ph2p.inversion.projection import DelayedProjection


class Halving(L.Callback):
    """At the end of epoch number `after` only the `kept` best of every image's R `starts` go on.

    Successive halving (arXiv 1502.07943) with one step: best is the lowest loss by the judge of `projection`, which all
    starts of an image share. The others keep the best prompts that they have visited, and cost nothing more.
    Must stand after `projection` in the trainer's list of callbacks.
    """

    def __init__(self, projection: DelayedProjection, starts: int, kept: int, after: int) -> None:
        self.projection, self.starts, self.kept, self.after = projection, starts, kept, after

    def on_train_epoch_end(self, trainer: L.Trainer, module: PromptInversion) -> None:
        if self.projection.judge and trainer.current_epoch + 1 == self.after:
            losses = self.projection.best["losses"].view(-1, self.starts)  # (B, R)
            module.alive = strongest(losses, self.kept).flatten().to(module.device)


def strongest(losses: Tensor, kept: int) -> Tensor:
    """Which of each image's starts, with losses (B, R), are the `kept` best: (B, R) bool; of equals the first ones."""
    order = finite_or_infinite(losses).argsort(dim=1, stable=True)
    return torch.zeros_like(losses, dtype=torch.bool).scatter(1, order[:, :kept], True)


def finishers(alive: Tensor, starts: int) -> Tensor:
    """Of rows (B R,) of which some are `alive` the first such row of each image: (B,) long, on the CPU."""
    first = alive.view(-1, starts).int().argmax(1).cpu()
    return torch.arange(len(first)) * starts + first


def agreements(prompts: Tensor, decode: Callable[[Tensor], str], starts: int) -> list[float | None]:
    """The agreement of each image's prompts (B R, M)."""
    texts = [decode(prompt) for prompt in prompts]
    return [agreement(texts[row : row + starts]) for row in range(0, len(texts), starts)]


def agreement(prompts: Sequence[str]) -> float | None:
    """How far prompts use the same words, in [0, 1]: of each two the part of all their words that both use, the mean.

    Jaccard's index of the sets of words, in any order and case; None of a single prompt.
    """
    sets = [set(prompt.casefold().split()) for prompt in prompts]
    found = [len(a & b) / max(1, len(a | b)) for a, b in combinations(sets, 2)]
    return sum(found) / len(found) if found else None
