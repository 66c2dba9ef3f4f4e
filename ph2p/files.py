"""Files that are written whole, and what a disk refuses in one line."""

import errno
import json
import math
import os
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from ph2p.errors import UserError

MARKS = {b"\xef\xbb\xbf": "utf-8-sig", b"\xff\xfe": "utf-16", b"\xfe\xff": "utf-16"}  # bytes that begin a file


def read_text(path: str | Path) -> str:
    """The text of a file in UTF-8 or, if it begins with a byte-order mark, UTF-16; lines end with `\\n`.

    Raises UserError, one line that names the file.
    """
    try:
        content = Path(path).expanduser().read_bytes()
    except OSError as error:
        raise UserError(f"{path}: {error.strerror or error}; give a text file that can be read") from error
    encoding = next((encoding for mark, encoding in MARKS.items() if content.startswith(mark)), "utf-8")
    try:
        text = content.decode(encoding)
    except UnicodeDecodeError as error:
        raise UserError(f"{path}: not UTF-8 text ({error.reason} at byte {error.start}); save it as UTF-8") from error
    return text.replace("\r\n", "\n").replace("\r", "\n")


def as_json(content: dict[str, Any], indent: int | None = None) -> bytes:
    """JSON in UTF-8, in which numbers that are not finite are null: JSON has no others."""
    return json.dumps(_finite(content), ensure_ascii=False, indent=indent, allow_nan=False).encode()


def _finite(node: Any) -> Any:
    if isinstance(node, dict):
        return {key: _finite(value) for key, value in node.items()}
    if isinstance(node, list | tuple):
        return [_finite(value) for value in node]
    return None if isinstance(node, float) and not math.isfinite(node) else node


def write_whole(path: Path, content: bytes) -> None:
    """Write a file whole or not at all, whenever the process or the machine stops.

    Raises OSError.
    """
    partial = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        with partial.open("wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        partial.replace(path)
    except OSError:
        with suppress(OSError):
            partial.unlink(missing_ok=True)
        raise
    folder = os.open(path.parent, os.O_RDONLY)
    try:
        os.fsync(folder)  # or the name may be lost with the power
    finally:
        os.close(folder)


@contextmanager
def plain_disk_errors(folder: Path) -> Iterator[None]:
    """Turn what a disk refuses into one line that says what to do."""
    try:
        yield
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            raise UserError(
                f"{folder}: no space left; free some and give the same command again, it continues"
            ) from error
        reason = error.strerror or error
        raise UserError(f"{folder}: cannot be written ({reason}); choose another output=...") from error
