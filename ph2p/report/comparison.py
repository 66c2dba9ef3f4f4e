"""Several results folders side by side: a row a picture, a column a run, and above them what differs over all."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean
from typing import Any

from ph2p.errors import UserError
from ph2p.evaluation.failures import SIGNS
from ph2p.evaluation.formatting import NOTHING
from ph2p.evaluation.intervals import confidence_interval
from ph2p.evaluation.metrics import METRICS, TABLE, Metric
from ph2p.files import plain_disk_errors, printable, write_whole
from ph2p.report.card import Gap, Item, ways_of
from ph2p.report.page import EMBEDDED, TEMPLATES, escaping_template
from ph2p.report.pictures import Pictures
from ph2p.report.records import Record, finished, labels_of, listed, mapping, number, warnings_in

COMPARED = (
    "gap_closed",
    "word_recall",
    "word_precision",
    "clip_similarity",
    "loss",
    "prompt_words",
    "samples",
    "seconds",
)
SHOWN = ("word_recall", "clip_similarity", "loss")  # in a cell
RENDERINGS = 3  # of a prompt
Runs = Mapping[str, Mapping[str, Record]]  # by label, the records by image


@dataclass(frozen=True)
class Difference:
    """A run's mean difference from the first one, as text, and whether it is for the better (good) or worse (poor)."""

    text: str
    grade: str


@dataclass(frozen=True)
class Line:
    """One metric in the head: the runs' means over the pictures that all have, and the paired differences."""

    name: str
    about: str
    means: list[str]
    differences: list[Difference]
    pictures: int


def write_comparison(folders: Sequence[Path], page: Path) -> Path:
    """Write the page that compares results folders; the first one is what the others are compared with.

    Raises UserError for a folder that is none or stands twice, where no image is in two of them, and for the disk.
    """
    if page.suffix not in (".html", ".htm"):
        raise UserError(f"--compare {printable(page)}: give the name of a page, such as comparison.html")
    if len({folder.resolve() for folder in folders}) < max(2, len(folders)):
        raise UserError(
            f"--compare: give two or more results folders, each once, not {' '.join(map(printable, folders))}"
        )
    known = {folder: finished(folder) for folder in folders}
    labels = labels_of(known)
    runs = {labels[folder]: records for folder, records in known.items()}
    images = list(dict.fromkeys(image for records in runs.values() for image in records))
    if not any(sum(image in records for records in runs.values()) > 1 for image in images):
        raise UserError("--compare: no image that two runs finished; give runs on the same images")
    with plain_disk_errors(page):
        page.parent.mkdir(parents=True, exist_ok=True)
        html = escaping_template(TEMPLATES, "comparison.html.j2").render(
            runs=[(label, printable(folder)) for folder, label in labels.items()],
            lines=lines_of(runs),
            rows=_rows(images, {labels[folder]: folder for folder in folders}, runs, page.parent),
            warnings=_warnings(runs),
            renderings=RENDERINGS,
            table=TABLE,
            signs=SIGNS,
        )
        write_whole(page, html.encode("utf-8", "backslashreplace"))
    return page


# --- the head -----------------------------------------------------------------------------------------------------


def lines_of(runs: Runs) -> list[Line]:
    """The head's lines: of each metric that all runs know for some picture."""
    return [line for key in COMPARED if (line := _line(METRICS[key], list(runs.values())))]


def _line(metric: Metric, runs: Sequence[Mapping[str, Record]]) -> Line | None:
    """Means over the pictures for which every run has the metric, so that they compare; None without any."""
    values = [{image: value for image, record in records.items() if (value := number(record, metric.key)) is not None}
              for records in runs]  # fmt: skip
    common = [image for image in values[0] if all(image in some for some in values)]
    if not common:
        return None
    means = [fmean(some[image] for image in common) for some in values]
    first, *others = values
    differences = [_difference(metric, [some[image] - first[image] for image in common]) for some in others]
    return Line(metric.name, metric.about, [metric.show(mean) for mean in means], differences, len(common))


def _difference(metric: Metric, values: Sequence[float]) -> Difference:
    """The mean of paired differences, with a 95 % bootstrap interval over pictures."""
    low, high = confidence_interval(values)
    text = f"{_signed(metric, fmean(values))} [{_signed(metric, low)}, {_signed(metric, high)}]"
    if len(values) < 2 or low <= 0 <= high or not metric.better:
        return Difference(text, "")
    return Difference(text, "good" if (low > 0) == (metric.better == "higher") else "poor")


def _signed(metric: Metric, value: float) -> str:
    text = metric.show(abs(value))
    return text if not any(digit in text for digit in "123456789") else f"{'+' if value > 0 else '−'}{text}"  # noqa: RUF001


def _warnings(runs: Runs) -> list[str]:
    """What makes values of different runs hard to compare."""
    texts, every = [], [record for records in runs.values() for record in records.values()]
    if len(ways := ways_of(every)) > 1:
        texts.append(f"The runs were not measured alike, so their values do not compare: {'; '.join(ways)}")
    images = {image for records in runs.values() for image in records}
    found = [{records[image].get("content") for records in runs.values() if image in records} for image in images]
    if differ := sum(len(contents) > 1 for contents in found):
        texts.append(f"{differ} pictures differ between the runs in size or content under the same name")
    return texts


# --- the rows -----------------------------------------------------------------------------------------------------


def _rows(images: Sequence[str], folders: Mapping[str, Path], runs: Runs, place: Path) -> list[dict[str, Any]]:
    embed = len(images) * len(runs) <= EMBEDDED
    sources = {}
    for label, folder in folders.items():
        names = [name for record in runs[label].values() for name in _names(record)]
        sources[label] = Pictures(folder, embed, place).addresses(names)
    return [_row(image, runs, sources) for image in images]


def _names(record: Record) -> list[str]:
    """The pictures that the page shows of a record, the target first, which may be missing."""
    files = mapping(record.get("files"))
    return [str(name or "") for name in (files.get("target"), *listed(files.get("renderings"))[:RENDERINGS])]


def _row(image: str, runs: Runs, sources: Mapping[str, Mapping[str, str]]) -> dict[str, Any]:
    known = {label: records[image] for label, records in runs.items() if image in records}
    gaps = {label: value for label, record in known.items() if (value := number(record, "gap_closed")) is not None}
    best = {label for label, gap in gaps.items() if min(gaps.values()) < gap == max(gaps.values())}
    targets = [sources[label].get(_names(record)[0]) for label, record in known.items()]
    captions = [str(record["caption"]) for record in known.values() if record.get("caption")]
    return {
        "image_id": image,
        "target": next(filter(None, targets), None),
        "caption": next(iter(captions), ""),
        "cells": [_cell(label, known.get(label), sources[label], label in best) for label in runs],
    }


def _cell(label: str, record: Record | None, sources: Mapping[str, str], best: bool) -> dict[str, Any]:
    if record is None:
        return {"label": label, "found": False}
    right = number(record, "word_precision")
    wrong = {"words wrong": METRICS["word_precision"].show(None if right is None else 1 - right)}
    first, *others = (METRICS[key] for key in SHOWN)
    values = {first.name: first.show(number(record, first.key))} | wrong
    values |= {metric.name: metric.show(number(record, metric.key)) for metric in others}
    return {
        "label": label,
        "found": True,
        "best": best,
        "gap": Gap.of(record),
        "prompt": str(record.get("prompt") or ""),
        "renderings": [sources.get(name) for name in _names(record)[1:]],
        "facts": [Item(name, value) for name, value in values.items() if value != NOTHING],
        "warnings": warnings_in(record),
    }
