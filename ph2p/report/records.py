"""The records of a results folder, also of an unfinished run, and the figures in them."""

import json
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

from ph2p.errors import UserError
from ph2p.report.formatting import finite

Record = dict[str, Any]


def read_results(folder: str | Path) -> list[Record]:
    """Read the records of a results folder, in the order in which the images were first written.

    The last record of an image wins: a run that was continued has tried it again. Lines that are no record,
    such as the torn last one of a killed run, are passed over. Raises UserError when there is no such folder.
    """
    folder = Path(folder)
    if not folder.is_dir():
        raise UserError(f"{folder}: no such results folder: give the one that a run has written")
    records: dict[str, Record] = {}
    for part in sorted((folder / "results").glob("part-*.jsonl")):
        for line in read_text(part).split("\n"):  # splitlines() also cuts at characters that JSON may hold
            record = parsed(line)
            if "image_id" in record:
                records[str(record["image_id"])] = record
    return list(records.values())


def read_text(file: Path | None) -> str:
    """Return what stands in a file, or nothing when it cannot be read."""
    with suppress(OSError):
        return file.read_text(encoding="utf-8", errors="replace") if file else ""
    return ""


def parsed(text: str) -> dict[str, Any]:
    """Return the JSON object that a text holds, or an empty one when it holds none."""
    with suppress(json.JSONDecodeError):
        value = json.loads(text)
        if isinstance(value, dict):
            return value
    return {}


def succeeded(record: Record) -> bool:
    return record.get("status") == "ok"


def figure(record: Record, key: str) -> float | None:
    """Return a finite number of the record, or None: what is not known is left out of every mean."""
    return finite(record.get(key))


def figures(records: Sequence[Record], key: str) -> list[float]:
    return [value for record in records if (value := figure(record, key)) is not None]


def samples(records: Sequence[Record]) -> tuple[float, float]:
    """Sum up the denoiser samples, forward and backward."""
    return sum(figures(records, "forward_samples")), sum(figures(records, "backward_samples"))
