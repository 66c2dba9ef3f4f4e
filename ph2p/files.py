"""Paths as a shell user writes them, text files of every encoding, files that are written whole, full disks."""

import codecs
import csv
import errno
import io
import json
import math
import os
import re
import secrets
import socket
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from ph2p.errors import UserError

MARKS = {  # UTF-32 first: its little-endian mark begins with that of UTF-16
    codecs.BOM_UTF32_LE: "utf-32",
    codecs.BOM_UTF32_BE: "utf-32",
    codecs.BOM_UTF8: "utf-8-sig",
    codecs.BOM_UTF16_LE: "utf-16",
    codecs.BOM_UTF16_BE: "utf-16",
}


FORMULA = ("=", "+", "-", "@", "\t", "\r", "\n", "\uff1d", "\uff0b", "\uff0d", "\uff20")  # full-width ones too


# --- names and paths ------------------------------------------------------------------------------


def printable(text: object) -> str:
    """Write control characters and undecodable bytes of a name as escapes: one line, valid Unicode."""
    return re.sub(
        r"[\x00-\x1f\x7f-\x9f\u2028\u2029\ud800-\udfff]",
        lambda found: found.group().encode("unicode_escape").decode(),
        str(text),
    )


def expand(path: str | Path) -> Path:
    """A path with `~` and `$VAR` replaced as a shell does it; a file that is really called so is taken as it stands.

    A variable that is not set stays as it is written, so that the message about the missing file shows it.
    """
    if os.path.lexists(path):
        return Path(path)
    return Path(os.path.expanduser(os.path.expandvars(path)))


def label(path: str | Path) -> str:
    """A short name for what lies at a path, fit for the name of a folder: `My cats` of `~/My cats/` is `My-cats`."""
    name = expand(path).absolute().name if str(path) else ""
    return re.sub(r"[^\w]+", "-", name).strip("-")[:40] or "pictures"


# --- text -----------------------------------------------------------------------------------------


def read_text(path: str | Path) -> str:
    """The text of a file in UTF-8 or, if it begins with a byte-order mark, UTF-16 or UTF-32; lines end with `\\n`.

    `~` and `$VAR` in the path are expanded. Raises UserError, one line that names the file.
    """
    try:
        content = expand(path).read_bytes()
    except OSError as error:
        raise UserError(f"{printable(path)}: {error.strerror or error}; give a text file that can be read") from error
    return decode_text(content, printable(path))


def decode_text(content: bytes, name: str) -> str:
    """`read_text` of bytes that are read already; errors call them by `name`."""
    encoding = next((encoding for mark, encoding in MARKS.items() if content.startswith(mark)), "utf-8")
    try:
        text = content.decode(encoding)
    except UnicodeDecodeError as error:
        raise UserError(f"{name}: not UTF-8 text ({error.reason} at byte {error.start}); save it as UTF-8") from error
    if "\0" in text:  # such as UTF-16 without a mark
        raise UserError(f"{name}: not UTF-8 text (it holds zero bytes); save it as UTF-8")
    return text.replace("\r\n", "\n").replace("\r", "\n")


# --- writing --------------------------------------------------------------------------------------


def as_json(content: dict[str, Any], indent: int | None = None) -> bytes:
    """JSON in UTF-8, in which numbers that are not finite are null: JSON has no others.

    Bytes of a path that are no text stand as escapes, from which JSON reads them back.
    """
    text = json.dumps(_finite(content), ensure_ascii=False, indent=indent, allow_nan=False)
    return text.encode("utf-8", "backslashreplace")


def _finite(node: Any) -> Any:
    if isinstance(node, dict):
        return {key: _finite(value) for key, value in node.items()}
    if isinstance(node, list | tuple):
        return [_finite(value) for value in node]
    return None if isinstance(node, float) and not math.isfinite(node) else node


def as_csv(rows: Iterable[Sequence[object]]) -> bytes:
    """CSV in UTF-8; None is an empty cell, a whole number is written without a point.

    A spreadsheet runs a cell that begins like a formula, and names and prompts come from others: such a text gets an
    apostrophe in front (OWASP, "CSV injection"). Numbers stay numbers.
    """
    text = io.StringIO()
    csv.writer(text, lineterminator="\n").writerows([_cell(value) for value in row] for row in rows)
    return text.getvalue().encode("utf-8", "backslashreplace")


def _cell(value: object) -> object:
    if isinstance(value, float):
        return int(value) if value.is_integer() else value
    return f"'{value}" if isinstance(value, str) and value.startswith(FORMULA) else value


def write_whole(path: Path, content: bytes) -> None:
    """Write a file whole or not at all, whenever the process or the machine stops, and whoever else writes it.

    Until it is whole it is called `.<name>.<host>-<process>-<random>`. Raises OSError.
    """
    host = re.sub(r"\W", "-", socket.gethostname())[:40]
    partial = path.with_name(f".{path.name}.{host}-{os.getpid()}-{secrets.token_hex(4)}")
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
