"""The results folder, read back: records, a table for the terminal, and one self-contained HTML page.

Nothing here loads a model: whatever a run left behind, also an unfinished one, can be looked at.
"""

import base64
import io
import json
import math
import os
from collections.abc import Sequence
from contextlib import suppress
from datetime import datetime
from itertools import accumulate, pairwise
from pathlib import Path
from statistics import fmean, median
from typing import Any

import yaml
from jinja2 import Environment, FileSystemLoader, StrictUndefined
from PIL import Image
from rich.table import Table
from rich.text import Text

from ph2p.errors import UserError

Record = dict[str, Any]

SHOWN_CANDIDATES = 50
LARGEST_EMBEDDED = 150_000  # bytes; larger pictures are shrunk, or a page of a hundred would be slow to open
SHRUNK_SIDE = 640  # pixels: sharp at the size a card shows
EMBEDDED_KINDS = ("image/png", "image/jpeg", "image/webp")
NOTHING = "–"  # noqa: RUF001 - a dash where a figure is not known


# --- records --------------------------------------------------------------------------------------


def read_results(folder: str | Path) -> list[Record]:
    """Read the records of a results folder, in the order in which the images were first written.

    The last record of an image wins: a run that was continued has tried it again. Lines that are no record,
    such as the torn last one of a killed run, are passed over. Raises UserError when there is no such folder.
    """
    folder = Path(folder)
    if not folder.is_dir():
        raise UserError(f"{folder}: no such results folder: give the one that a run has written")
    records: dict[str, Record] = {}
    for part in sorted((folder / "results").glob("part-*.jsonl")):
        for line in _read(part).split("\n"):  # splitlines() also cuts at characters that JSON may hold
            record = _parsed(line)
            if "image_id" in record:
                records[str(record["image_id"])] = record
    return list(records.values())


def _parsed(line: str) -> Record:
    with suppress(json.JSONDecodeError):
        record = json.loads(line)
        if isinstance(record, dict):
            return record
    return {}


def _succeeded(record: Record) -> bool:
    return record.get("status") == "ok"


def _figure(record: Record, key: str) -> float | None:
    """Return a finite number of the record, or None: what is not known is left out of every mean."""
    return _finite(record.get(key))


def _finite(value: object) -> float | None:
    if isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value):
        return float(value)
    return None


def _figures(records: Sequence[Record], key: str) -> list[float]:
    return [value for record in records if (value := _figure(record, key)) is not None]


# --- the terminal ---------------------------------------------------------------------------------


def summary_table(records: Sequence[Record]) -> Table:
    """Lay out the records as a table for the terminal, failed images with their error."""
    table = Table(caption=_caption(records), header_style="bold")
    table.add_column("image", overflow="fold", max_width=28)
    table.add_column("prompt", overflow="fold", ratio=1)
    for name in ("loss", "regret", "CLIP", "samples", "seconds"):
        table.add_column(name, justify="right", no_wrap=True)
    for record in records:
        table.add_row(*_row(record))
    return table


def _row(record: Record) -> list[Text]:
    # Text, not str: square brackets in names and prompts are no markup.
    name = Text(str(record["image_id"]))
    if not _succeeded(record):
        return [name, Text(f"failed: {record.get('error') or 'no reason was recorded'}", style="red")]
    figures = (
        _loss(_figure(record, "loss")),
        _signed(_figure(record, "regret")),
        _share(_figure(record, "clip_similarity")),
        _count(sum(_samples([record]))),
        _fixed(_figure(record, "seconds"), 1),
    )
    return [name, Text(str(record.get("prompt") or "")), *map(Text, figures)]


def _caption(records: Sequence[Record]) -> str:
    good = [record for record in records if _succeeded(record)]
    parts = [f"{len(good)} ok, {len(records) - len(good)} failed"]
    if regrets := _figures(good, "regret"):
        parts.append(f"median regret {_signed(median(regrets))}")
    if recalls := _figures(good, "word_recall"):
        parts.append(f"words found {_percent(fmean(recalls))}")
    if similarities := _figures(good, "clip_similarity"):
        parts.append(f"mean CLIP {_share(fmean(similarities))}")
    return " · ".join(parts)


