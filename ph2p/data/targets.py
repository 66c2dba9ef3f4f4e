"""Sets of target images: what they have in common, whatever they are read from."""

import hashlib
import re
from abc import ABC, abstractmethod
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

from torch import Tensor

from ph2p.errors import UserError


@dataclass(frozen=True)
class Target:
    """One image to invert, with its ground truth where there is any.

    `image` is (3, H, W) float32 in [0, 1]. `caption` is a true caption, one that names everything there is to see,
    and `words` holds one set of accepted synonyms for each attribute; `references` are what people wrote about
    the picture, each of which leaves something out.
    """

    image_id: str
    source: str
    image: Tensor
    caption: str | None = None
    words: tuple[frozenset[str], ...] | None = None
    references: tuple[str, ...] = ()

    @cached_property
    def key(self) -> str:
        """The picture's content in 16 letters: the same for the same picture, whatever its name or place."""
        pixels = self.image.detach().cpu().float().contiguous().numpy()
        return hashlib.sha256(f"{pixels.shape}".encode() + pixels.tobytes()).hexdigest()[:16]


class Targets(ABC):
    """A list of images of which nothing is read before `load`, so that one bad file spoils nothing else."""

    ids: list[str]

    def __len__(self) -> int:
        return len(self.ids)

    @abstractmethod
    def load(self, index: int) -> Target:
        """Read image number `index`; raises TargetError when it cannot be used."""


def chosen(ids: Sequence[str], count: int | None, seed: int) -> list[int]:
    """The places of `count` of the ids, a random sample in the order of the ids; all of them for None.

    An id is in by its own hash with the seed: the sample is the same on every machine, and a larger one holds
    every smaller one, so that raising the count continues a run. Raises UserError for a bad count or seed.
    """
    if seed < 0:
        raise UserError(f"data.seed={seed}: a seed is 0 or greater")
    if count is None:
        return list(range(len(ids)))
    if not 1 <= count <= len(ids):
        raise UserError(f"data.count={count}: give 1 to {len(ids)}, the number of images there are, or null for all")
    ranks = [hashlib.sha256(f"{seed} {name}".encode("utf-8", "surrogatepass")).digest() for name in ids]
    return sorted(sorted(range(len(ids)), key=ranks.__getitem__)[:count])


def tidy(captions: Iterable[str]) -> tuple[str, ...]:
    """Captions without empty and repeated ones, their white space made single spaces."""
    return tuple(dict.fromkeys(text for caption in captions if (text := " ".join(caption.split()))))


def slug(image_id: str) -> str:
    """Name the image's folder of results: its readable stem, and a hash that keeps different images apart."""
    stem = re.sub(r"[^a-z0-9]+", "-", Path(image_id).stem.lower()).strip("-")[:40]
    digest = hashlib.sha256(image_id.encode("utf-8", "surrogatepass")).hexdigest()
    return f"{stem or 'image'}-{digest[:10]}"
