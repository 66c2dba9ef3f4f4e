"""The images that are inverted together, and what they have cost."""

from collections.abc import Sequence
from copy import copy

import torch

from ph2p.data import Target
from ph2p.inversion.draws import Draws, make_draws
from ph2p.inversion.trail import Trail
from ph2p.models.counter import Spent
from ph2p.models.generators import Generator
from ph2p.models.scorer import Scorer


class Batch:
    """An image batch with its latents, encoded once, and what it has cost: denoiser samples an image."""

    def __init__(self, targets: Sequence[Target], generator: Generator, scorer: Scorer) -> None:
        self.targets, self.ids = list(targets), [target.image_id for target in targets]
        self.keys = [target.key for target in targets]
        self.images = torch.stack([target.image for target in targets]).to(generator.device)  # (B, 3, H, W)
        # One after another: an image's values do not depend on the others, and large ones take less memory.
        self.latents = torch.cat([generator.encode_images(image) for image in self.images.split(1)])  # (B, C, h, w)
        self.features = torch.cat([scorer.image_features(image) for image in self.images.split(1)])  # (B, E)
        self.forward, self.backward = [0] * len(targets), [0] * len(targets)
        self.search_curves: list[list[float]] = [[] for _ in targets]
        self.trails = [Trail() for _ in targets]
        self.agreements: list[float | None] = [None] * len(targets)  # of each image's starts; None: of one alone
        self.cut_short = ""  # why optimisation or search ended before their plan

    def only(self, rows: list[int]) -> "Batch":
        """The same batch with fewer images, after some have failed."""
        some = copy(self)
        for name in ("targets", "ids", "keys", "forward", "backward", "search_curves", "trails", "agreements"):
            setattr(some, name, [getattr(self, name)[row] for row in rows])
        some.images, some.latents, some.features = self.images[rows], self.latents[rows], self.features[rows]
        return some

    def rows(self, count: int) -> torch.Tensor:
        """Each image's place, `count` times in a row: (B count,) long."""
        return torch.arange(len(self.ids), device=self.latents.device).repeat_interleave(count)

    def spend(self, spent: Spent, row: int | None = None) -> None:
        """Charge samples to one image, or to all images in equal parts."""
        rows = range(len(self.ids)) if row is None else [row]
        for k in rows:
            self.forward[k] += round(spent.forward / len(rows))
            self.backward[k] += round(spent.backward / len(rows))

    def draws(self, seed: int, purpose: str, count: int, timesteps: Sequence[int]) -> Draws:
        """Every image's `count` = N draws for a purpose: the same whenever they are asked for."""
        first, end = timesteps
        draws = make_draws(seed, self.keys, (purpose,), count, (first, end), self.latents.shape[1:])
        return draws.to(self.latents.device)