def _samples(records: Sequence[Record]) -> tuple[float, float]:
    return sum(_figures(records, "forward_samples")), sum(_figures(records, "backward_samples"))


# --- figures as text ------------------------------------------------------------------------------


def _fixed(value: float | None, digits: int) -> str:
    return NOTHING if value is None else f"{value:.{digits}f}"


def _loss(value: float | None) -> str:
    return _fixed(value, 4)


def _share(value: float | None) -> str:
    return _fixed(value, 3)


def _signed(value: float | None) -> str:
    return NOTHING if value is None else f"{value:+.3f}"


def _percent(value: float | None) -> str:
    return NOTHING if value is None else f"{value:.0%}"


def _count(value: float | None) -> str:
    return NOTHING if value is None else f"{value:,.0f}"


def _duration(seconds: float | None) -> str:
    if seconds is None or seconds < 60:
        return NOTHING if seconds is None else f"{seconds:.1f} s"
    minutes, rest = divmod(round(seconds), 60)
    return f"{minutes // 60} h {minutes % 60:02d} min" if minutes >= 60 else f"{minutes} min {rest:02d} s"


# --- the page -------------------------------------------------------------------------------------


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
        draft.write_bytes(_html(folder, records).encode("utf-8", "backslashreplace"))
        draft.replace(page)
    except OSError as error:
        with suppress(OSError):
            draft.unlink(missing_ok=True)
        raise UserError(f"{page}: {error.strerror}: free space or write permission there") from error
    return page


