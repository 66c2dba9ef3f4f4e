"""The report of a results folder: a summary for the terminal, and the pages beside the results.

Nothing here loads a model: whatever a run left behind, also an unfinished one, can be looked at.
"""

import fcntl
import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

from rich.console import Console, ConsoleOptions, RenderableType, RenderResult
from rich.padding import Padding
from rich.table import Table
from rich.text import Text

from ph2p.evaluation.formatting import visible
from ph2p.evaluation.metrics import Metric, shown_in
from ph2p.files import plain_disk_errors
from ph2p.report.page import Run, write_pages
from ph2p.report.records import Record, number, numbers, over_images, read_results, reason, succeeded, warnings_in
from ph2p.report.sheet import write_sheet

ROWS = 40  # images in the terminal; the page has them all
NAME, PROMPT = 28, 24  # columns that a table has for an image's name, at most, and for a prompt, at least


@dataclass(frozen=True)
class Summary:
    """The records for the terminal: a table where it is wide enough, otherwise a few lines an image.

    Of more than `ROWS` images, those that failed or have a warning are shown first. A value that no image has is
    left out. Nothing in names, prompts and errors is taken for markup or steers the terminal, and what the terminal's
    encoding lacks is written as an escape.
    """

    records: Sequence[Record]

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        write = _Writer(options.encoding)
        good = [record for record in self.records if succeeded(record)]
        metrics = [metric for metric in shown_in("column") if numbers(good, metric.key)]
        shown = _most_telling(self.records)
        if shown:
            wide = options.max_width >= _narrowest(shown, metrics)
            yield from write.table(shown, metrics) if wide else write.lines(shown, metrics)
        yield from write.closing(good, len(self.records) - len(good), len(self.records) - len(shown))


def summary_table(records: Sequence[Record]) -> Summary:
    """Lay out the records for the terminal; print it on a rich console."""
    return Summary(records)


def _most_telling(records: Sequence[Record]) -> list[Record]:
    """At most `ROWS` records, in their order: first those that failed, then those with a warning, then the others."""
    order = sorted(range(len(records)), key=lambda k: (succeeded(records[k]), not warnings_in(records[k])))
    return [records[k] for k in sorted(order[:ROWS])]


def _narrowest(records: Sequence[Record], metrics: Sequence[Metric]) -> int:
    """How wide a terminal must be for a table of these records whose prompts can still be read."""
    name = min(NAME, max(len(visible(record["image_id"])) for record in records))
    cells = [[metric.name, *(metric.show(number(record, metric.key)) for record in records)] for metric in metrics]
    widths = [name, PROMPT, *(max(map(len, column)) for column in cells)]
    return sum(widths) + 3 * len(widths) + 1  # a space on either side of each, and the lines between them


@dataclass(frozen=True)
class _Writer:
    """Writes records as what a terminal of this encoding can show."""

    encoding: str

    def text(self, value: object, style: str = "") -> Text:
        # Text, not str: square brackets in names and prompts are no markup.
        known = visible(value).encode(self.encoding, "backslashreplace").decode(self.encoding)
        return Text(known, style=style, overflow="fold")

    def said(self, record: Record) -> Text:
        """The prompt of an image with its warnings, or why it has none."""
        if not succeeded(record):
            return self.text(f"failed: {reason(record)}", "red")
        lines = [self.text(record.get("prompt") or "(empty prompt)")]
        lines += [self.text(f"warning: {warning}", "yellow") for warning in warnings_in(record)]
        return Text("\n").join(lines)

    def table(self, shown: Sequence[Record], metrics: Sequence[Metric]) -> Iterator[RenderableType]:
        table = Table(header_style="bold")
        table.add_column("image", overflow="fold", max_width=NAME)
        table.add_column("prompt", overflow="fold", ratio=1)
        for metric in metrics:
            table.add_column(self.text(metric.name), justify="right", no_wrap=True)
        for record in shown:
            values = [self.text(metric.show(number(record, metric.key))) for metric in metrics]
            known = values if succeeded(record) else []
            table.add_row(self.text(record["image_id"]), self.said(record), *known)
        yield table

    def lines(self, shown: Sequence[Record], metrics: Sequence[Metric]) -> Iterator[RenderableType]:
        for record in shown:
            yield self.text(record["image_id"], "bold")
            yield Padding(self.said(record), (0, 0, 0, 2))
            known = [(metric, value) for metric in metrics if (value := number(record, metric.key)) is not None]
            values = " · ".join(f"{metric.name} {metric.show(value)}" for metric, value in known)
            if succeeded(record) and values:
                yield Padding(self.text(values, "dim"), (0, 0, 0, 2))

    def closing(self, good: Sequence[Record], failed: int, left_out: int) -> Iterator[RenderableType]:
        """What holds for all images: how many were left out, how many are well, what they are worth together."""
        if left_out:
            yield self.text(f"... and {left_out} more, see the page")
        parts = [f"{len(good)} ok, {failed} failed"]
        for metric in shown_in("total"):
            value = over_images(metric, good)
            if value is not None and metric.over != "sum":
                parts.append(f"{metric.over} {metric.name} {metric.show(value)}")
        yield self.text(" · ".join(parts), "italic")
        if warned := sum(bool(warnings_in(record)) for record in good):
            yield self.text(f"warning: {warned} of {len(good)} prompts should not be trusted as they are", "yellow")


# --- the pages ----------------------------------------------------------------------------------------------------


def write_report(folder: str | Path) -> Path:
    """Write the pages of a results folder, and `prompts.csv`; returns the first page, `index.html`.

    They name no address outside the folder, and no script but their own runs. Of processes that write at the same
    time one works, the others wait, and then write only what has changed since. Each page takes the old one's place
    in one go, so that nobody sees half a page. Raises UserError when one cannot be written.
    """
    folder = Path(folder)
    with _alone(folder):
        run = Run(folder, read_results(folder))
        with plain_disk_errors(folder):
            write_sheet(folder, run.records)
            return write_pages(run)


@contextmanager
def _alone(folder: Path) -> Iterator[None]:
    """Wait for other processes that write the pages of this folder, where there is one and its file system can lock."""
    handle = os.open(folder, os.O_RDONLY) if folder.is_dir() else None
    try:
        with suppress(OSError):
            if handle is not None:
                fcntl.flock(handle, fcntl.LOCK_EX)
        yield
    finally:
        if handle is not None:
            os.close(handle)
