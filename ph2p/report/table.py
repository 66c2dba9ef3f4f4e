"""The report of a results folder: a table for the terminal, and one self-contained HTML page.

Nothing here loads a model: whatever a run left behind, also an unfinished one, can be looked at.
"""

import os
from collections.abc import Callable, Sequence
from contextlib import suppress
from pathlib import Path
from statistics import fmean, median

from rich.table import Table
from rich.text import Text

from ph2p.errors import UserError
from ph2p.report.formatting import count, fixed, loss, percent, share, signed
from ph2p.report.page import html
from ph2p.report.records import Record, figure, figures, read_results, samples, succeeded

COLUMNS: dict[str, tuple[str, Callable[[float | None], str]]] = {  # of the terminal's table: key and how to write it
    "loss": ("loss", loss),
    "regret": ("regret", signed),
    "CLIP": ("clip_similarity", share),
    "CLIP text": ("reference_similarity", share),
    "samples": ("", count),
    "seconds": ("seconds", lambda value: fixed(value, 1)),
}


def summary_table(records: Sequence[Record]) -> Table:
    """Lay out the records as a table for the terminal, failed images with their error.

    A column that no image has a figure for is left out.
    """
    table = Table(caption=_caption(records), header_style="bold")
    table.add_column("image", overflow="fold", max_width=28)
    table.add_column("prompt", overflow="fold", ratio=1)
    good = [record for record in records if succeeded(record)]
    columns = [name for name, (key, _) in COLUMNS.items() if not key or not good or figures(good, key)]
    for name in columns:
        table.add_column(name, justify="right", no_wrap=True)
    for record in records:
        table.add_row(*_row(record, columns))
    return table


def _row(record: Record, columns: Sequence[str]) -> list[Text]:
    # Text, not str: square brackets in names and prompts are no markup.
    name = Text(str(record["image_id"]))
    if not succeeded(record):
        return [name, Text(f"failed: {record.get('error') or 'no reason was recorded'}", style="red")]
    cells = [name, Text(str(record.get("prompt") or ""))]
    for key, write in (COLUMNS[column] for column in columns):
        cells.append(Text(write(figure(record, key) if key else sum(samples([record])))))
    return cells


def _caption(records: Sequence[Record]) -> str:
    good = [record for record in records if succeeded(record)]
    parts = [f"{len(good)} ok, {len(records) - len(good)} failed"]
    if regrets := figures(good, "regret"):
        parts.append(f"median regret {signed(median(regrets))}")
    if recalls := figures(good, "word_recall"):
        parts.append(f"words found {percent(fmean(recalls))}")
    if similarities := figures(good, "clip_similarity"):
        parts.append(f"mean CLIP {share(fmean(similarities))}")
    if texts := figures(good, "reference_similarity"):
        parts.append(f"to the nearest reference: CLIP {share(fmean(texts))}")
    if words := figures(good, "reference_rouge1"):
        parts.append(f"ROUGE-1 {share(fmean(words))}")
    return " · ".join(parts)


def write_report(folder: str | Path) -> Path:
    """Write `index.html` into a results folder and return its path.

    The page holds everything: pictures as data URIs, no script, no address outside itself. It takes the
    old one's place in one go, so that nobody sees half a page. Raises UserError when it cannot be written.
    """
    folder = Path(folder)
    records = read_results(folder)
    page = folder / "index.html"
    draft = folder / f".index.html.{os.getpid()}"
    try:
        draft.write_bytes(html(folder, records).encode("utf-8", "backslashreplace"))
        draft.replace(page)
    except OSError as error:
        with suppress(OSError):
            draft.unlink(missing_ok=True)
        raise UserError(f"{page}: {error.strerror}: free space or write permission there") from error
    return page
