"""The targets that are inverted together, images or sets of images, and what they have cost."""

from collections.abc import Sequence
from copy import copy

import torch
from torch import Tensor

from ph2p.data import PictureSet, Target
from ph2p.inversion.draws import Draws, SetKey, make_draws
from ph2p.inversion.trail import Trail
from ph2p.models.counter import Spent
from ph2p.models.generators import Generator
from ph2p.models.scorer import Scorer


class Batch:
    """An image batch with its latents, encoded once, and what it has cost: denoiser samples an image.

    A target that is a set of pictures (`ph2p.data.sets`) is an image like the others, whose latents are those of its
    pictures and negatives, and whose key says how draws are divided among them.
    """

    def __init__(self, targets: Sequence[Target], generator: Generator, scorer: Scorer) -> None:
        self.targets, self.ids = list(targets), [target.image_id for target in targets]
        self.keys = [key_of(target) for target in targets]
        self.images = torch.stack([target.image for target in targets]).to(generator.device)  # (B, 3, H, W)
        # One after another: an image's values do not depend on the others, and large ones take less memory.
        pictures = [[one.image[None].to(generator.device) for one in (*t.shown, *t.avoided)] for t in targets]
        latents = [torch.cat([generator.encode_images(one) for one in row]) for row in pictures]  # (P, C, h, w) each
        features = [torch.cat([scorer.image_features(one) for one in row]) for row in pictures]  # (P, E) each
        self.latents = _side_by_side(latents)  # (B, C, h, w); (B, P, C, h, w) where there are sets
        # A product with a mean of features is the mean cosine: to the pictures, and what is looked for: minus the
        # weighted mean cosine to the negatives.
        pairs = list(zip(targets, features, strict=True))
        self.shown_features = torch.stack([_mean(some[: len(target.shown)]) for target, some in pairs])  # (B, E)
        self.features = torch.stack([_wanted(target, some) for target, some in pairs])  # (B, E)
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
        for name in ("images", "latents", "features", "shown_features"):
            setattr(some, name, getattr(self, name)[rows])
        return some

    def rows(self, count: int) -> torch.Tensor:
        """Each image's place, `count` times in a row: (B count,) long."""
        return torch.arange(len(self.ids), device=self.latents.device).repeat_interleave(count)

    def spend(self, spent: Spent, row: int | None = None) -> None:
        """Charge samples to one image, or to all images in equal parts, whole numbers that add up to what was spent."""
        rows = range(len(self.ids)) if row is None else [row]
        for place, k in enumerate(rows):
            self.forward[k] += _part(spent.forward, place, len(rows))
            self.backward[k] += _part(spent.backward, place, len(rows))

    def draws(self, seed: int, purpose: str, count: int, timesteps: Sequence[int], negatives: bool = True) -> Draws:
        """Every image's `count` = N draws for a purpose: the same whenever they are asked for.

        Those of sets are of all their pictures, or of all but the negatives.
        """
        (first, end), keys = timesteps, self.keys
        if not negatives:
            keys = [key.shown() if isinstance(key, SetKey) else key for key in keys]
        draws = make_draws(seed, keys, (purpose,), count, (first, end), self.latents.shape[-3:])
        return draws.to(self.latents.device)


def _part(total: int, place: int, parts: int) -> int:
    """The part number `place` of a whole number that is divided as evenly as whole numbers can be."""
    return total * (place + 1) // parts - total * place // parts


def key_of(target: Target) -> str:
    """What names a target in its draws: the content of its picture, or the `SetKey` of several."""
    shown, avoided = len(target.shown), len(target.avoided)
    if not isinstance(target, PictureSet) or shown + avoided == 1:
        return target.key
    return SetKey.of(target.key, shown, avoided, target.weight)


def _side_by_side(latents: Sequence[Tensor]) -> Tensor:
    """Every target's latents (P, C, h, w) in one tensor: (B, C, h, w) of one each, or (B, P, C, h, w), zeros behind."""
    most = max(map(len, latents))
    if most == 1:
        return torch.cat(list(latents))
    return torch.stack([torch.cat([some, some.new_zeros(most - len(some), *some.shape[1:])]) for some in latents])


def _mean(features: Tensor) -> Tensor:
    """The mean (E,) of features (P, E); of one alone just that."""
    return features[0] if len(features) == 1 else features.mean(0)


def _wanted(target: Target, features: Tensor) -> Tensor:
    """The mean (E,) of the pictures' features minus the weighted mean of the negatives', which are the last."""
    count = len(target.shown)
    shown = _mean(features[:count])
    if not isinstance(target, PictureSet) or not target.avoided:
        return shown
    return shown - target.weight * _mean(features[count:])