def _html(folder: Path, records: Sequence[Record]) -> str:
    environment = Environment(
        loader=FileSystemLoader(Path(__file__).parent / "templates"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    good = [record for record in records if _succeeded(record)]
    config = _read_config(folder)
    return environment.get_template("report.html.j2").render(
        title=str(config.get("name") or folder.resolve().name),
        about=_about(folder, records, config),
        totals=_totals(records, good) if records else [],
        cards=[_card(folder, record) for record in good],
        failed=[{"error": None, **record} for record in records if not _succeeded(record)],
        config=_read(folder / "config.yaml"),
    )


def _inside(folder: Path, name: object) -> Path | None:
    """Return the file that a record names, or None when it names none or one outside the folder."""
    if not name or not isinstance(name, str) or "\0" in name:
        return None
    file = (folder / name).resolve()
    return file if file.is_relative_to(folder.resolve()) else None


def _read(file: Path | None) -> str:
    with suppress(OSError):
        return file.read_text(encoding="utf-8", errors="replace") if file else ""
    return ""


def _read_config(folder: Path) -> dict[str, Any]:
    with suppress(yaml.YAMLError):
        config = yaml.safe_load(_read(folder / "config.yaml"))
        if isinstance(config, dict):
            return config
    return {}


def _about(folder: Path, records: Sequence[Record], config: dict[str, Any]) -> list[tuple[str, str]]:
    """Say how the results came about: (name, value) of method, generator and date, each where known."""
    methods = sorted({str(record["method"]) for record in records if record.get("method")})
    files = [folder / "config.yaml", *sorted((folder / "results").glob("part-*.jsonl"))]
    times = [file.stat().st_mtime for file in files if file.exists()]
    about = {
        "method": ", ".join(methods) or _named(config.get("method")),
        "generator": _named(config.get("generator")),
        "run on": f"{datetime.fromtimestamp(times[0]):%d %B %Y, %H:%M}" if times else "",
    }
    return [(name, value) for name, value in about.items() if value]


def _named(node: object) -> str:
    """Name a group of the configuration: its `name`, or the end of its path."""
    if isinstance(node, dict):
        node = node.get("name") or node.get("path")
    return "/".join(Path(str(node)).parts[-2:]) if node else ""


def _item(name: str, value: str, hint: str = "", note: str = "", grade: str = "") -> dict[str, str]:
    return {"name": name, "value": value, "hint": hint, "note": note, "grade": grade}


def _totals(records: Sequence[Record], good: Sequence[Record]) -> list[dict[str, str]]:
    """Sum up a run for the head of the page, leaving out what no record knows."""
    failed = len(records) - len(good)
    totals = [_item("images", str(len(good)), "images with a prompt", f"{failed} failed" if failed else "")]
    if regrets := _figures(good, "regret"):
        totals.append(_item("median regret", _signed(median(regrets)), "0: as good as the true caption"))
    if recalls := _figures(good, "word_recall"):
        totals.append(_item("words found", _percent(fmean(recalls)), "mean share of true attributes named"))
    if similarities := _figures(good, "clip_similarity"):
        truths = _figures(good, "clip_similarity_caption")
        note = f"caption {_share(fmean(truths))}" if truths else ""
        totals.append(_item("CLIP similarity", _share(fmean(similarities)), "mean over images", note))
    forward, backward = _samples(good)
    if forward or backward:
        totals.append(_item("samples forward", _count(forward), "denoiser evaluations"))
        totals.append(_item("samples backward", _count(backward), "denoiser evaluations"))
    if seconds := _figures(good, "seconds"):
        totals.append(_item("time", _duration(sum(seconds)), "summed over images"))
    return totals


def _card(folder: Path, record: Record) -> dict[str, Any]:
    """Gather what the page shows of one image."""
    files = _mapping(record.get("files"))
    found = _parsed(_read(_inside(folder, files.get("candidates"))))
    candidates = _listed(found.get("candidates"))
    return {
        "image_id": str(record["image_id"]),
        "prompt": str(record.get("prompt") or ""),
        "caption": str(record.get("caption") or ""),
        "target": _embedded(folder, files.get("target")),
        "samples": [_embedded(folder, name) for name in _listed(files.get("samples"))],
        "facts": _facts(record),
        "chart": _chart(
            _listed(found.get("loss_curve")), _figure(record, "loss_empty"), _figure(record, "loss_caption")
        ),
        "candidates": [_candidate(_mapping(row)) for row in candidates[:SHOWN_CANDIDATES]],
        "candidates_total": len(candidates),
    }


def _mapping(value: object) -> dict[str, Any]:
    return value if isinstance(value, dict) else {}


def _listed(value: object) -> list[Any]:
    return value if isinstance(value, list) else []


def _candidate(row: dict[str, Any]) -> dict[str, str]:
    return {
        "prompt": str(row.get("prompt") or ""),
        "loss": _loss(_figure(row, "loss")),
        "clip": _share(_figure(row, "clip_similarity")),
        "epoch": _count(_figure(row, "epoch")),
    }


def _facts(record: Record) -> list[dict[str, str]]:
    """List an image's figures, each beside that of its true caption where there is one."""
    regret, recall = _figure(record, "regret"), _figure(record, "word_recall")
    loss_note = _beside("caption", _loss(_figure(record, "loss_caption")))
    clip_note = _beside("caption", _share(_figure(record, "clip_similarity_caption")))
    forward, backward = _samples([record])
    facts = [
        _item("loss", _loss(_figure(record, "loss")), "", loss_note),
        _item("regret", _signed(regret), "0: as good as the true caption", "", _grade(regret)),
        _item("CLIP", _share(_figure(record, "clip_similarity")), "", clip_note),
        _item("words found", _percent(recall), "share of the true attributes named"),
        _item("samples", f"{forward:,.0f} + {backward:,.0f}", "denoiser evaluations: forward + backward"),
        _item("time", _duration(_figure(record, "seconds"))),
    ]
    return [fact for fact in facts if fact["value"] != NOTHING]


def _beside(name: str, value: str) -> str:
    return "" if value == NOTHING else f"{name} {value}"


def _grade(regret: float | None) -> str:
    # The colours mean: as good as the caption; clearly better than nothing; not.
    if regret is None:
        return ""
    return "good" if regret <= 0.05 else "fair" if regret <= 0.5 else "poor"


def _embedded(folder: Path, name: object) -> str | None:
    """Return a picture of the folder as a data URI, or None when it is missing or damaged."""
    file = _inside(folder, name)
    if file is None:
        return None
    try:
        content = file.read_bytes()
        with Image.open(io.BytesIO(content)) as image:
            image.load()
            kind = image.get_format_mimetype()
            if len(content) > LARGEST_EMBEDDED or kind not in EMBEDDED_KINDS:
                content, kind = _shrunk(image), "image/webp"
    except Exception:  # Pillow's readers raise nearly anything on broken bytes
        return None
    return f"data:{kind};base64,{base64.b64encode(content).decode()}"


def _shrunk(image: Image.Image) -> bytes:
    image = image.convert("RGB")
    image.thumbnail((SHRUNK_SIDE, SHRUNK_SIDE))
    buffer = io.BytesIO()
    image.save(buffer, "WEBP", quality=88)
    return buffer.getvalue()


# --- the loss curve -------------------------------------------------------------------------------

WIDTH, HEIGHT = 560, 170
LEFT, RIGHT, TOP, FLOOR = 44, 556, 14, 148  # the plot's box in the picture


def _chart(curve: Sequence[object], empty: float | None, caption: float | None) -> dict[str, Any] | None:
    """Place a loss curve and its two bounds in a picture of WIDTH x HEIGHT; None without a finite loss."""
    losses = {epoch: loss for epoch, value in enumerate(curve) if (loss := _finite(value)) is not None}
    if not losses:
        return None
    bounds = [("upper", "empty prompt", empty, -5), ("lower", "true caption", caption, 13)]
    known = [(kind, title, loss, shift) for kind, title, loss, shift in bounds if loss is not None]
    low, high = _span([*losses.values(), *(loss for _, _, loss, _ in known)])
    lowest, highest = min(losses.values()), max(losses.values())

    def x(epoch: int) -> float:
        return round(LEFT + (RIGHT - LEFT) * (epoch / (len(curve) - 1) if len(curve) > 1 else 0.5), 1)

    def y(loss: float) -> float:
        return round(FLOOR - (FLOOR - TOP) * (loss - low) / (high - low), 1)

    dots = [(x(epoch), y(loss)) for epoch, loss in losses.items()]
    best = zip(map(x, losses), map(y, accumulate(losses.values(), min)), strict=True)
    return {
        "width": WIDTH, "height": HEIGHT, "left": LEFT, "right": RIGHT, "floor": FLOOR,
        "epochs": len(curve), "first": _loss(next(iter(losses.values()))), "lowest": _loss(lowest),
        "each": _points(dots), "best": _points(_stairs(list(best))), "dots": dots,
        "ticks": [{"y": y(loss) + 4, "value": _share(loss)} for loss in sorted({lowest, highest})],
        "bounds": [
            {"kind": kind, "name": name, "value": _loss(loss), "y": y(loss), "text_y": y(loss) + shift}
            for kind, name, loss, shift in known
        ],
    }  # fmt: skip


def _span(values: Sequence[float]) -> tuple[float, float]:
    """Return the range of the values with a margin; never an empty one."""
    low, high = min(values), max(values)
    margin = 0.12 * (high - low) or 0.05 * abs(high) or 1.0
    return low - margin, high + margin


def _stairs(points: Sequence[tuple[float, float]]) -> list[tuple[float, float]]:
    """Hold every height until the next point: a best so far does not sink between two epochs."""
    corners = [(x, y) for (_, y), (x, _) in pairwise(points)]
    return [points[0], *(p for pair in zip(corners, points[1:], strict=True) for p in pair)]


def _points(points: Sequence[tuple[float, float]]) -> str:
    return " ".join(f"{x:g},{y:g}" for x, y in points)
