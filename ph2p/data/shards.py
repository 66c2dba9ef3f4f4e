"""Tar shards in the layout of WebDataset: `key.jpg` and `key.txt` or `key.json` for every image, millions of them.

Nothing is unpacked, and no picture is read before its turn: an index of the shards says where each one lies.
"""

import io
import json
import os
import re
import tarfile
import tempfile
from array import array
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass, field
from glob import glob
from pathlib import Path

from ph2p.data.images import SUFFIXES, TargetError, printable, read_image
from ph2p.data.targets import Target, Targets, chosen, tidy
from ph2p.errors import UserError

LARGEST_MEMBER = 2**28  # bytes of a picture or text: more is no picture but a damaged header
COMPRESSED = {b"\x1f\x8b": "gzip -d", b"BZ": "bzip2 -d", b"\xfd7": "xz -d", b"(\xb5": "zstd -d"}
INDEX_SUFFIX, INDEX_VERSION = ".index.json", 1

Place = tuple[int, int]  # offset and size of a member's bytes
NOWHERE: Place = (0, 0)  # of a member that there is not


@dataclass
class Index:
    """The images of one or more shards: names, and 6 numbers each: the places of picture, .txt and .json."""

    names: list[str] = field(default_factory=list)
    places: array = field(default_factory=lambda: array("q"))

    def place(self, image: int, part: int) -> Place:
        """Where part 0, 1 or 2 of an image lies."""
        offset, size = self.places[6 * image + 2 * part : 6 * image + 2 * part + 2]
        return offset, size


class ShardTargets(Targets):
    """The images of tar shards, with their captions as references.

    `shards` is a path with `{000..009}`, `{a,b}`, `*` or `?` in it. An image's id is the shard's path from the
    pattern's fixed part on and the name in it: `000/cat.jpg`. A caption is the text of `key.txt`, or else what
    `key.json` holds under `caption_key`, a text or a list.

    A shard's index is kept beside it (`000.tar.index.json`) where the folder can be written, and made anew when
    the shard has changed. Raises UserError for shards that are missing, compressed or damaged.
    """

    def __init__(
        self,
        shards: str,
        image_size: int,
        caption_key: str = "caption",
        count: int | None = None,
        seed: int = 0,
    ) -> None:
        self.image_size, self.caption_key = image_size, caption_key
        self.files, root = find_shards(shards)
        self.index, self.shard_of = Index(), array("q")
        for number, file in enumerate(self.files):
            found = read_index(file)
            stem = printable(file.relative_to(root).with_suffix("").as_posix())
            self.index.names += [f"{stem}/{name}" for name in found.names]
            self.index.places += found.places
            self.shard_of.extend([number] * len(found.names))
        if not self.index.names:
            raise UserError(f"data.shards={printable(shards)}: no pictures in these {len(self.files)} shards")
        self.chosen = chosen(self.index.names, count, seed)
        self.ids = [self.index.names[k] for k in self.chosen]

    def load(self, index: int) -> Target:
        k, name = self.chosen[index], self.ids[index]
        file = self.files[self.shard_of[k]]
        picture, text, json_ = (self.index.place(k, part) for part in range(3))
        image = read_image(io.BytesIO(_bytes(file, picture, name)), name, self.image_size)
        return Target(name, printable(file), image, references=self._captions(file, text, json_, name))

    def _captions(self, file: Path, text: Place, json_: Place, name: str) -> tuple[str, ...]:
        try:
            if text != NOWHERE:
                return tidy(_bytes(file, text, name).decode("utf-8-sig").splitlines())
            found = json.loads(_bytes(file, json_, name)).get(self.caption_key) if json_ != NOWHERE else None
        except (ValueError, AttributeError) as error:
            raise TargetError(f"{name}: its caption is no UTF-8 text or JSON object: mend the shard") from error
        return tidy(caption for caption in (found if isinstance(found, list) else [found]) if isinstance(caption, str))


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
    fixed = re.split(r"[{*?\[]", pattern, maxsplit=1)[0]
    root = Path(fixed).expanduser() if fixed.endswith("/") else Path(fixed).expanduser().parent
    files: list[Path] = []
    for name in expand_braces(str(Path(pattern).expanduser())):
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


# --- index ----------------------------------------------------------------------------------------


def read_index(shard: Path) -> Index:
    """The images of a shard in their order: from the index beside it, or by going through its headers."""
    state = shard.stat()
    stamp = [INDEX_VERSION, state.st_size, state.st_mtime_ns]
    cache = shard.with_name(shard.name + INDEX_SUFFIX)
    with suppress(OSError, ValueError, TypeError, KeyError):
        content = json.loads(cache.read_text(encoding="utf-8"))
        if content["stamp"] == stamp:
            return Index(content["names"], array("q", content["places"]))
    index = _scan(shard)
    with suppress(OSError):  # a folder that cannot be written: without a kept index it goes as well
        _write_whole(cache, json.dumps({"stamp": stamp, "names": index.names, "places": index.places.tolist()}))
    return index


def _write_whole(path: Path, text: str) -> None:
    """Write a file whole or not at all, also when several ranks do it at once."""
    with tempfile.NamedTemporaryFile(
        "w", encoding="utf-8", dir=path.parent, prefix=f".{path.name}.", delete=False
    ) as file:
        file.write(text)
    try:
        Path(file.name).replace(path)
    except OSError:
        os.unlink(file.name)
        raise


def _scan(shard: Path) -> Index:
    """Go through a shard's headers; members are joined by their name up to the first dot of its last part."""
    found: dict[str, dict[str, Place]] = {}
    try:
        with tarfile.open(shard, "r:") as tar:
            while header := tar.next():
                folder, _, file = header.name.removeprefix("./").rpartition("/")
                stem, dot, suffix = file.partition(".")
                if header.isreg() and not header.issparse() and stem and dot:
                    parts = found.setdefault(f"{folder}/{stem}" if folder else stem, {})
                    parts["." + suffix.lower()] = (header.offset_data, header.size)
                tar.members = []  # type: ignore[attr-defined]  # it keeps every header that it has seen
            end = tar.offset
        with shard.open("rb") as file_:
            file_.seek(end)
            if file_.read(tarfile.BLOCKSIZE).strip(b"\0"):  # tarfile takes a damaged header for the end
                raise tarfile.ReadError(f"no header at byte {end}")
    except (tarfile.TarError, OSError, ValueError, EOFError) as error:
        raise UserError(f"{printable(shard)}: {_complaint(shard, error)}") from error
    return _images(found)


def _images(found: dict[str, dict[str, Place]]) -> Index:
    index = Index()
    for key, parts in found.items():
        suffix = next((suffix for suffix in parts if suffix in SUFFIXES), None)
        if suffix:
            index.names.append(printable(key + suffix))
            texts = (parts.get(kind, NOWHERE) for kind in (".txt", ".json"))
            index.places.extend(number for place in (parts[suffix], *texts) for number in place)
    return index


def _complaint(shard: Path, error: Exception) -> str:
    if isinstance(error, OSError):
        return f"{error.strerror}: make the shard readable"
    with shard.open("rb") as file:
        tool = COMPRESSED.get(file.read(2))
    if tool:
        return f"is compressed, so pictures cannot be picked out of it: unpack it with {tool}"
    return f"is damaged, cut off or no tar file ({printable(error)}): copy it again or leave it out of data.shards"
