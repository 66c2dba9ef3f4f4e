"""Several pictures that one prompt is to suit, as one target, and pictures that it is not to suit."""

import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

from ph2p.data.targets import Target
from ph2p.errors import UserError

WEIGHT = 0.5  # of the negatives, unless another one is given


@dataclass(frozen=True)
class PictureSet(Target):
    """One or more `pictures` that share a prompt, and `negatives` that it is not to suit, which count `weight`.

    The loss of a prompt is the mean of its losses over the pictures, minus `weight` times the mean over the negatives.
    `image` is the first picture, which stands for all where there is room for one.
    """

    pictures: tuple[Target, ...] = ()
    negatives: tuple[Target, ...] = ()
    weight: float = WEIGHT

    @cached_property
    def key(self) -> str:
        """The content of the pictures in 16 letters, whatever their order; of one picture alone its own key."""
        if len(self.pictures) == 1 and not self.negatives:
            return self.pictures[0].key
        content = [sorted(one.key for one in some) for some in (self.pictures, self.negatives)]
        return hashlib.sha256(json.dumps(content).encode()).hexdigest()[:16]

    @property
    def shown(self) -> tuple[Target, ...]:
        return tuple(sorted(self.pictures, key=lambda one: one.key))

    @property
    def avoided(self) -> tuple[Target, ...]:
        return tuple(sorted(self.negatives, key=lambda one: one.key))


def together(pictures: Sequence[Target], negatives: Sequence[Target] = (), weight: float = WEIGHT) -> PictureSet:
    """The set of some pictures, and of negatives that count `weight`, in (0, 1].

    Beyond 1 a prompt would gain more by what spoils the negatives than by what shows the pictures. Raises UserError for
    no pictures, a picture that is a negative too, and another weight.
    """
    if not pictures:
        raise UserError("pictures: give at least one")
    require_weight("weight", weight)
    both = {one.key for one in pictures} & {one.key for one in negatives}
    if both:
        name = next(one.source for one in negatives if one.key in both)
        raise UserError(f"{name}: is a negative and one of the pictures; leave it out of one of them")
    first, count = pictures[0], len(pictures)
    name = first.image_id if count == 1 else f"{first.image_id} and {count - 1} more"
    notes = tuple(f"{one.image_id}: {note}" if count > 1 else note for one in pictures for note in one.notes)
    source = ", ".join(one.source for one in pictures)
    some = tuple(pictures), tuple(negatives), weight
    return PictureSet(name, source, first.image, None, None, (), notes, *some)


def require_weight(key: str, weight: float) -> None:
    """Raise UserError for a weight of the negatives outside (0, 1]."""
    if not 0 < weight <= 1:
        raise UserError(f"{key}={weight}: give a number above 0, at most 1")
