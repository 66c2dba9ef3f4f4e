"""The analysis of a study as tables, for the terminal and as Markdown."""

import math
import re
from collections.abc import Iterator
from dataclasses import dataclass

from rich.console import Console, ConsoleOptions, RenderableType, RenderResult
from rich.padding import Padding
from rich.table import Table
from rich.text import Text

from ph2p.evaluation.formatting import NOTHING, visible
from ph2p.evaluation.metrics import METRICS
from ph2p.study.agreement import Estimate
from ph2p.study.analyse import Analysis
from ph2p.study.comparison import Pair


@dataclass(frozen=True)
class Part:
    """One table: what it shows, its columns and rows, and how to read it."""

    title: str
    header: list[str]
    rows: list[list[str]]
    about: str


def parts_of(analysis: Analysis) -> list[Part]:
    """All tables, those without a row left out."""
    made = [_raters(analysis), _agreement(analysis), _means(analysis), _pairs(analysis), _metrics(analysis)]
    return [part for part in made if part.rows]


def _raters(analysis: Analysis) -> Part:
    kept = len(analysis.kept)
    rows = [
        [r.name, str(r.rated), f"{r.asked - r.wrong} of {r.asked}", f"left out: {r.out}" if r.out else "counts"]
        for r in analysis.raters
    ]
    about = f"{kept} of {len(analysis.raters)} raters count."
    if kept < 2:
        about += " Agreement needs two."
    return Part("Raters", ["rater", "prompts rated", "attention checks", ""], rows, about)


def _agreement(analysis: Analysis) -> Part:
    rows = [
        [question, level, interval(found), str(found.count)]
        for question, levels in analysis.alpha.items()
        for level, found in levels.items()
    ]
    about = (
        "Krippendorff’s alpha with a 95 % bootstrap interval over pictures: 1 is perfect agreement, 0 what "  # noqa: RUF001
        "chance gives. Prompts: those that two or more have rated."
    )
    return Part("Agreement", ["question", "level", "alpha", "prompts"], rows, about)


def _means(analysis: Analysis) -> Part:
    points = {question.key: question.points for question in analysis.key.questions}
    runs = list(analysis.key.runs)
    rows = [
        [f"{question} (1 to {points[question]})", *(interval(found[run]) for run in runs)]
        for question, found in analysis.means.items()
    ]
    about = "Mean over pictures of the mean over raters, with a 95 % bootstrap interval over pictures."
    return Part("Mean ratings", ["question", *runs], rows, about)


def _pairs(analysis: Analysis) -> Part:
    rows = [[p.question, f"{p.one} minus {p.other}", interval(p.difference, "+.2f"), *_test(p)] for p in analysis.pairs]
    about = "Wilcoxon signed-rank tests over pictures, two-sided; Holm’s correction is over all of this table’s tests."  # noqa: RUF001
    return Part("Paired", ["question", "difference", "mean", "pictures", "p", "p (Holm)"], rows, about)


def _metrics(analysis: Analysis) -> Part:
    questions = list(analysis.spearman)
    keys = [key for key in METRICS if any(key in found for found in analysis.spearman.values())]
    rows = [
        [
            METRICS[key].name,
            METRICS[key].better or NOTHING,
            *(interval(found[key], "+.2f") if key in found else NOTHING for found in analysis.spearman.values()),
        ]
        for key in keys
    ]
    about = (
        "Spearman’s correlation of mean ratings with each metric, over pictures and runs, with a 95 % bootstrap "  # noqa: RUF001
        "interval over pictures. Where lower is better, a metric that agrees with people has a negative one."
    )
    return Part("Ratings and metrics", ["metric", "better", *questions], rows, about)


def interval(estimate: Estimate, form: str = ".2f") -> str:
    """A value and its interval, `3.20 [2.90, 3.50]`; a dash where it is not known."""
    if math.isnan(estimate.value):
        return NOTHING
    return f"{estimate.value:{form}} [{estimate.low:{form}}, {estimate.high:{form}}]"


def _test(pair: Pair) -> list[str]:
    return [str(pair.difference.count), _p(pair.p), _p(pair.p_holm)]


def _p(value: float) -> str:
    return NOTHING if math.isnan(value) else "< 0.001" if value < 0.001 else f"{value:.3f}"


# --- where they are shown -----------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Shown:
    """The tables for a terminal; nothing in names is taken for markup or steers it."""

    analysis: Analysis

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        yield from self._tables(options.encoding)

    def _tables(self, encoding: str) -> Iterator[RenderableType]:
        def text(value: str) -> Text:
            return Text(visible(value).encode(encoding, "backslashreplace").decode(encoding), overflow="fold")

        for part in parts_of(self.analysis):
            table = Table(
                title=text(part.title), title_justify="left", caption=text(part.about), caption_justify="left"
            )
            for name in part.header:
                table.add_column(text(name), overflow="fold")
            for row in part.rows:
                table.add_row(*map(text, row))
            yield table
            yield Padding(text(part.about), (0, 0, 1, 0))


def markdown(analysis: Analysis) -> str:
    """The tables as a Markdown file."""
    lines = [f"# Study {analysis.key.study}", ""]
    for part in parts_of(analysis):
        lines += [f"## {part.title}", "", _row(part.header), f"|{' --- |' * len(part.header)}"]
        lines += [*map(_row, part.rows), "", part.about, ""]
    return "\n".join(lines)


def _row(cells: list[str]) -> str:
    return f"| {' | '.join(map(_escaped, cells))} |"


def _escaped(text: str) -> str:
    """Text that Markdown shows as it is; an interval is left alone."""
    if re.fullmatch(r"[-+.,\d \[\]]*", text):
        return text
    return "".join(f"\\{c}" if c in "\\`*_{}[]<>#|!&~$" else c for c in visible(text))
