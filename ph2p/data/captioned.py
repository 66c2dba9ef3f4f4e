"""Images with captions that people wrote: a folder, and a table or text files beside it."""

import csv
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from ph2p.data.folder import find_pictures
from ph2p.data.images import TargetError, load_image, printable
from ph2p.data.targets import Target, Targets, chosen, tidy
from ph2p.errors import UserError

LONGEST_CELL = 2**20  # characters; the csv module stops at 131,072


class CaptionedTargets(Targets):
    """The images that a file of captions names, with those captions as references.

    `captions` is a .csv, .tsv or .jsonl file: `file_key` names the column of file names, `caption_key` that of
    captions (JSON lines may hold lists of them); several lines may name one image, columns of a .csv are parted by
    `delimiter`. Or it is a folder with a text file for each picture, `sub/a.txt` for `sub/a.jpg`, a caption a line.
    `captions` and `images`, the folder that file names start from, lie in `root`. An image's id is its file name.

    Raises UserError for a missing or malformed file of captions.
    """

    def __init__(
        self,
        root: str | Path,
        captions: str,
        image_size: int,
        images: str = ".",
        file_key: str = "file_name",
        caption_key: str = "caption",
        delimiter: str = ",",
        count: int | None = None,
        seed: int = 0,
    ) -> None:
        root = Path(root).expanduser()
        self.folder, self.image_size, source = root / images, image_size, root / captions
        self.texts = source if source.is_dir() else None
        if self.texts:
            found: dict[str, list[str]] = {name: [] for name in _pictures(self.folder)}
        else:
            found = _read_table(source, file_key, caption_key, delimiter)
        names = list(found)
        self.names = [names[k] for k in chosen(names, count, seed)]
        self.ids = [printable(name) for name in self.names]
        self.references = [tidy(found[name]) for name in self.names]

    def load(self, index: int) -> Target:
        file, references = self.folder / self.names[index], self.references[index]
        image = load_image(file, self.image_size)
        if self.texts:
            references = _read_lines((self.texts / self.names[index]).with_suffix(".txt"))
        return Target(self.ids[index], printable(file), image, references=references)


def _pictures(folder: Path) -> list[str]:
    return [file.relative_to(folder).as_posix() for file in find_pictures(folder)]


def _read_lines(file: Path) -> tuple[str, ...]:
    """The captions of one picture; none where there is no such file."""
    try:
        return tidy(file.read_text(encoding="utf-8-sig").splitlines())
    except FileNotFoundError:
        return ()
    except (OSError, UnicodeDecodeError) as error:
        raise TargetError(f"{printable(file)}: cannot be read as UTF-8 text: replace it") from error


# --- tables ---------------------------------------------------------------------------------------


def _read_table(table: Path, file_key: str, caption_key: str, delimiter: str) -> dict[str, list[str]]:
    """The captions of every file name of a table, in the order in which the names first occur."""
    found: dict[str, list[str]] = {}
    try:
        for number, row in _rows(table, delimiter):
            if file_key not in row:
                keys = ", ".join(str(key) for key in row)
                raise UserError(f"{printable(table)}: line {number} has no {file_key!r} but {keys}: give data.file_key")
            if name := _name(row[file_key], f"{printable(table)}: line {number}"):
                found.setdefault(name, []).extend(_texts(row.get(caption_key)))
    except OSError as error:
        raise UserError(f"{printable(table)}: {error.strerror}: give data.captions, a file in data.root") from error
    except (UnicodeDecodeError, csv.Error) as error:
        raise UserError(f"{printable(table)}: not a table in UTF-8 ({printable(error)}): save it as such") from error
    if not found:
        raise UserError(f"{printable(table)}: names no image in {file_key!r}")
    if not any(found.values()):
        raise UserError(f"{printable(table)}: no line has a caption in {caption_key!r}: give data.caption_key")
    return found


def _rows(table: Path, delimiter: str) -> Iterator[tuple[int, dict[str, Any]]]:
    """The lines of a table with their numbers, as {column: value}."""
    with table.open(encoding="utf-8-sig", newline="") as file:  # -sig: spreadsheets mark UTF-8 by a BOM
        if table.suffix.lower() in (".jsonl", ".ndjson"):
            yield from ((number, _parsed(line, table, number)) for number, line in enumerate(file, 1) if line.strip())
            return
        csv.field_size_limit(LONGEST_CELL)
        delimiter = "\t" if table.suffix.lower() == ".tsv" else delimiter
        rows = csv.reader(file, delimiter=delimiter, skipinitialspace=True)
        header = [column.strip() for column in next(rows, [])]
        yield from ((rows.line_num, dict(zip(header, row, strict=False))) for row in rows if row)


def _parsed(line: str, table: Path, number: int) -> dict[str, Any]:
    try:
        row = json.loads(line)
    except json.JSONDecodeError:
        row = None
    if not isinstance(row, dict):
        raise UserError(f"{printable(table)}: line {number} is no JSON object: mend or remove it")
    return row


def _name(value: object, where: str) -> str:
    """A file name as it counts: with `/`, without a leading `./`."""
    if not isinstance(value, str) or "\0" in value:
        raise UserError(f"{where}: {printable(repr(value))} is no file name: mend it")
    return Path(value.strip()).as_posix() if value.strip() else ""


def _texts(value: object) -> list[str]:
    return [text for text in (value if isinstance(value, list) else [value]) if isinstance(text, str)]
