"""What a page shows of one image: on its card, and in its detail view."""

import hashlib
import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from ph2p.evaluation.formatting import NOTHING, Show, count, decimal, loss, percent
from ph2p.evaluation.metrics import METRICS, Metric, shown_in
from ph2p.report.chart import Chart, Series, place
from ph2p.report.pictures import inside
from ph2p.report.records import Record, listed, mapping, number, parsed, read_if_there, warnings_in
from ph2p.report.trail import series_of, steps_of

SHOWN_CANDIDATES = 50
ON_CARD = 3  # renderings beside the target
RENDERINGS = ("renderings", "caption_renderings")
# What cards are sorted by: the name of the attribute, what the page calls it, and the key of a record.
SORTS = {
    "gap": ("gap closed", "gap_closed"),
    "words": ("words found", "word_recall"),
    "clip": ("CLIP similarity", "clip_similarity"),
    "loss": ("loss", "loss"),
    "length": ("length in words", "prompt_words"),
    "samples": ("samples", "samples"),
}
SHORT = ("word_recall", "clip_similarity", "loss", "samples")  # the values on a card itself


@dataclass(frozen=True)
class Item:
    """A name and a value on the page, with a hint to hover, a note beside it and a grade that colours it."""

    name: str
    value: str
    hint: str = ""
    note: str = ""
    grade: str = ""


@dataclass(frozen=True)
class Gap:
    """The share of the gap as a card shows it first: in percent as text, and the width of its bar."""

    text: str
    width: int
    low: bool
    about: str

    @classmethod
    def of(cls, record: Record) -> "Gap":
        value = number(record, "gap_closed")
        width = 0 if value is None else round(100 * min(1.0, max(0.0, value)))
        return cls(percent(value), width, value is not None and value <= 0, METRICS["gap_closed"].about)


def picture_names(record: Record) -> Iterator[object]:
    files = mapping(record.get("files"))
    yield files.get("target")
    for key in RENDERINGS:
        yield from listed(files.get(key))


def make_card(
    folder: Path, record: Record, sources: dict[str, str], command: Callable[[Record], str]
) -> dict[str, Any]:
    """Gather what the page shows of one image."""
    files = mapping(record.get("files"))
    found = parsed(read_if_there(inside(folder, files.get("candidates"))))
    candidates = [mapping(row) for row in listed(found.get("candidates"))]

    def source(name: object) -> str | None:
        return sources.get(name) if isinstance(name, str) else None

    facts = _facts(record)
    return {
        "image_id": str(record["image_id"]),
        "anchor": anchor_of(str(record["image_id"])),
        "sort": _keys(record),
        "gap": Gap.of(record),
        "prompt": str(record.get("prompt") or ""),
        "caption": str(record.get("caption") or ""),
        "target": source(files.get("target")),
        "references": [str(text) for text in listed(record.get("references"))],
        "notes": [str(note) for note in listed(record.get("notes"))],
        "warnings": warnings_in(record),
        **{key: [source(name) for name in listed(files.get(key))] for key in RENDERINGS},
        "on_card": ON_CARD,
        "facts": list(facts.values()),
        "short": [replace(facts[key], note="") for key in SHORT if key in facts],
        "chart": _chart(record, series_of(found, candidates)),
        "steps": steps_of(found),
        "restarts": int(number(mapping(found.get("trail")), "restarts") or 1),
        "alternatives": [_alternative(mapping(row)) for row in listed(record.get("alternatives"))],
        "candidates": [_candidate(row) for row in candidates[:SHOWN_CANDIDATES]],
        "candidates_total": len(candidates),
        "parameters": _parameters(record),
        "command": command(record),
        "alone": "data.path=" in command(record),
    }


def anchor_of(image_id: str) -> str:
    """The name of an image in an address: its own as far as it is plain, and a hash that keeps two apart."""
    plain = re.sub(r"[^A-Za-z0-9]+", "-", image_id).strip("-")[:40]
    digest = hashlib.sha256(image_id.encode("utf-8", "surrogatepass")).hexdigest()[:8]
    return f"{plain}-{digest}" if plain else digest


def _keys(record: Record) -> dict[str, str]:
    """What a card is sorted and filtered by, where it is known."""
    known = {name: number(record, key) for name, (_, key) in SORTS.items()}
    return {"name": str(record["image_id"])} | {
        name: f"{value:.6g}" for name, value in known.items() if value is not None
    }


def _facts(record: Record) -> dict[str, Item]:
    """An image's values in the table's order, each with what is shown beside it."""
    facts = {metric.key: _fact(record, metric) for metric in shown_in("card")}
    return {key: fact for key, fact in facts.items() if fact.value != NOTHING}


def _fact(record: Record, metric: Metric) -> Item:
    value = number(record, metric.key)
    notes = [f"{label} {_show_as(metric, key)(other)}" for label, key in metric.beside
             if (other := number(record, key)) is not None]  # fmt: skip
    unit = f" {metric.unit}" if metric.unit == "MiB" and value is not None else ""
    return Item(metric.name, metric.show(value) + unit, metric.about, notes[0] if notes else "", metric.grade(value))


def _show_as(metric: Metric, key: str) -> Show:
    """How a value beside a metric is written: losses as losses, everything else as the metric."""
    return loss if key.startswith("loss") else metric.show


def _parameters(record: Record) -> list[Item]:
    """How an image's prompt was found and measured, as far as its record says."""
    rows = ", ".join(f"{key} {value}" for key, value in mapping(record.get("microbatch")).items())
    tokens = len(listed(record.get("token_ids")))
    known = {
        "method": record.get("method"),
        "seed": record.get("seed"),
        "tokens": tokens or None,
        "read from": record.get("source"),
        "measured with": way_of(record),
        "rows at once": rows,
        "content": record.get("content"),
        "settings": record.get("settings"),
    }
    return [Item(name, str(value)) for name, value in known.items() if value not in (None, "")]


def way_of(record: Record) -> str:
    """How an image was measured, as one text; of the scorer's path what tells it from others."""
    known = dict(mapping(record.get("measured_with")))
    if known.get("scorer"):
        known["scorer"] = "/".join(Path(str(known["scorer"])).parts[-2:])
    return ", ".join(f"{key} {value}" for key, value in known.items())


def ways_of(records: Sequence[Record]) -> list[str]:
    """The different ways in which images were measured, in full: of one way alone their values compare."""
    ways = [mapping(record.get("measured_with")) for record in records]
    return sorted({", ".join(f"{key} {value}" for key, value in way.items()) for way in ways if way})


def _candidate(row: dict[str, Any]) -> dict[str, str]:
    return {
        "prompt": str(row.get("prompt") or ""),
        "loss": loss(number(row, "loss")),
        "clip": decimal(number(row, "clip_similarity")),
        "epoch": count(number(row, "epoch")),
    }


def _alternative(row: dict[str, Any]) -> dict[str, str]:
    return {
        "prompt": str(row.get("prompt") or ""),
        "loss": loss(number(row, "loss")),
        "gap": percent(number(row, "gap_closed")),
    }


def _chart(record: Record, series: Sequence[Series]) -> Chart | None:
    """The losses of an image, apart by their draws, and right of them the losses that decide."""
    levels = {
        "empty prompt": ("upper", "loss_empty"),
        "this prompt": ("found", "loss"),
        "soft prompt": ("soft", "loss_soft"),
        "true caption": ("lower", "loss_caption"),
        "best reference": ("lower", "loss_reference"),
    }
    return place(series, [(kind, name, number(record, key)) for name, (kind, key) in levels.items()])
