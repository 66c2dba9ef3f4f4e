"""What a page shows of one image."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ph2p.evaluation.formatting import NOTHING, Show, count, decimal, loss
from ph2p.evaluation.metrics import Metric, shown_in
from ph2p.report.chart import Chart, Series, place
from ph2p.report.pictures import inside
from ph2p.report.records import Record, listed, mapping, number, parsed, read_if_there, warnings_in

SHOWN_CANDIDATES = 50
RENDERINGS = ("renderings", "caption_renderings")


@dataclass(frozen=True)
class Item:
    """A name and a value on the page, with a hint to hover, a note beside it and a grade that colours it."""

    name: str
    value: str
    hint: str = ""
    note: str = ""
    grade: str = ""


def picture_names(record: Record) -> Iterator[object]:
    files = mapping(record.get("files"))
    yield files.get("target")
    for key in RENDERINGS:
        yield from listed(files.get(key))


def make_card(folder: Path, record: Record, sources: dict[str, str]) -> dict[str, Any]:
    """Gather what the page shows of one image."""
    files = mapping(record.get("files"))
    found = parsed(read_if_there(inside(folder, files.get("candidates"))))
    candidates = [mapping(row) for row in listed(found.get("candidates"))]

    def source(name: object) -> str | None:
        return sources.get(name) if isinstance(name, str) else None

    return {
        "image_id": str(record["image_id"]),
        "prompt": str(record.get("prompt") or ""),
        "caption": str(record.get("caption") or ""),
        "target": source(files.get("target")),
        "references": [str(text) for text in listed(record.get("references"))],
        "notes": [str(note) for note in listed(record.get("notes"))],
        "warnings": warnings_in(record),
        **{key: [source(name) for name in listed(files.get(key))] for key in RENDERINGS},
        "facts": _facts(record),
        "chart": _chart(record, found, candidates),
        "candidates": [_candidate(row) for row in candidates[:SHOWN_CANDIDATES]],
        "candidates_total": len(candidates),
    }


def _facts(record: Record) -> list[Item]:
    """List an image's values in the table's order, each with what is shown beside it."""
    facts = [_fact(record, metric) for metric in shown_in("card")]
    return [fact for fact in facts if fact.value != NOTHING]


def _fact(record: Record, metric: Metric) -> Item:
    value = number(record, metric.key)
    notes = [f"{label} {_show_as(metric, key)(other)}" for label, key in metric.beside
             if (other := number(record, key)) is not None]  # fmt: skip
    unit = f" {metric.unit}" if metric.unit == "MiB" and value is not None else ""
    return Item(metric.name, metric.show(value) + unit, metric.about, notes[0] if notes else "", metric.grade(value))


def _show_as(metric: Metric, key: str) -> Show:
    """How a value beside a metric is written: losses as losses, everything else as the metric."""
    return loss if key.startswith("loss") else metric.show


def _candidate(row: dict[str, Any]) -> dict[str, str]:
    return {
        "prompt": str(row.get("prompt") or ""),
        "loss": loss(number(row, "loss")),
        "clip": decimal(number(row, "clip_similarity")),
        "epoch": count(number(row, "epoch")),
    }


def _chart(record: Record, found: dict[str, Any], candidates: Sequence[dict[str, Any]]) -> Chart | None:
    """The curves of an image, apart by their draws, and right of them the losses that decide."""
    known = [(epoch, row.get("loss")) for row in candidates if (epoch := number(row, "epoch")) is not None]
    series = [
        Series("optimised", "each epoch’s draws", list(enumerate(listed(found.get("loss_curve")), 1))),  # noqa: RUF001
        Series("candidates", "validation draws", known, joined=False),
        Series("search", "search draws", list(enumerate(listed(found.get("search_curve"))))),
    ]
    levels = {
        "empty prompt": ("upper", "loss_empty"),
        "this prompt": ("found", "loss"),
        "soft prompt": ("soft", "loss_soft"),
        "true caption": ("lower", "loss_caption"),
        "best reference": ("lower", "loss_reference"),
    }
    return place(series, [(kind, name, number(record, key)) for name, (kind, key) in levels.items()])
