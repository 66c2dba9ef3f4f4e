"""The page of a results folder: one HTML text that holds everything, pictures as data URIs."""

import base64
import io
from collections.abc import Sequence
from contextlib import suppress
from datetime import datetime
from pathlib import Path
from statistics import fmean, median
from typing import Any

import yaml
from jinja2 import Environment, FileSystemLoader, StrictUndefined
from PIL import Image

from ph2p.report.chart import place_curves
from ph2p.report.formatting import NOTHING, count, duration, loss, percent, share, signed
from ph2p.report.records import Record, figure, figures, parsed, read_text, samples, succeeded

SHOWN_CANDIDATES = 50
LARGEST_EMBEDDED = 150_000  # bytes; larger pictures are shrunk, or a page of a hundred would be slow to open
SHRUNK_SIDE = 640  # pixels: sharp at the size a card shows
EMBEDDED_KINDS = ("image/png", "image/jpeg", "image/webp")


def html(folder: Path, records: Sequence[Record]) -> str:
    """Fill in the template `report.html.j2` from a results folder and its records."""
    environment = Environment(
        loader=FileSystemLoader(Path(__file__).parent / "templates"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    good = [record for record in records if succeeded(record)]
    config = _read_config(folder)
    return environment.get_template("report.html.j2").render(
        title=str(config.get("name") or folder.resolve().name),
        about=_about(folder, records, config),
        totals=_totals(records, good) if records else [],
        cards=[_card(folder, record) for record in good],
        failed=[{"error": None, **record} for record in records if not succeeded(record)],
        config=read_text(folder / "config.yaml"),
    )


def _read_config(folder: Path) -> dict[str, Any]:
    with suppress(yaml.YAMLError):
        config = yaml.safe_load(read_text(folder / "config.yaml"))
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


def _totals(records: Sequence[Record], good: Sequence[Record]) -> list[dict[str, str]]:
    """Sum up a run for the head of the page, leaving out what no record knows."""
    failed = len(records) - len(good)
    totals = [_item("images", str(len(good)), "images with a prompt", f"{failed} failed" if failed else "")]
    if regrets := figures(good, "regret"):
        totals.append(_item("median regret", signed(median(regrets)), "0: as good as the true caption"))
    if recalls := figures(good, "word_recall"):
        totals.append(_item("words found", percent(fmean(recalls)), "mean share of true attributes named"))
    if similarities := figures(good, "clip_similarity"):
        truths = figures(good, "clip_similarity_caption")
        note = f"caption {share(fmean(truths))}" if truths else ""
        totals.append(_item("CLIP similarity", share(fmean(similarities)), "mean over images", note))
    if texts := figures(good, "reference_similarity"):
        words = _beside("ROUGE-1", share(fmean(figures(good, "reference_rouge1") or [0.0])))
        totals.append(_item("CLIP, text", share(fmean(texts)), "prompt and nearest reference, mean", words))
    forward, backward = samples(good)
    if forward or backward:
        totals.append(_item("samples forward", count(forward), "denoiser evaluations"))
        totals.append(_item("samples backward", count(backward), "denoiser evaluations"))
    if seconds := figures(good, "seconds"):
        totals.append(_item("time", duration(sum(seconds)), "summed over images"))
    return totals


def _card(folder: Path, record: Record) -> dict[str, Any]:
    """Gather what the page shows of one image."""
    files = _mapping(record.get("files"))
    found = parsed(read_text(_inside(folder, files.get("candidates"))))
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
    lower = [("lower", name, figure(record, key)) for name, key in captions.items()]
    return [("upper", "empty prompt", figure(record, "loss_empty")), *lower]


def _candidate(row: dict[str, Any]) -> dict[str, str]:
    return {
        "prompt": str(row.get("prompt") or ""),
        "loss": loss(figure(row, "loss")),
        "clip": share(figure(row, "clip_similarity")),
        "epoch": count(figure(row, "epoch")),
    }


def _facts(record: Record) -> list[dict[str, str]]:
    """List an image's figures, each beside that of its true caption where there is one."""
    regret, recall = figure(record, "regret"), figure(record, "word_recall")
    caption = _beside("caption", loss(figure(record, "loss_caption")))
    loss_note = caption or _beside("best reference", loss(figure(record, "loss_reference")))
    clip_note = _beside("caption", share(figure(record, "clip_similarity_caption")))
    forward, backward = samples([record])
    facts = [
        _item("loss", loss(figure(record, "loss")), "", loss_note),
        _item("regret", signed(regret), "0: as good as the true caption", "", _grade(regret)),
        _item("CLIP", share(figure(record, "clip_similarity")), "", clip_note),
        _item("words found", percent(recall), "share of the true attributes named"),
        _item("CLIP, text", share(figure(record, "reference_similarity")), "prompt and nearest reference"),
        _item("ROUGE-1", share(figure(record, "reference_rouge1")), "words shared with the nearest reference"),
        _item("ROUGE-L", share(figure(record, "reference_rouge_l")), "words in order, nearest reference"),
        _item("samples", f"{forward:,.0f} + {backward:,.0f}", "denoiser evaluations: forward + backward"),
        _item("time", duration(figure(record, "seconds"))),
    ]
    return [fact for fact in facts if fact["value"] != NOTHING]


def _item(name: str, value: str, hint: str = "", note: str = "", grade: str = "") -> dict[str, str]:
    return {"name": name, "value": value, "hint": hint, "note": note, "grade": grade}


def _beside(name: str, value: str) -> str:
    return "" if value == NOTHING else f"{name} {value}"


def _grade(regret: float | None) -> str:
    # The colours mean: as good as the caption; clearly better than nothing; not.
    if regret is None:
        return ""
    return "good" if regret <= 0.05 else "fair" if regret <= 0.5 else "poor"


def _mapping(value: object) -> dict[str, Any]:
    return value if isinstance(value, dict) else {}


def _listed(value: object) -> list[Any]:
    return value if isinstance(value, list) else []


def _inside(folder: Path, name: object) -> Path | None:
    """Return the file that a record names, or None when it names none or one outside the folder."""
    if not name or not isinstance(name, str) or "\0" in name:
        return None
    file = (folder / name).resolve()
    return file if file.is_relative_to(folder.resolve()) else None


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
