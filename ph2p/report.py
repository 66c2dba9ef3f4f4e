"""The results folder, read back: records, a table for the terminal, and one self-contained HTML page.

Nothing here loads a model: whatever a run left behind, also an unfinished one, can be looked at.
"""

import base64
import io
import json
import os
from collections.abc import Callable, Sequence
from contextlib import suppress
from datetime import datetime
from pathlib import Path
from statistics import fmean, median
from typing import Any

import yaml
from jinja2 import Environment, FileSystemLoader, StrictUndefined
from PIL import Image
from rich.table import Table
from rich.text import Text

from ph2p.chart import NOTHING, finite, fixed, loss, place_curves, share
from ph2p.errors import UserError

Record = dict[str, Any]

SHOWN_CANDIDATES = 50
LARGEST_EMBEDDED = 150_000  # bytes; larger pictures are shrunk, or a page of a hundred would be slow to open
SHRUNK_SIDE = 640  # pixels: sharp at the size a card shows
EMBEDDED_KINDS = ("image/png", "image/jpeg", "image/webp")


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
    return finite(record.get(key))


def _figures(records: Sequence[Record], key: str) -> list[float]:
    return [value for record in records if (value := _figure(record, key)) is not None]


# --- the terminal ---------------------------------------------------------------------------------


def summary_table(records: Sequence[Record]) -> Table:
    """Lay out the records as a table for the terminal, failed images with their error.

    A column that no image has a figure for is left out.
    """
    table = Table(caption=_caption(records), header_style="bold")
    table.add_column("image", overflow="fold", max_width=28)
    table.add_column("prompt", overflow="fold", ratio=1)
    good = [record for record in records if _succeeded(record)]
    columns = [name for name, (key, _) in COLUMNS.items() if not key or not good or _figures(good, key)]
    for name in columns:
        table.add_column(name, justify="right", no_wrap=True)
    for record in records:
        table.add_row(*_row(record, columns))
    return table


def _row(record: Record, columns: Sequence[str]) -> list[Text]:
    # Text, not str: square brackets in names and prompts are no markup.
    name = Text(str(record["image_id"]))
    if not _succeeded(record):
        return [name, Text(f"failed: {record.get('error') or 'no reason was recorded'}", style="red")]
    figures = []
    for key, write in (COLUMNS[column] for column in columns):
        figures.append(write(_figure(record, key) if key else sum(_samples([record]))))
    return [name, Text(str(record.get("prompt") or "")), *map(Text, figures)]


def _caption(records: Sequence[Record]) -> str:
    good = [record for record in records if _succeeded(record)]
    parts = [f"{len(good)} ok, {len(records) - len(good)} failed"]
    if regrets := _figures(good, "regret"):
        parts.append(f"median regret {_signed(median(regrets))}")
    if recalls := _figures(good, "word_recall"):
        parts.append(f"words found {_percent(fmean(recalls))}")
    if similarities := _figures(good, "clip_similarity"):
        parts.append(f"mean CLIP {share(fmean(similarities))}")
    if texts := _figures(good, "reference_similarity"):
        parts.append(f"to the nearest reference: CLIP {share(fmean(texts))}")
    if words := _figures(good, "reference_rouge1"):
        parts.append(f"ROUGE-1 {share(fmean(words))}")
    return " · ".join(parts)


def _samples(records: Sequence[Record]) -> tuple[float, float]:
    return sum(_figures(records, "forward_samples")), sum(_figures(records, "backward_samples"))


# --- figures as text ------------------------------------------------------------------------------


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


COLUMNS: dict[str, tuple[str, Callable[[float | None], str]]] = {  # of the terminal's table: key and how to write it
    "loss": ("loss", loss),
    "regret": ("regret", _signed),
    "CLIP": ("clip_similarity", share),
    "CLIP text": ("reference_similarity", share),
    "samples": ("", _count),
    "seconds": ("seconds", lambda value: fixed(value, 1)),
}


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
        note = f"caption {share(fmean(truths))}" if truths else ""
        totals.append(_item("CLIP similarity", share(fmean(similarities)), "mean over images", note))
    if texts := _figures(good, "reference_similarity"):
        words = _beside("ROUGE-1", share(fmean(_figures(good, "reference_rouge1") or [0.0])))
        totals.append(_item("CLIP, text", share(fmean(texts)), "prompt and nearest reference, mean", words))
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
        "references": [str(text) for text in _listed(record.get("references"))],
        "notes": [str(note) for note in _listed(record.get("notes"))],
        "samples": [_embedded(folder, name) for name in _listed(files.get("samples"))],
        "caption_samples": [_embedded(folder, name) for name in _listed(files.get("caption_samples"))],
        "facts": _facts(record),
        "chart": place_curves(_listed(found.get("loss_curve")), _listed(found.get("search_curve")), _bounds(record)),
        "candidates": [_candidate(_mapping(row)) for row in candidates[:SHOWN_CANDIDATES]],
        "candidates_total": len(candidates),
    }


def _bounds(record: Record) -> list[tuple[str, str, float | None]]:
    """The losses that a curve lies between: of no words, and of a caption."""
    captions = {"true caption": "loss_caption", "best reference": "loss_reference"}
    lower = [("lower", name, _figure(record, key)) for name, key in captions.items()]
    return [("upper", "empty prompt", _figure(record, "loss_empty")), *lower]


def _mapping(value: object) -> dict[str, Any]:
    return value if isinstance(value, dict) else {}


def _listed(value: object) -> list[Any]:
    return value if isinstance(value, list) else []


def _candidate(row: dict[str, Any]) -> dict[str, str]:
    return {
        "prompt": str(row.get("prompt") or ""),
        "loss": loss(_figure(row, "loss")),
        "clip": share(_figure(row, "clip_similarity")),
        "epoch": _count(_figure(row, "epoch")),
    }


def _facts(record: Record) -> list[dict[str, str]]:
    """List an image's figures, each beside that of its true caption where there is one."""
    regret, recall = _figure(record, "regret"), _figure(record, "word_recall")
    caption = _beside("caption", loss(_figure(record, "loss_caption")))
    loss_note = caption or _beside("best reference", loss(_figure(record, "loss_reference")))
    clip_note = _beside("caption", share(_figure(record, "clip_similarity_caption")))
    forward, backward = _samples([record])
    facts = [
        _item("loss", loss(_figure(record, "loss")), "", loss_note),
        _item("regret", _signed(regret), "0: as good as the true caption", "", _grade(regret)),
        _item("CLIP", share(_figure(record, "clip_similarity")), "", clip_note),
        _item("words found", _percent(recall), "share of the true attributes named"),
        _item("CLIP, text", share(_figure(record, "reference_similarity")), "prompt and nearest reference"),
        _item("ROUGE-1", share(_figure(record, "reference_rouge1")), "words shared with the nearest reference"),
        _item("ROUGE-L", share(_figure(record, "reference_rouge_l")), "words in order, nearest reference"),
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
