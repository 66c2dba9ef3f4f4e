"""The records of a results folder, also of an unfinished run, and the values in them."""

import json
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from statistics import fmean, median
from typing import Any

from ph2p.errors import UserError
from ph2p.evaluation.formatting import finite
from ph2p.evaluation.metrics import Metric
from ph2p.files import printable

Record = dict[str, Any]


def read_results(folder: str | Path) -> list[Record]:
    """Read the records of a results folder, in the order in which the images were first written.

    The last record of an image wins: a run that was continued has tried it again. Lines that are no record,
    such as the torn last one of a killed run, are passed over. Raises UserError when there is no such folder, or
    when a file of it cannot be read or holds nothing but damage.
    """
    folder = Path(folder)
    if not folder.is_dir():
        raise UserError(f"{folder}: no such results folder: give the one that a run has written")
    records: dict[str, Record] = {}
    for part in sorted((folder / "results").glob("part-*.jsonl")):
        try:
            text = part.read_bytes().decode("utf-8", "replace")
        except OSError as error:
            raise UserError(f"{part}: cannot be read ({error.strerror}): give read permission there") from error
        found = [parsed(line) for line in text.split("\n")]  # splitlines() also cuts at characters that JSON may hold
        if len(found) > 1 and text.strip() and not any("image_id" in record for record in found):
            raise UserError(f"{part}: holds no record, so it is damaged: restore it, or remove it to begin it anew")
        records |= {str(record["image_id"]): record for record in found if "image_id" in record}
    return list(records.values())


def finished(folder: Path) -> dict[str, Record]:
    """The records of the images that a run finished, by image."""
    if not (folder / "results").is_dir():
        raise UserError(
            f"{printable(folder)}: no results folder; give one that a run has written, such as outputs/NAME"
        )
    return {printable(record["image_id"]): record for record in read_results(folder) if succeeded(record)}


def labels_of(known: dict[Path, dict[str, Record]]) -> dict[Path, str]:
    """What runs are called beside each other: their methods, or where some would be called alike the folders' names."""
    methods = {
        folder: {printable(r.get("method") or "") for r in records.values()} for folder, records in known.items()
    }
    ways = (
        {folder: next(iter(names)) if len(names) == 1 else "" for folder, names in methods.items()},
        {folder: printable(folder.resolve().name) for folder in known},
    )
    good = (way for way in ways if all(way.values()) and len(set(way.values())) == len(way))
    return next(good, {folder: printable(folder) for folder in known})


def read_if_there(file: Path | None) -> str:
    """Return what stands in a file, or nothing when it cannot be read."""
    with suppress(OSError):
        return file.read_text(encoding="utf-8", errors="replace") if file else ""
    return ""


def parsed(text: str) -> dict[str, Any]:
    """Return the JSON object that a text holds, or an empty one when it holds none."""
    with suppress(json.JSONDecodeError, RecursionError):
        return mapping(json.loads(text))
    return {}


def mapping(value: object) -> dict[str, Any]:
    return value if isinstance(value, dict) else {}


def listed(value: object) -> list[Any]:
    return value if isinstance(value, list) else []


def succeeded(record: Record) -> bool:
    return record.get("status") == "ok"


def number(record: Record, key: str) -> float | None:
    """Return a finite number of the record, or None: what is not known is left out of every mean."""
    return finite(record.get(key))


def numbers(records: Sequence[Record], key: str) -> list[float]:
    return [value for record in records if (value := number(record, key)) is not None]


def over_images(metric: Metric, records: Sequence[Record]) -> float | None:
    """The metric's mean, median or sum over the images that have it; None without any."""
    known = numbers(records, metric.key)
    if not known:
        return None
    return sum(known) if metric.over == "sum" else median(known) if metric.over == "median" else fmean(known)


def warnings_in(record: Record) -> list[str]:
    return [str(warning) for warning in listed(record.get("warnings"))]


def reason(record: Record) -> str:
    """Why an image has no prompt."""
    return str(record.get("error") or "no reason was recorded")
