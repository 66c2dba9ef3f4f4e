"""Which files are pictures, what a file that is none really is, and how to make it one."""

import io
from functools import cache
from pathlib import Path
from typing import BinaryIO

from PIL import Image, ImageFile

from ph2p.files import printable

# Not decoded by Pillow itself: EPS would start another program, MPEG is a film of which it reads the size alone.
FOREIGN = {"EPS", "MPEG"}
HEIC = "a HEIC picture: pip install pillow-heif, or save it as PNG or JPEG"
UNREAD = {  # by suffix: pictures that nothing here decodes
    **dict.fromkeys((".heic", ".heif", ".hif"), HEIC),
    ".avif": "an AVIF picture, which this build of Pillow cannot decode: save it as PNG or JPEG",
    ".jxl": "a JPEG XL picture: save it as PNG or JPEG",
    **dict.fromkeys((".svg", ".eps", ".ps", ".pdf", ".wmf", ".emf", ".ai"), "a drawing: save it as PNG"),
    **dict.fromkeys((".cr2", ".cr3", ".nef", ".arw", ".dng", ".raf", ".orf", ".rw2"), "a raw photo: save it as PNG"),
    **dict.fromkeys((".mp4", ".mov", ".mpg", ".mpeg", ".webm", ".avi", ".mkv"), "a film: save a frame as PNG"),
}
BEGINNINGS = {  # by content, where a file is called something else
    b"ftypavif": UNREAD[".avif"],
    b"ftypavis": UNREAD[".avif"],
    **dict.fromkeys((b"ftyphei", b"ftyphev", b"ftypmif1", b"ftypmsf1"), HEIC),
    b"ftyp": UNREAD[".mp4"],
    b"\xff\x0a": UNREAD[".jxl"],
    b"\x00\x00\x00\x0cJXL ": UNREAD[".jxl"],
    b"%!PS": UNREAD[".eps"],
    b"%PDF": UNREAD[".pdf"],
    b"<svg": UNREAD[".svg"],
    b"<!doctype html": "a web page: download the picture again",
    b"<html": "a web page: download the picture again",
    b"version https://git-lfs": "a pointer of Git LFS: fetch the picture with git lfs pull",
}


@cache
def formats() -> tuple[str, ...]:
    """The names of the formats that can be decoded here, by Pillow and, where it is installed, pillow-heif."""
    Image.init()
    try:
        from pillow_heif import register_heif_opener  # an extra
    except ImportError:
        pass
    else:
        register_heif_opener()
    return tuple(name for name, (factory, _) in Image.OPEN.items() if name not in FOREIGN and not _is_stub(factory))


def _is_stub(factory: object) -> bool:
    """Whether Pillow only recognises the format, and leaves decoding it to somebody else."""
    return isinstance(factory, type) and issubclass(factory, ImageFile.StubImageFile)


@cache
def suffixes() -> frozenset[str]:
    """The suffixes of pictures that can be read, in small letters: `.png`, `.jpg` and so on."""
    known = set(formats())
    return frozenset(suffix for suffix, name in Image.registered_extensions().items() if name in known)


def is_picture(name: str) -> bool:
    """Whether a file of this name is read as a picture."""
    return Path(name).suffix.lower() in suffixes()


def why_not(name: str) -> str:
    """Why a file of this name is passed over."""
    suffix = Path(name).suffix.lower()
    if suffix in UNREAD:
        return UNREAD[suffix]
    return f"no picture: {printable(suffix)} is no suffix of one" if suffix else "no picture: its name has no suffix"


def beginning(source: Path | BinaryIO) -> tuple[int, str | None]:
    """The size of a file in bytes, and what it is, if its first bytes show it."""
    if isinstance(source, Path):
        with source.open("rb") as file:
            return beginning(file)
    size = source.seek(0, io.SEEK_END)
    source.seek(0)
    start = source.read(512).lstrip(b"\xef\xbb\xbf \r\n\t")
    xml = start.startswith(b"<?xml") and b"<svg" in start
    for mark, what in BEGINNINGS.items():
        found = start[4:].startswith(mark) if mark.startswith(b"ftyp") else start.lower().startswith(mark.lower())
        if found:
            return size, what
    return size, UNREAD[".svg"] if xml else None
