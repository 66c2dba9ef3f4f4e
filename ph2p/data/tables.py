"""Tables of captions: .csv, .tsv and JSON lines, in which what is malformed is refused with its line."""

import csv
import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Literal

from ph2p.errors import UserError
from ph2p.files import printable, read_text

LONGEST_CELL = 2**20  # characters; the csv module stops at 131,072
UNQUOTED = "\t|"  # between columns of tables that know no quotes: a quotation mark is a letter like any other


def read_table(table: Path, file_key: str, caption_key: str, delimiter: str) -> dict[str, list[str]]:
    """The captions of every file name of a table, in the order in which the names first occur.

    Raises UserError, one line with the file and, where there is one, the line's number.
    """
    found: dict[str, list[str]] = {}
    shown = printable(table)
    for number, row in _rows(table, delimiter):
        for key, option in ((file_key, "file_key"), (caption_key, "caption_key")):
            if key not in row and (option == "file_key" or table.suffix.lower() not in (".jsonl", ".ndjson")):
                keys = printable(", ".join(str(key) for key in row))
                raise UserError(f"{shown}: line {number} has no {key!r} but {keys}: give data.{option}")
        if name := _name(row[file_key], f"{shown}: line {number}"):
            found.setdefault(name, []).extend(_texts(row.get(caption_key), f"{shown}: line {number}"))
    if not found:
        raise UserError(f"{shown}: names no image in {file_key!r}")
    if not any(found.values()):
        raise UserError(f"{shown}: no line has a caption in {caption_key!r}: give data.caption_key")
    return found


def _rows(table: Path, delimiter: str) -> Iterator[tuple[int, dict[str, Any]]]:
    """The lines of a table with their numbers, as {column: value}."""
    lines = _text(table).split("\n")  # not splitlines: a caption may hold other ends of lines
    if table.suffix.lower() in (".jsonl", ".ndjson"):
        yield from ((number, _parsed(line, table, number)) for number, line in enumerate(lines, 1) if line.strip())
        return
    cells = _cells(lines, table, "\t" if table.suffix.lower() == ".tsv" else delimiter)
    _, header = next(cells, (0, []))
    header = [column.strip() for column in header]
    for column in header:
        if column and header.count(column) > 1:
            raise UserError(f"{printable(table)}: line 1 names {printable(column)} twice: rename one of them")
    for number, row in cells:
        if len(row) != len(header):
            advice = "a caption that holds the delimiter stands in quotes" if len(row) > len(header) else "complete it"
            raise UserError(
                f"{printable(table)}: line {number} has {len(row)} columns, the first line {len(header)}: {advice}"
            )
        _check_quotes(row, table, number)
        yield number, dict(zip(header, row, strict=True))


def _check_quotes(row: list[str], table: Path, number: int) -> None:
    """Refuse a cell over several lines of which one begins with a picture's name: a lone quotation mark began it."""
    for cell in row:
        for line in cell.split("\n")[1:]:
            if re.match(r"[^\s,;|]+\.(jpe?g|png|webp|gif|bmp|avif)\s*[,;|]", line, re.IGNORECASE):
                raise UserError(
                    f"{printable(table)}: line {number}: a quotation mark takes in the next lines, such as "
                    f"{printable(line[:40])}: close it, or write it twice"
                )


def _text(table: Path) -> str:
    if not table.is_file():
        raise UserError(f"{printable(table)}: No such file: give data.captions, a file or folder in data.root")
    return read_text(table)


def _cells(lines: list[str], table: Path, delimiter: str) -> Iterator[tuple[int, list[str]]]:
    """The rows that are not empty, each with the number of the line where it begins."""
    csv.field_size_limit(LONGEST_CELL)
    source = (f"{line}\n" for line in lines)
    quoting: Literal[0, 3] = csv.QUOTE_NONE if delimiter in UNQUOTED else csv.QUOTE_MINIMAL
    rows = csv.reader(source, delimiter=delimiter, quoting=quoting, skipinitialspace=True, strict=True)
    while True:
        begin = rows.line_num + 1
        try:
            row = next(rows, None)
        except csv.Error as error:
            reason = "a quotation mark is never closed" if "unexpected end" in str(error) else printable(error)
            raise UserError(f"{printable(table)}: line {begin}: {reason}: fix the line") from error
        if row is None:
            return
        if any(cell.strip() for cell in row):
            yield begin, row


def _parsed(line: str, table: Path, number: int) -> dict[str, Any]:
    try:
        row = json.loads(line)
    except (ValueError, RecursionError):
        row = None
    if not isinstance(row, dict):
        raise UserError(f"{printable(table)}: line {number} is no JSON object: fix or remove it")
    return row


def _name(value: object, where: str) -> str:
    """A file name as it counts: with `/`, without a leading `./`."""
    if not isinstance(value, str) or "\0" in value:
        raise UserError(f"{where}: {printable(repr(value))} is no file name: fix it")
    return Path(value.strip()).as_posix() if value.strip() else ""


def _texts(value: object, where: str) -> list[str]:
    """The captions of a line: a text, a list of them, or none."""
    values = [one for one in (value if isinstance(value, list) else [value]) if one is not None]
    for one in values:
        if not isinstance(one, str):
            raise UserError(f"{where}: {printable(repr(one))} is no caption: fix it")
    return [one for one in values if isinstance(one, str)]
