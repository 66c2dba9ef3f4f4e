"""Tar shards in the layout of WebDataset: `key.jpg` and `key.txt` or `key.json` for every image, millions of them.

Nothing is unpacked, and no picture is read before its turn: an index of the shards says where each one lies.
"""

import io
import json
import re
from array import array
from collections.abc import Iterator
from dataclasses import dataclass
from glob import glob
from pathlib import Path

from ph2p.data.images import TargetError
from ph2p.data.shard_index import NOWHERE, Index, Place, read_index
from ph2p.data.targets import Target, Targets, chosen, tidy
from ph2p.errors import UserError
from ph2p.files import decode_text, expand, printable

LARGEST_MEMBER = 2**28  # bytes of a picture or text: more is no picture but a damaged header


@dataclass(eq=False)
class ShardTargets(Targets):
    """The images of tar shards, with their captions as references.

    `shards` is a path with `{000..009}`, `{a,b}`, `*` or `?` in it. An image's id is the shard's path from the
    pattern's fixed part on and the name in it: `000/cat.jpg`. A caption is the text of `key.txt`, otherwise what
    `key.json` holds under `caption_key`, a text or a list.

    A shard's index is kept beside it (`000.tar.index.json`) where the folder can be written, and made again when
    the shard has changed. Raises UserError for shards that are missing, compressed or damaged.
    """

    shards: str
    caption_key: str = "caption"

    def find(self) -> None:
        self._files, root = find_shards(self.shards)
        self._index, self._shard_of = Index(), array("q")
        for number, file in enumerate(self._files):
            found = read_index(file)
            stem = printable(file.relative_to(root).with_suffix("").as_posix())
            self._index.names += [f"{stem}/{name}" for name in found.names]
            self._index.places += found.places
            self.skipped += [(f"{stem}/{name}", reason) for name, reason in found.skipped]
            self._shard_of.extend([number] * len(found.names))
        if not self._index.names:
            raise UserError(f"data.shards={printable(self.shards)}: no pictures in these {len(self._files)} shards")
        self._chosen = chosen(self._index.names, self.count, self.seed)
        self.ids = [self._index.names[k] for k in self._chosen]

    def load(self, index: int) -> Target:
        k, name = self._chosen[index], self.ids[index]
        file = self._files[self._shard_of[k]]
        place, text, json_ = (self._index.place(k, part) for part in range(3))
        picture = self.read(io.BytesIO(_bytes(file, place, name)), name)
        references = self._captions(file, text, json_, name)
        return Target(name, printable(file), picture.image, references=references, notes=picture.notes)

    def _captions(self, file: Path, text: Place, json_: Place, name: str) -> tuple[str, ...]:
        try:
            if text != NOWHERE:
                return tidy(decode_text(_bytes(file, text, name), name).split("\n"))
            if json_ == NOWHERE:
                return ()
            found = json.loads(decode_text(_bytes(file, json_, name), name)).get(self.caption_key)
        except TargetError:
            raise
        except (UserError, ValueError, AttributeError, RecursionError) as error:
            raise TargetError(f"{name}: its caption is no UTF-8 text or JSON object: fix the shard") from error
        captions = [caption for caption in (found if isinstance(found, list) else [found]) if caption is not None]
        if not all(isinstance(caption, str) for caption in captions):
            raise TargetError(f"{name}: {self.caption_key!r} in its .json is no text: fix the shard")
        return tidy(captions)


def _bytes(file: Path, place: Place, name: str) -> bytes:
    offset, size = place
    try:
        if size > LARGEST_MEMBER:
            raise TargetError(f"{name}: {size} bytes, more than {LARGEST_MEMBER}: leave it out")
        with file.open("rb") as shard:
            shard.seek(offset)
            return shard.read(size)
    except OSError as error:
        raise TargetError(f"{printable(file)}: {error.strerror}: is the shard still there?") from error


# --- names of shards ------------------------------------------------------------------------------


def find_shards(pattern: str) -> tuple[list[Path], Path]:
    """The files of a pattern, each once, in its order; and the folder that its fixed part names."""
    pattern = str(expand(pattern))
    fixed = re.split(r"[{*?\[]", pattern, maxsplit=1)[0]
    root = Path(fixed) if fixed.endswith("/") else Path(fixed).parent
    files: list[Path] = []
    for name in expand_braces(pattern):
        found = sorted(glob(name)) if re.search(r"[*?\[]", name) else [name]
        if not found or not Path(found[0]).is_file():
            raise UserError(
                f"{printable(name)}: no such shard; data.shards names tar files, as in 'path/{{000..009}}.tar'"
            )
        files += [Path(file) for file in found]
    return list(dict.fromkeys(files)), root


def expand_braces(pattern: str) -> Iterator[str]:
    """`{000..009}` counts with as many digits, `{a,b}` lists; what is in no braces stays as it is."""
    braces = re.search(r"\{([^{}]*)\}", pattern)
    if not braces:
        yield pattern
        return
    bounds = re.fullmatch(r"(\d+)\.\.(\d+)", braces[1])
    if bounds:
        first, last = int(bounds[1]), int(bounds[2])
        words = [f"{number:0{len(bounds[1])}d}" for number in range(first, last + 1)]
        if not words:
            raise UserError(f"data.shards: {{{braces[1]}}} names nothing; give {{first..last}} with first <= last")
    else:
        words = braces[1].split(",")
    for word in words:
        yield from expand_braces(pattern[: braces.start()] + word + pattern[braces.end() :])
