"""The pages of a results folder: up to `CARDS` images each, the first with what concerns the whole run.

A folder of one page is one HTML text that holds everything. Of several pages the pictures are files beside them.
"""

import hashlib
import json
from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass
from datetime import datetime
from functools import cached_property
from pathlib import Path
from typing import Any

import yaml
from jinja2 import Environment, FileSystemLoader, StrictUndefined, Template

from ph2p.evaluation.formatting import NOTHING, Show, count, decimal, loss
from ph2p.evaluation.metrics import TABLE, Metric, shown_in
from ph2p.files import write_whole
from ph2p.report.chart import Chart, Series, place
from ph2p.report.pictures import Pictures, inside
from ph2p.report.records import (
    Record,
    listed,
    mapping,
    number,
    over_images,
    parsed,
    read_if_there,
    reason,
    succeeded,
    warnings_in,
)

CARDS = 100  # on a page
SHOWN_CANDIDATES = 50
SHOWN_FAILURES = 200
TEMPLATES = Path(__file__).parent / "templates"
RENDERINGS = ("renderings", "caption_renderings")


@dataclass(frozen=True)
class Item:
    """A name and a value on the page, with a hint to hover, a note beside it and a grade that colours it."""

    name: str
    value: str
    hint: str = ""
    note: str = ""
    grade: str = ""


@dataclass(frozen=True)
class Run:
    """A results folder as it is read once for all pages."""

    folder: Path
    records: Sequence[Record]

    @cached_property
    def good(self) -> list[Record]:
        return [record for record in self.records if succeeded(record)]

    @cached_property
    def failed(self) -> list[Record]:
        return [record for record in self.records if not succeeded(record)]

    @cached_property
    def config_text(self) -> str:
        return read_if_there(self.folder / "config.yaml")

    @cached_property
    def config(self) -> dict[str, Any]:
        with suppress(yaml.YAMLError):
            return mapping(yaml.safe_load(self.config_text))
        return {}

    @property
    def title(self) -> str:
        return str(self.config.get("name") or self.folder.resolve().name)


