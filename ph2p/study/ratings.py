"""Reads what raters sent back, and says whose ratings count."""

import csv
import io
import json
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from ph2p.errors import UserError
from ph2p.evaluation.formatting import visible
from ph2p.files import printable, read_text
from ph2p.study.key import Key

HEADER = ("study", "rater", "item", "question", "rating")
Rating = tuple[str, str, str, str, object]  # in the header's order, as a file has it
Answers = dict[tuple[str, str], int]  # (item, question): rating


@dataclass(frozen=True)
class Rater:
    """One person's answers; `wrong` of `asked` attention checks were missed, and `out` says why none of them counts."""

    name: str
    answers: Answers
    rated: int
    asked: int
    wrong: int
    out: str = ""


def read_raters(files: Sequence[Path], key: Key, misses: int = 0) -> list[Rater]:
    """Everybody's answers, by name; who misses more than `misses` attention checks is out.

    The same answer twice, as CSV and as JSON, is one. Raises UserError, one line that names the file.
    """
    answers: dict[str, Answers] = defaultdict(dict)
    origin: dict[tuple[str, str, str], Path] = {}
    for file in files:
        for rater, item, question, value in _checked(file, key):
            before = answers[rater].setdefault((item, question), value)
            if before != value:
                first = printable(origin[rater, item, question])
                where = printable(file) if first == printable(file) else f"{first} and {printable(file)}"
                raise UserError(
                    f"{where}: {visible(rater)} rates {item} for {question} as {before} and as {value}; "
                    "give one file of each rater, and each rater a name of their own"
                )
            origin.setdefault((rater, item, question), file)
    return [_rater(name, answers[name], key, misses) for name in sorted(answers)]


def _rater(name: str, answers: Answers, key: Key, misses: int) -> Rater:
    """Count the checks: one is missed when any of its questions has another answer than it asked for."""
    given: dict[str, list[int]] = defaultdict(list)
    for (item, _), value in answers.items():
        given[item].append(value)
    asked = [item for item in key.checks if item in given]
    wrong = sum(any(value != key.checks[item] for value in given[item]) for item in asked)
    rated = sum(item in key.items for item in given)
    out = ""
    if wrong > misses:
        out = f"missed {wrong} of {len(asked)} attention checks"
    elif key.checks and not asked:
        out = "reached no attention check"
    elif not rated:
        out = "rated no prompt"
    return Rater(
        name, {pair: value for pair, value in answers.items() if pair[0] in key.items}, rated, len(asked), wrong, out
    )


# --- files --------------------------------------------------------------------------------------------------------


def _checked(file: Path, key: Key) -> Iterator[tuple[str, str, str, int]]:
    """A file's ratings: (rater, item, question, rating). Raises UserError for what does not fit the key."""
    points = {question.key: question.points for question in key.questions}
    name, empty = printable(file), True
    for number, (study, rater, item, question, given) in enumerate(_rows(file), 1):
        empty, where = False, f"{name}, rating {number}"
        if study != key.study:
            raise UserError(
                f"{name}: ratings of the study {printable(study)}, not of {key.study}; give the key of that one"
            )
        if not rater.strip():
            raise UserError(f"{where}: no rater is named; write a name there")
        if item not in key.items and item not in key.checks:
            raise UserError(f"{where}: the item {printable(item)} is none of the study's; was the file changed?")
        if question not in points:
            raise UserError(f"{where}: the question {printable(question)} is none of {', '.join(points)}")
        value = _whole(given)
        if value is None or not 1 <= value <= points[question]:
            raise UserError(f"{where}: {printable(given)!r} is no rating from 1 to {points[question]}")
        yield rater.strip(), item, question, value
    if empty:
        raise UserError(f"{name}: holds no ratings; leave it out")


def _whole(value: object) -> int | None:
    """A whole number, also as text and as spreadsheets write it (`4.0`); None for everything else."""
    try:
        number = float(value) if isinstance(value, int | float | str) and not isinstance(value, bool) else 0.5
    except (ValueError, OverflowError):
        return None
    return int(number) if number.is_integer() else None


def _rows(file: Path) -> Iterator[Rating]:
    if file.suffix.lower() not in (".csv", ".json"):
        raise UserError(f"{printable(file)}: give ratings as .csv or .json, as the page saves them")
    text = read_text(file)
    return _from_json(file, text) if file.suffix.lower() == ".json" else _from_csv(file, text)


def _from_json(file: Path, text: str) -> Iterator[Rating]:
    try:
        content = json.loads(text)
        study, rater, ratings = content["study"], content["rater"], content["ratings"]
        rows = [(item, question, value) for item, answers in ratings.items() for question, value in answers.items()]
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise UserError(
            f"{printable(file)}: no ratings as the page saves them; ask the rater for the file anew"
        ) from error
    for item, question, value in rows:
        yield str(study), str(rater), item, question, value


def _from_csv(file: Path, text: str) -> Iterator[Rating]:
    """The lines of a table; one that a spreadsheet saved may have semicolons or tabs."""
    first = text.partition("\n")[0]
    try:
        table = csv.DictReader(io.StringIO(text), delimiter=max(",;\t", key=first.count))
        rows: list[Mapping[str, str | None]] = list(table)
    except csv.Error as error:
        raise UserError(f"{printable(file)}: not a table as the page saves it ({error})") from error
    if lacking := [name for name in HEADER if name not in (table.fieldnames or ())]:
        raise UserError(f"{printable(file)}: has no column {', '.join(lacking)}; its first line is {','.join(HEADER)}")
    for row in rows:
        study, rater, item, question, rating = (row.get(name) or "" for name in HEADER)
        yield study, rater, item, question, rating
