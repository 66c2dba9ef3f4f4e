"""The pages of a results folder: up to `CARDS` images each, the first with what concerns the whole run.

The page of up to `EMBEDDED` images is one HTML text that holds everything. Of more the pictures are files beside it.
"""

import base64
import hashlib
import json
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass
from datetime import datetime
from functools import cached_property
from pathlib import Path
from typing import Any

import yaml
from jinja2 import Environment, FileSystemLoader, StrictUndefined, Template

from ph2p.evaluation.failures import SIGNS
from ph2p.evaluation.metrics import TABLE, shown_in
from ph2p.files import write_whole
from ph2p.report.card import ON_CARD, SORTS, Item, make_card, picture_names, way_of, ways_of
from ph2p.report.command import Commands
from ph2p.report.pictures import Pictures, inside
from ph2p.report.records import Record, mapping, over_images, read_if_there, reason, succeeded, warnings_in

CARDS = 2000  # on a page: so many are sorted and filtered at once
EMBEDDED = 200  # images whose pictures a page itself holds
SHOWN_FAILURES = 200
TEMPLATES = Path(__file__).parent / "templates"


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

    @cached_property
    def command(self) -> Commands:
        return Commands(self.folder, self.config)

    @property
    def title(self) -> str:
        return str(self.config.get("name") or self.folder.resolve().name)


def escaping_template(folder: Path, name: str) -> Template:
    """A template of a page: whatever is filled in is escaped, and a name that is not given is an error."""
    environment = Environment(
        loader=FileSystemLoader(folder),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    return environment.get_template(name)


def script_of(file: Path) -> dict[str, str]:
    """A script as a page takes it in: its text and, for the policy that lets no other run, the hash of it."""
    script = file.read_text(encoding="utf-8")
    return {"script": script, "digest": base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()}


def write_pages(run: Run, cards: int = CARDS) -> Path:
    """Write `index.html`, `index-2.html`, ... and return the first; a page that is already right is left alone.

    Each has at most so many `cards`. Raises OSError when one cannot be written.
    """
    pages = max(1, -(-len(run.good) // cards))
    for page in range(1, pages + 1):
        _write_page(run, page, range(cards * (page - 1), min(cards * page, len(run.good))), pages)
    for old in run.folder.glob("index-*.html"):
        if old.stem.removeprefix("index-").isdecimal() and int(old.stem.removeprefix("index-")) > pages:
            old.unlink(missing_ok=True)
    return run.folder / "index.html"


def page_name(page: int) -> str:
    return "index.html" if page == 1 else f"index-{page}.html"


def _write_page(run: Run, page: int, span: range, pages: int) -> None:
    """Write one page, unless what is there was made from the same records, pictures and templates."""
    chunk = [run.good[k] for k in span]
    head = _head(run, page) | _neighbours(page, span, pages)
    state, path = _state(run, chunk, head), run.folder / page_name(page)
    names = [name for record in chunk for name in picture_names(record)]
    pictures = Pictures(run.folder, embed=len(run.good) <= EMBEDDED)
    if state in _start_of(path) and not pictures.lacks(names):
        return
    sources = pictures.addresses(names)
    html = escaping_template(TEMPLATES, "report.html.j2").render(
        **head,
        **script_of(TEMPLATES / "report.js"),
        state=state,
        cards=[make_card(run.folder, record, sources, run.command) for record in chunk],
        table=TABLE,
        signs=SIGNS,
        on_card=ON_CARD,
        sorts=[
            ("order", "order of the run"),
            ("name", "file name"),
            *((key, name) for key, (name, _) in SORTS.items()),
        ],
    )
    write_whole(path, html.encode("utf-8", "backslashreplace"))


def _start_of(path: Path) -> str:
    """The first bytes of a page as text, where its state stands; nothing when there is no page."""
    with suppress(OSError), path.open("rb") as file:
        return file.read(600).decode("utf-8", "replace")
    return ""


def _state(run: Run, chunk: Sequence[Record], head: dict[str, Any]) -> str:
    """A hash of all that a page is made from; a new rendering shows in the time of its folder."""
    places = [inside(run.folder, mapping(record.get("files")).get("target")) for record in chunk]
    times = [place.parent.stat().st_mtime_ns if place and place.parent.exists() else 0 for place in places]
    code = [read_if_there(file) for file in sorted(TEMPLATES.iterdir())]
    content = json.dumps([code, times, chunk, head], sort_keys=True, default=asdict)
    return hashlib.sha256(content.encode("utf-8", "surrogatepass")).hexdigest()


def _head(run: Run, page: int) -> dict[str, Any]:
    """What stands around the cards: on the first page all that concerns the whole run, otherwise only its name."""
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


def _neighbours(page: int, span: range, pages: int) -> dict[str, Any]:
    """The other pages. A full page that is not the first stays as it is when more images are added."""
    links = [("first", 1), ("previous", page - 1)] if page > 1 else []
    links += [("next", page + 1)] if page < pages else []
    numbers = [(str(k), page_name(k)) for k in range(1, pages + 1)] if page == 1 and pages > 1 else []
    return {
        "page": page,
        "span": (span.start + 1, span.stop),
        "links": [(name, page_name(k)) for name, k in links],
        "pages": numbers,
    }


def _about(run: Run) -> list[tuple[str, str]]:
    """Say how the results came about: (name, value) of method, generator and date, each where known."""
    methods = sorted({str(record["method"]) for record in run.records if record.get("method")})
    files = [run.folder / "config.yaml", *sorted((run.folder / "results").glob("part-*.jsonl"))]
    times = [file.stat().st_mtime for file in files if file.exists()]
    ways = ways_of(run.good)
    about = {
        "method": ", ".join(methods) or _named(run.config.get("method")),
        "generator": _named(run.config.get("generator")),
        "run on": f"{datetime.fromtimestamp(times[0]):%d %B %Y, %H:%M}" if times else "",
        "measured with": way_of(next(filter(way_of, run.good))) if len(ways) == 1 else "",
    }
    return [(name, value) for name, value in about.items() if value]


def _named(node: object) -> str:
    """Name a group of the configuration: its `name`, or the end of its path."""
    if isinstance(node, dict):
        node = node.get("name") or node.get("path")
    return "/".join(Path(str(node)).parts[-2:]) if node else ""


def _warnings(run: Run) -> list[str]:
    """What concerns several images: prompts with warnings, and values that do not compare."""
    warned, ways = sum(bool(warnings_in(record)) for record in run.good), ways_of(run.good)
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
