"""How jobs look on the live page: HTML in which every text is escaped."""

import base64
import io
import math
from collections.abc import Sequence
from contextlib import suppress
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image, ImageOps
from torch import Tensor

from ph2p.evaluation.formatting import duration, finite, loss, percent, visible
from ph2p.report.page import escaping_template
from ph2p.run.live import DONE, FAILED, WAITING, WORKING, Job

TEMPLATES = Path(__file__).parent / "templates"
STYLE = TEMPLATES / "live.css"
SIDE = 320  # pixels of a picture on the page
BEFORE = 5  # earlier prompts that are shown
CARDS = 30  # finished pictures that are shown; the archive has all


def running(jobs: Sequence[Job]) -> str:
    """The picture at hand and those that wait."""
    parts: Any = escaping_template(TEMPLATES, "live.html.j2").module
    names = [visible(job.image_id) for job in jobs if job.state == WAITING and not job.drop]
    now = "".join(parts.now(_now(job)) for job in jobs if job.state == WORKING)
    if not now and not names and not any(job.state in (DONE, FAILED) for job in jobs):
        return '<div class="live"><p class="empty">Drop a picture and press “Find prompts”.</p></div>'
    return f'<div class="live">{now}{parts.queue(names) if names else ""}</div>'


def finished(jobs: Sequence[Job]) -> str:
    """The pictures that are through, the newest first."""
    parts: Any = escaping_template(TEMPLATES, "live.html.j2").module
    cards = [_card(job) for job in jobs if job.state in (DONE, FAILED)][: -CARDS - 1 : -1]
    return f'<div class="live">{parts.done(cards)}</div>'


def complaint(text: str) -> str:
    """One line about what is wrong."""
    parts: Any = escaping_template(TEMPLATES, "live.html.j2").environment.from_string('<p class="wrong">{{ text }}</p>')
    return str(parts.render(text=visible(text))) if text else ""


def _now(job: Job) -> dict[str, Any]:
    found = list(job.found)
    changes = [best for k, best in enumerate(found) if k == 0 or best.prompt != found[k - 1].prompt]
    left = job.seconds_left
    return {
        "name": visible(job.image_id),
        "thumbnail": _thumbnail(job.picture),
        "prompt": visible(found[-1].prompt) if found else "",
        "loss": loss(finite(found[-1].loss)) if found else "",
        "before": [(visible(best.prompt), loss(finite(best.loss))) for best in changes[-2 : -BEFORE - 2 : -1]],
        "stage": "ending with the best so far" if job.finish else job.stage,
        "percent": round(100 * job.part),
        "left": "" if left is None else duration(left),
        "curve": curve([best.loss for best in found]),
    }


def _card(job: Job) -> dict[str, Any]:
    result = job.result
    if result is None or result.target is None or result.renderings is None:
        return {"name": visible(job.image_id), "error": visible(job.error)}
    pictures = [(address(result.target), "picture")]
    pictures += [(address(rendering), f"rendering {k}") for k, rendering in enumerate(result.renderings, 1)]
    facts = [
        ("loss", loss(result.loss)),
        ("without words", loss(result.loss_empty)),
        ("gap closed", percent(result.gap_closed)),
        ("CLIP", f"{result.clip_similarity:.3f}"),
        ("time", duration(result.seconds)),
    ]
    warnings = [visible(warning) for warning in result.warnings]
    about = {"name": visible(job.image_id), "error": "", "prompt": visible(result.prompt)}
    return about | {"pictures": pictures, "facts": facts, "warnings": warnings}


def curve(losses: Sequence[float]) -> str:
    """Losses as the points of a line in a box of 100 x 24, the first at the left; none of fewer than two."""
    known = [value for value in losses if math.isfinite(value)]
    if len(known) < 2:
        return ""
    low, high = min(known), max(known)
    across, up = 100 / (len(known) - 1), 20 / (high - low) if high > low else 0
    return " ".join(f"{k * across:.1f},{22 - (value - low) * up:.1f}" for k, value in enumerate(known))


def address(picture: Tensor) -> str:
    """A picture (3, H, W) in [0, 1] as a data URI."""
    pixels = (picture.clamp(0, 1) * 255).round().permute(1, 2, 0).cpu().numpy().astype(np.uint8)
    return _encoded(Image.fromarray(pixels))


@cache
def _thumbnail(path: Path) -> str:
    """A file's picture as a data URI, small; empty where it cannot be read."""
    # Pillow raises nearly anything on broken bytes; the job says what is wrong.
    with suppress(Exception), Image.open(path) as image:
        return _encoded(ImageOps.exif_transpose(image).convert("RGB"))
    return ""


def _encoded(image: Image.Image) -> str:
    image.thumbnail((SIDE, SIDE))
    content = io.BytesIO()
    image.save(content, "PNG")
    return f"data:image/png;base64,{base64.b64encode(content.getvalue()).decode()}"
