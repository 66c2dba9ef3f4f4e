"""What a run says while it goes on: a bar on a terminal, a line a batch in a log; it never fails or changes a run."""

import io
import os
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import IO, Any

from rich.console import Console, RenderableType
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from rich.text import Text

LOG_WIDTH = 120  # columns where there is no terminal, unless COLUMNS says otherwise


class SafeStream:
    """A text stream that takes everything: what its encoding lacks is escaped, and nobody need be listening."""

    def __init__(self, stream: IO[str] | None) -> None:
        self._stream = stream or io.StringIO()
        self.gone = stream is None  # closed from the start, the reader of a pipe, or the disk's space

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)

    @property
    def encoding(self) -> str:
        return getattr(self._stream, "encoding", None) or "ascii"

    def write(self, text: str) -> int:
        self._try(lambda: self._write(text))
        return len(text)

    def flush(self) -> None:
        self._try(self._stream.flush)

    def _write(self, text: str) -> None:
        try:
            self._stream.write(text)
        except UnicodeError:
            self._stream.write(text.encode(self.encoding, "backslashreplace").decode(self.encoding))

    def _try(self, act: Any) -> None:
        if self.gone:
            return
        try:
            act()
        except (OSError, ValueError):  # a closed pipe, a full disk, a closed stream
            self.gone = True
            with suppress(OSError, ValueError):  # or Python complains at its end of what it could not flush
                null = os.open(os.devnull, os.O_WRONLY)
                os.dup2(null, self._stream.fileno())
                os.close(null)


class Screen:
    """Standard output for a run; with `quiet` only `fail` is heard, as is right for all ranks but the first."""

    def __init__(self, stream: IO[str] | None = None, quiet: bool = False) -> None:
        self.quiet = quiet
        target = SafeStream(stream or sys.stdout)
        self._console = Console(file=target, highlight=False)  # type: ignore[arg-type]
        if not self._console.is_terminal and "COLUMNS" not in os.environ:
            self._console.width = LOG_WIDTH
        self._bar: Progress | None = None

    def say(self, text: str) -> None:
        """A line as it stands: square brackets in names are no markup."""
        if not self.quiet:
            self._console.print(Text(text), soft_wrap=True)

    def fail(self, text: str) -> None:
        """A line of an image that failed, from any rank."""
        self._console.print(Text.assemble(("failed ", "red"), text), soft_wrap=True)

    def show(self, what: RenderableType) -> None:
        if not self.quiet:
            self._console.print(what)

    @contextmanager
    def progress(self, total: int) -> Iterator["BatchProgress"]:
        """Follow `total` images."""
        bar = _bar(self._console, disable=self.quiet or not self._console.is_terminal)
        with bar:
            yield BatchProgress(self, bar, total)

    @property
    def is_log(self) -> bool:
        return not self.quiet and not self._console.is_terminal


class BatchProgress:
    """How many of `total` images are through, and what is happening to the batch at hand."""

    def __init__(self, screen: Screen, bar: Progress, total: int) -> None:
        self._screen, self._bar, self._total, self._done = screen, bar, total, 0
        self._images = 0
        self._task = bar.add_task("starting", total=total)
        self._began = time.monotonic()

    def begin(self, images: int) -> None:
        """A batch of `images` begins."""
        self._images = images

    def report(self, share: float, doing: str) -> None:
        """`share` in [0, 1] of the batch is done."""
        what = f"{doing} {self._images} image{'s' if self._images > 1 else ''}"
        self._bar.update(self._task, completed=self._done + share * self._images, description=what)

    def finish(self) -> None:
        """The batch is through."""
        self._done += self._images
        self._bar.update(self._task, completed=self._done)
        if self._screen.is_log:
            left = self._total - self._done
            seconds = (time.monotonic() - self._began) / self._done * left
            rest = f"{left} left, about {_duration(seconds)}" if left else "none left"
            self._screen.say(f"{self._done} of {self._total} images done, {rest}")


def _bar(console: Console, disable: bool) -> Progress:
    columns = (
        TextColumn("{task.description:>24}", markup=False),
        BarColumn(),
        TextColumn("{task.completed:.1f}/{task.total} images"),
    )
    timing = (TimeElapsedColumn(), TextColumn("left"), TimeRemainingColumn())
    return Progress(*columns, *timing, console=console, disable=disable)


def _duration(seconds: float) -> str:
    """Seconds in words for a person: 40 s, 12 min, 3 h 5 min."""
    if seconds < 60:
        return f"{seconds:.0f} s"
    minutes = round(seconds / 60)
    return f"{minutes} min" if minutes < 60 else f"{minutes // 60} h {minutes % 60} min"
