"""Sets of target images: what they have in common, whatever they are read from."""

from __future__ import annotations

import hashlib
import re
from abc import ABC, abstractmethod
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field, fields
from functools import cached_property
from pathlib import Path, PurePath
from typing import TYPE_CHECKING, Any, BinaryIO, get_type_hints

from ph2p.data.images import FITS, Picture, Size, as_size, read_image
from ph2p.errors import UserError
from ph2p.files import printable

if TYPE_CHECKING:  # torch is loaded when the first picture is read
    from torch import Tensor


@dataclass(frozen=True)
class Target:
    """One image to invert, with its ground truth where there is any.

    `image` is (3, H, W) float32 in [0, 1], what the model sees. `caption` is a true caption, one that names
    everything there is to see, and `words` holds one set of accepted synonyms for each attribute; `references` are
    what people wrote about the picture, each of which leaves something out. `notes` say what had to be assumed.
    """

    image_id: str
    source: str
    image: Tensor
    caption: str | None = None
    words: tuple[frozenset[str], ...] | None = None
    references: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()

    @cached_property
    def key(self) -> str:
        """The picture's content in 16 letters: the same for the same picture, whatever its name or place."""
        pixels = self.image.detach().cpu().float().contiguous().numpy()
        return hashlib.sha256(f"{pixels.shape}".encode() + pixels.tobytes()).hexdigest()[:16]

    @property
    def shown(self) -> tuple[Target, ...]:
        """The pictures that the prompt is to show, in an order of their content: this one, or those of a set."""
        return (self,)

    @property
    def avoided(self) -> tuple[Target, ...]:
        """The pictures that the prompt is not to suit: none, or the negatives of a set."""
        return ()


@dataclass(kw_only=True, eq=False)
class Targets(ABC):
    """A list of images of which nothing is read before `load`, so that one bad file spoils nothing else.

    The fields are the keys of a data set's YAML file. Making one checks them and lists the images; the model's
    `image_size` is needed for `load` alone, and may be assigned later. `ids` names the images; `skipped` says which
    files were passed over, and why. Raises UserError that names the key, such as `data.path`, for what is wrong.
    """

    name: str = "data"  # the label of results
    image_size: Size | None = None  # (height, width) that the model sees; one number for a square
    fit: str = "crop"  # crop: the middle part of that shape; pad: all of it on white; resize: stretched
    count: int | None = None  # images, a sample; null: all
    seed: int = 0  # of the sample, 0 or greater
    ids: list[str] = field(init=False, repr=False, default_factory=list)
    skipped: list[tuple[str, str]] = field(init=False, repr=False, default_factory=list)

    def __post_init__(self) -> None:
        _check_types(self)
        if self.fit not in FITS:
            raise UserError(f"data.fit={printable(self.fit)}: choose one of {', '.join(FITS)}")
        if self.seed < 0:
            raise UserError(f"data.seed={self.seed}: a seed is 0 or greater")
        if self.count is not None and self.count < 1:
            raise UserError(f"data.count={self.count}: give at least 1, or null for all")
        self.find()
        self.ids = _apart(self.ids)

    def __len__(self) -> int:
        return len(self.ids)

    @abstractmethod
    def find(self) -> None:
        """Check what is particular to the kind, and list the images in `ids`; no picture is read."""

    @abstractmethod
    def load(self, index: int) -> Target:
        """Read image number `index`; raises TargetError when it cannot be used."""

    @property
    def size(self) -> tuple[int, int]:
        """`image_size` as (height, width), once it is known."""
        if self.image_size is None:
            raise ValueError("image_size is not known yet: assign the model's")
        return as_size(self.image_size)

    def read(self, source: Path | BinaryIO, name: str) -> Picture:
        """Read a picture at the size and fit that are wanted; raises TargetError that calls it by its name."""
        return read_image(source, name, self.size, self.fit)


def _apart(ids: list[str]) -> list[str]:
    """Ids of which no two are the same, as they may be where odd letters of names are written as escapes."""
    times = Counter(ids)
    if len(times) == len(ids):
        return ids
    seen: Counter[str] = Counter()
    apart = []
    for name in ids:
        seen[name] += 1
        apart.append(f"{name} ({seen[name]} of {times[name]})" if times[name] > 1 else name)
    return apart


def _check_types(targets: Targets) -> None:
    """Refuse values of another type and empty texts; a number where text is wanted is taken as text."""
    hints = get_type_hints(type(targets))
    for one in fields(targets):
        if one.init and one.name != "image_size":
            value = getattr(targets, one.name)
            setattr(targets, one.name, _checked(one.name, value, hints[one.name]))


def _checked(key: str, value: Any, wanted: Any) -> Any:
    if wanted is str:
        if isinstance(value, PurePath) or (isinstance(value, int) and not isinstance(value, bool)):
            value = str(value)
        if not isinstance(value, str):
            raise UserError(f"data.{key}={printable(value)}: give a text, quoted as in data.{key}=\"'{value}'\"")
        if not value.strip():
            raise UserError(f"data.{key} is empty: give a value (is a shell variable not set?)")
    elif not isinstance(value, wanted) or isinstance(value, bool):
        what = "a whole number" if wanted is int else "a whole number or null"
        raise UserError(f"data.{key}={printable(value)}: give {what}")
    return value


def chosen(ids: Sequence[str], count: int | None, seed: int) -> list[int]:
    """The places of `count` of the ids, a random sample in the order of the ids; all of them for None.

    An id is in by its own hash with the seed: the sample is the same on every machine, and a larger one holds
    every smaller one, so that raising the count continues a run. Raises UserError for more than there are.
    """
    if count is None:
        return list(range(len(ids)))
    if count > len(ids):
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