def write_pages(run: Run) -> Path:
    """Write `index.html`, `index-2.html`, ... and return the first; a page that is already right is left alone.

    Raises OSError when one cannot be written.
    """
    environment = Environment(
        loader=FileSystemLoader(TEMPLATES),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    template = environment.get_template("report.html.j2")
    pages = max(1, -(-len(run.good) // CARDS))
    for page in range(1, pages + 1):
        _write_page(run, template, page, pages)
    for old in run.folder.glob("index-*.html"):
        if old.stem.removeprefix("index-").isdecimal() and int(old.stem.removeprefix("index-")) > pages:
            old.unlink(missing_ok=True)
    return run.folder / "index.html"


def page_name(page: int) -> str:
    return "index.html" if page == 1 else f"index-{page}.html"


def _write_page(run: Run, template: Template, page: int, pages: int) -> None:
    """Write one page, unless what is there was made from the same records, pictures and template."""
    chunk = run.good[CARDS * (page - 1) : CARDS * page]
    head = _head(run, page) | _neighbours(run, page, pages)
    state, path = _state(run, template, chunk, head), run.folder / page_name(page)
    if state in _start_of(path):
        return
    names = [name for record in chunk for name in _picture_names(record)]
    sources = Pictures(run.folder, embed=pages == 1).addresses(names)
    html = template.render(
        **head, state=state, cards=[_card(run.folder, record, sources) for record in chunk], legend=TABLE
    )
    write_whole(path, html.encode("utf-8", "backslashreplace"))


def _start_of(path: Path) -> str:
    """The first bytes of a page as text, where its state stands; nothing when there is no page."""
    with suppress(OSError), path.open("rb") as file:
        return file.read(600).decode("utf-8", "replace")
    return ""


def _state(run: Run, template: Template, chunk: Sequence[Record], head: dict[str, Any]) -> str:
    """A hash of all that a page is made from; a picture painted anew shows in the time of its folder."""
    places = [inside(run.folder, mapping(record.get("files")).get("target")) for record in chunk]
    times = [place.parent.stat().st_mtime_ns if place and place.parent.exists() else 0 for place in places]
    code = read_if_there(Path(str(template.filename)))
    content = json.dumps([code, times, chunk, head], sort_keys=True, default=asdict)
    return hashlib.sha256(content.encode("utf-8", "surrogatepass")).hexdigest()


def _head(run: Run, page: int) -> dict[str, Any]:
    """What stands around the cards: on the first page all that concerns the whole run, else only its name."""
    first = page == 1
    return {
        "title": run.title,
        "images": len(run.good) if first else 0,
        "about": _about(run) if first else [],
        "totals": _totals(run) if first and run.records else [],
        "warnings": _warnings(run) if first else [],
        "failed": [(str(r["image_id"]), reason(r)) for r in run.failed[:SHOWN_FAILURES]] if first else [],
        "failed_total": len(run.failed) if first else 0,
        "config": run.config_text if first else "",
    }


def _neighbours(run: Run, page: int, pages: int) -> dict[str, Any]:
    """The other pages. A full page that is not the first stays as it is when more images are added."""
    links = [("first", 1), ("previous", page - 1)] if page > 1 else []
    links += [("next", page + 1)] if page < pages else []
    numbers = [(str(k), page_name(k)) for k in range(1, pages + 1)] if page == 1 and pages > 1 else []
    span = (CARDS * (page - 1) + 1, min(CARDS * page, len(run.good)))
    return {"page": page, "span": span, "links": [(name, page_name(k)) for name, k in links], "pages": numbers}


def _about(run: Run) -> list[tuple[str, str]]:
    """Say how the results came about: (name, value) of method, generator and date, each where known."""
    methods = sorted({str(record["method"]) for record in run.records if record.get("method")})
    files = [run.folder / "config.yaml", *sorted((run.folder / "results").glob("part-*.jsonl"))]
    times = [file.stat().st_mtime for file in files if file.exists()]
    ways = _ways(run)
    about = {
        "method": ", ".join(methods) or _named(run.config.get("method")),
        "generator": _named(run.config.get("generator")),
        "run on": f"{datetime.fromtimestamp(times[0]):%d %B %Y, %H:%M}" if times else "",
        "measured with": ways[0] if len(ways) == 1 else "",
    }
    return [(name, value) for name, value in about.items() if value]


def _named(node: object) -> str:
    """Name a group of the configuration: its `name`, or the end of its path."""
    if isinstance(node, dict):
        node = node.get("name") or node.get("path")
    return "/".join(Path(str(node)).parts[-2:]) if node else ""


def _ways(run: Run) -> list[str]:
    """The different ways in which the images were measured, each as one text."""
    return sorted({_way(record) for record in run.good} - {""})


def _way(record: Record) -> str:
    return ", ".join(f"{key} {value}" for key, value in mapping(record.get("measured_with")).items())


def _warnings(run: Run) -> list[str]:
    """What concerns several images: prompts with warnings, and values that do not compare."""
    warned, ways = sum(bool(warnings_in(record)) for record in run.good), _ways(run)
    texts = [f"{warned} of {len(run.good)} prompts with a warning: see their cards"] if warned else []
    if len(ways) > 1:
        texts.append(f"Not all images were measured alike, so their values do not compare: {'; '.join(ways)}")
    return texts


def _totals(run: Run) -> list[Item]:
    """Sum up a run for the head of the page, leaving out what no record knows."""
    note = f"{len(run.failed)} failed" if run.failed else ""
    totals = [Item("images", str(len(run.good)), "images with a prompt", note)]
    for metric in shown_in("total"):
        if (value := over_images(metric, run.good)) is not None:
            name = metric.name if metric.over == "sum" else f"{metric.over} {metric.name}"
            totals.append(Item(name, metric.show(value), metric.about, "all images" if metric.over == "sum" else ""))
    return totals


# --- one image ----------------------------------------------------------------------------------------------------


def _picture_names(record: Record) -> Iterator[object]:
    files = mapping(record.get("files"))
    yield files.get("target")
    for key in RENDERINGS:
        yield from listed(files.get(key))


def _card(folder: Path, record: Record, sources: dict[str, str]) -> dict[str, Any]:
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
