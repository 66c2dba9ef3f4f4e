"""Where the pictures and captions of a tar shard lie: found by going through its headers once, kept beside it."""

import json
import posixpath
import tarfile
from array import array
from collections import Counter
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path

from ph2p.data.formats import UNREAD, is_picture, why_not
from ph2p.errors import UserError
from ph2p.files import printable, write_whole

COMPRESSED = {b"\x1f\x8b": "gzip -d", b"BZ": "bzip2 -d", b"\xfd7": "xz -d", b"(\xb5": "zstd -d"}
INDEX_SUFFIX, INDEX_VERSION = ".index.json", 3
TEXTS = (".txt", ".json")

Place = tuple[int, int]  # offset and size of a member's bytes
NOWHERE: Place = (0, 0)  # of a member that there is not


@dataclass
class Index:
    """The images of one or more shards: names, and 6 numbers each: the places of picture, .txt and .json."""

    names: list[str] = field(default_factory=list)
    places: array = field(default_factory=lambda: array("q"))
    skipped: list[tuple[str, str]] = field(default_factory=list)  # members that were passed over, and why

    def place(self, image: int, part: int) -> Place:
        """Where part 0, 1 or 2 of an image lies."""
        offset, size = self.places[6 * image + 2 * part : 6 * image + 2 * part + 2]
        return offset, size


def read_index(shard: Path) -> Index:
    """The images of a shard in their order: from the index beside it, or by going through its headers."""
    state = shard.stat()
    stamp = [INDEX_VERSION, state.st_size, state.st_mtime_ns]
    cache = shard.with_name(shard.name + INDEX_SUFFIX)
    with suppress(OSError, ValueError, TypeError, KeyError):
        content = json.loads(cache.read_text(encoding="utf-8"))
        if content["stamp"] == stamp:
            skipped = [(name, reason) for name, reason in content["skipped"]]
            return Index(content["names"], array("q", content["places"]), skipped)
    index = _images(*_scan(shard))
    content = {"stamp": stamp, "names": index.names, "places": index.places.tolist(), "skipped": index.skipped}
    with suppress(OSError):  # a folder that cannot be written: without a kept index it goes as well
        write_whole(cache, json.dumps(content).encode())
    return index


def _scan(shard: Path) -> tuple[dict[str, Place], list[tuple[str, str]]]:
    """Go through a shard's headers: the place of each file, in the order of their names' first occurrence."""
    places: dict[str, Place] = {}
    links: dict[str, str] = {}
    skipped: list[tuple[str, str]] = []
    try:
        with tarfile.open(shard, "r:") as tar:
            while header := tar.next():
                name = _plain(header.name)
                if header.islnk() or header.issym():
                    links[name] = _target(header)
                    places.setdefault(name, NOWHERE)
                elif header.isreg() and not header.issparse():
                    places[name] = (header.offset_data, header.size)
                    links.pop(name, None)
                elif not header.isdir():
                    skipped.append((printable(name), "no plain file but a sparse one, a device or a pipe"))
                tar.members = []  # type: ignore[attr-defined]  # it keeps every header that it has seen
            end = tar.offset
        with shard.open("rb") as file:
            file.seek(end)
            if file.read(tarfile.BLOCKSIZE).strip(b"\0"):  # tarfile takes a damaged header for the end
                raise tarfile.ReadError(f"no header at byte {end}")
    except (tarfile.TarError, OSError, ValueError, EOFError) as error:
        raise UserError(f"{printable(shard)}: {_complaint(shard, error)}") from error
    return places, skipped + _resolve(places, links)


def _plain(name: str) -> str:
    return name.removeprefix("./")


def _target(header: tarfile.TarInfo) -> str:
    """The member that a link names: hard links count from the shard's root, soft ones from their own folder."""
    if header.islnk():
        return _plain(header.linkname)
    return posixpath.normpath(posixpath.join(posixpath.dirname(_plain(header.name)), header.linkname))


def _resolve(places: dict[str, Place], links: dict[str, str]) -> list[tuple[str, str]]:
    """Give links the places of what they name, in place; returns those that name nothing of this shard."""
    lost = []
    for name, target in links.items():
        for _ in range(len(links)):  # a link may name a link, or go in circles
            target = links.get(target, target)
            if target not in links:
                break
        places[name] = places.get(target, NOWHERE)
        if places[name] == NOWHERE:
            del places[name]
            lost.append((printable(name), f"a link to {printable(target)}, which is no file of this shard"))
    return lost


def _images(places: dict[str, Place], skipped: list[tuple[str, str]]) -> Index:
    """Join pictures with their texts: all that is before the last dot is the same, or WebDataset's key, if it has one
    picture alone."""
    index, keys = Index(skipped=skipped), set()
    pictures = {name for name in places if is_picture(name) and not _hidden(name)}
    plain = {posixpath.splitext(name)[0] for name in pictures}
    lower = {f"{stem}{suffix.lower()}": name for name in places for stem, suffix in [posixpath.splitext(name)]}
    alone = {first for first, times in Counter(map(_first, pictures)).items() if times == 1}
    for name in places:
        stem = posixpath.splitext(name)[0]
        if name not in pictures:
            continue
        if (first := _first(name)) != stem and first in plain:
            index.skipped.append((printable(name), f"a further part of {printable(first)}, as WebDataset names them"))
            continue
        keys.add(_first(name))
        index.names.append(printable(name))
        stems = [stem] if any(stem + kind in lower for kind in TEXTS) or first not in alone else [first]
        texts = (places.get(lower.get(stems[0] + kind, ""), NOWHERE) for kind in TEXTS)
        index.places.extend(number for place in (places[name], *texts) for number in place)
    several = [lower[first + kind] for first in keys - alone - plain for kind in TEXTS if first + kind in lower]
    index.skipped += [(printable(name), "a text of several pictures: name it like one") for name in sorted(several)]
    keys |= plain
    index.skipped += [(printable(name), reason) for name in places if (reason := _unread(name, pictures, keys))]
    return index


def _first(name: str) -> str:
    """A member's name up to the first dot of its last part: WebDataset's key."""
    folder, _, file = name.rpartition("/")
    return f"{folder}/{file.partition('.')[0]}" if folder else file.partition(".")[0]


def _hidden(name: str) -> bool:
    return any(part.startswith(".") and part != ".." for part in name.split("/"))


def _unread(name: str, pictures: set[str], keys: set[str]) -> str | None:
    """Why a member is passed over; None for pictures and for the texts and numbers that go with one."""
    if name in pictures:
        return None
    if _hidden(name):
        return "hidden: its name begins with a dot"
    suffix = posixpath.splitext(name)[1].lower()
    if suffix in UNREAD:
        return why_not(name)
    if _first(name) in keys or posixpath.splitext(name)[0] in keys:
        return None
    return "no picture of this name" if suffix in TEXTS else why_not(name)


def _complaint(shard: Path, error: Exception) -> str:
    if isinstance(error, OSError):
        return f"{error.strerror}: make the shard readable"
    with shard.open("rb") as file:
        tool = COMPRESSED.get(file.read(2))
    if tool:
        return f"is compressed, so pictures cannot be picked out of it: unpack it with {tool}"
    return f"is damaged, cut off or no tar file ({printable(error)}): copy it again or leave it out of data.shards"
