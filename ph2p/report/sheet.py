"""`prompts.csv`: a line a picture, for a spreadsheet or a script."""

from collections.abc import Iterator, Sequence
from pathlib import Path

from ph2p.evaluation.metrics import shown_in
from ph2p.files import as_csv, write_whole
from ph2p.report.records import Record, listed, mapping, number, reason, succeeded, warnings_in


def write_sheet(folder: Path, records: Sequence[Record]) -> Path:
    """Write the file whole, in the place of an older one; raises OSError."""
    path = folder / "prompts.csv"
    write_whole(path, as_csv(_rows(records)))
    return path


def _rows(records: Sequence[Record]) -> Iterator[list[object]]:
    """The head, and for each picture: file, prompt, what a card shows of its metrics, warnings or why it failed, and
    the other prompts that were asked for, a line each."""
    keys = [metric.key for metric in shown_in("card")]
    yield ["file", "prompt", *keys, "note", "alternatives"]
    for record in records:
        if succeeded(record):
            values = [number(record, key) for key in keys]
            others = "\n".join(str(row.get("prompt") or "") for row in map(mapping, listed(record.get("alternatives"))))
            yield [record["image_id"], record.get("prompt") or "", *values, "; ".join(warnings_in(record)), others]
        else:
            yield [record["image_id"], "", *[None] * len(keys), f"failed: {reason(record)}", ""]
