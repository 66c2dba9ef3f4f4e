"""The pictures of a results page: inside it as data URIs, or beside it as small files."""

import base64
import io
import os
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import quote

from PIL import Image

from ph2p.files import write_whole

LARGEST = 100_000  # bytes; larger pictures are shown as thumbnails, or a page of a hundred would be slow to open
SIDE = 384  # pixels of a thumbnail: sharp at the size a card shows
KINDS = {"image/png", "image/jpeg", "image/webp"}
THUMBNAILS = "thumbnails"


@dataclass(frozen=True)
class Pictures:
    """Makes the addresses of a folder's pictures; `embed`: the page itself holds them.

    Otherwise they are relative to `page`, the folder in which the page lies: the pictures' own one by default.
    """

    folder: Path
    embed: bool
    page: Path | None = None

    def addresses(self, names: Iterable[object]) -> dict[str, str]:
        """The address of each picture by its name in the record; those missing or damaged are left out.

        Large ones are shrunk, a few at once, into the folder's thumbnails, which are kept as long as the picture
        is not newer. Raises OSError when a thumbnail cannot be written.
        """
        wanted = sorted({name for name in names if isinstance(name, str)})
        with ThreadPoolExecutor(len(os.sched_getaffinity(0))) as pool:
            found = zip(wanted, pool.map(self._address, wanted), strict=True)
            return {name: address for name, address in found if address}

    def lacks(self, names: Iterable[object]) -> bool:
        """Whether a thumbnail that a page shows is not there."""
        files = (inside(self.folder, name) for name in names if not self.embed)
        large = (file for file in files if file and file.is_file() and file.stat().st_size > LARGEST)
        return any(not self._place(file).exists() for file in large)

    def _place(self, file: Path) -> Path:
        root = self.folder.resolve()
        return root / THUMBNAILS / f"{file.relative_to(root)}.webp"

    def _address(self, name: str) -> str | None:
        file = inside(self.folder, name)
        if file is None:
            return None
        try:
            content, kind = _small(file)
        except Exception:  # Pillow's readers raise nearly anything on broken bytes
            return None
        if kind is None:
            file, kind = self._thumbnail(file), "image/webp"
            if file is None:
                return None
            content = file.read_bytes() if self.embed else b""
        if self.embed:
            return f"data:{kind};base64,{base64.b64encode(content).decode()}"
        return quote(Path(os.path.relpath(file, (self.page or self.folder).resolve())).as_posix())

    def _thumbnail(self, file: Path) -> Path | None:
        """The thumbnail of a picture, made where there is none or an older one; None for a damaged picture."""
        small = self._place(file)
        if small.exists() and small.stat().st_mtime_ns >= file.stat().st_mtime_ns:
            return small
        try:
            with Image.open(file) as image:
                image.load()
                content = _shrunk(image)
        except Exception:
            return None
        small.parent.mkdir(parents=True, exist_ok=True)
        write_whole(small, content)
        return small


def inside(folder: Path, name: object) -> Path | None:
    """Return the file that a record names, or None when it names none or one outside the folder."""
    if not name or not isinstance(name, str) or "\0" in name:
        return None
    file = (folder / name).resolve()
    return file if file.is_relative_to(folder.resolve()) else None


def _small(file: Path) -> tuple[bytes, str | None]:
    """The bytes and the kind of a picture that can be shown as it is; no kind for one that must be shrunk."""
    if file.stat().st_size > LARGEST:
        return b"", None
    content = file.read_bytes()
    with Image.open(io.BytesIO(content)) as image:
        image.load()
        kind = image.get_format_mimetype()
    return content, kind if kind in KINDS else None


def _shrunk(image: Image.Image) -> bytes:
    image = image.convert("RGB")
    image.thumbnail((SIDE, SIDE), reducing_gap=2.0)
    buffer = io.BytesIO()
    image.save(buffer, "WEBP", quality=82, method=0)
    return buffer.getvalue()
