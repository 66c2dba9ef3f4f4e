"""The images that are inverted together, and what they have cost."""

import time
from collections.abc import Sequence
from copy import copy

import torch

from ph2p.data import Target
from ph2p.inversion.draws import Draws, make_draws
from ph2p.models.generators import Generator
from ph2p.models.scorer import Scorer
from ph2p.run.checkpoint import BatchCheckpoint


class Batch:
    """An image batch with its latents, encoded once, and what it has cost: samples an image, and time."""

    def __init__(
        self,
        targets: Sequence[Target],
        generator: Generator,
        scorer: Scorer,
        checkpoint: BatchCheckpoint | None = None,
    ) -> None:
        self.targets, self.ids = list(targets), [t.image_id for t in targets]
        self.images = torch.stack([t.image for t in targets]).to(generator.device)  # (B, 3, H, W)
        self.latents = generator.encode_images(self.images)  # (B, C, h, w)
        self.features = scorer.image_features(self.images)  # (B, E)
        self.forward, self.backward = [0] * len(targets), [0] * len(targets)
        self.search_curves: list[list[float]] = [[] for _ in targets]
        self.checkpoint = checkpoint
        self.started = time.perf_counter() - (checkpoint.about["seconds"] if checkpoint else 0)

    def seconds(self) -> float:
        """What the batch has taken, in an interrupted run too."""
        return time.perf_counter() - self.started

    def only(self, rows: list[int]) -> "Batch":
        """The same batch with fewer images, after some have failed."""
        some = copy(self)
        for name in ("targets", "ids", "forward", "backward", "search_curves"):
            setattr(some, name, [getattr(self, name)[row] for row in rows])
        some.images, some.latents, some.features = self.images[rows], self.latents[rows], self.features[rows]
        return some

    def spend(self, forward: int, backward: int = 0) -> None:
        """Count samples that every image has cost."""
        self.forward = [spent + forward for spent in self.forward]
        self.backward = [spent + backward for spent in self.backward]

    def draws(self, seed: int, purpose: str, count: int, timesteps: Sequence[int]) -> Draws:
        """Every image's `count` = N draws for a purpose: the same whenever they are asked for."""
        draws = make_draws(seed, self.ids, (purpose,), count, tuple(timesteps), self.latents.shape[1:])
        return draws.to(self.latents.device)
