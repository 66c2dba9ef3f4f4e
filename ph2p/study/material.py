"""What a study is made of: the pictures that all runs finished, and what each run found for them."""

import base64
import io
import random
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from PIL import Image

from ph2p.errors import UserError
from ph2p.files import printable
from ph2p.report.pictures import inside
from ph2p.report.records import Record, finished, labels_of, mapping

SIDE, CRISP = 640, 256  # pixels: larger pictures are shrunk, up to these no pixel is changed


@dataclass(frozen=True)
class Material:
    """`runs`: folders by their labels; `records`: of each image those of all runs, by label; `pictures`: data URIs.

    `notes` say what was left out.
    """

    runs: dict[str, Path]
    records: dict[str, dict[str, Record]]
    pictures: dict[str, str]
    notes: list[str]


def gather(folders: Sequence[Path], most: int | None = None, seed: int = 0) -> Material:
    """Find the images that all runs finished; of more than `most`, as many by the seed. Raises UserError."""
    known = {folder: finished(folder) for folder in folders}
    if len({folder.resolve() for folder in folders}) < len(folders):
        raise UserError(f"{' '.join(map(printable, folders))}: the same results folder twice; give each once")
    first, names = folders[0], ", ".join(map(printable, folders))
    common = [image for image in known[first] if all(image in records for records in known.values())]
    if not common:
        raise UserError(f"{names}: no image that every run finished; give runs on the same images")
    pictures, broken = _pictures(first, {image: known[first][image] for image in common}, most, seed)
    if not pictures:
        raise UserError(f"{names}: no picture can be read; run the images anew")
    labels = labels_of(known)
    records = {image: {labels[folder]: known[folder][image] for folder in folders} for image in pictures}
    unfinished = len({image for found in known.values() for image in found}) - len(common)
    differ = sum(len({record.get("content") for record in found.values()}) > 1 for found in records.values())
    notes = {
        "left out, as not every run finished them": unfinished,
        "left out, as the picture cannot be read": broken,
        f"differ between the runs in size or content: shown as in {printable(first)}": differ,
    }
    return Material(
        {labels[folder]: folder for folder in folders},
        records,
        pictures,
        [f"images: {count} {what}" for what, count in notes.items() if count],
    )


# --- pictures -----------------------------------------------------------------------------------------------------


def _pictures(folder: Path, records: dict[str, Record], most: int | None, seed: int) -> tuple[dict[str, str], int]:
    """The pictures of at most so many images, in the records' order, and how many could not be read."""
    order = list(records)
    if most is not None:
        random.Random(f"{seed}/pictures").shuffle(order)
    found: dict[str, str | None] = {}
    for image in order:
        if most is not None and sum(map(bool, found.values())) == most:
            break
        found[image] = _address(inside(folder, mapping(records[image].get("files")).get("target")))
    return {image: address for image in records if (address := found.get(image))}, list(found.values()).count(None)


def _address(file: Path | None) -> str | None:
    """A picture as a data URI, without what else its file says; None for one that cannot be read."""
    if file is None:
        return None
    try:
        with Image.open(file) as found:
            shown = Image.new("RGB", found.size)
            shown.paste(found.convert("RGB"))
    except Exception:  # Pillow's readers raise nearly anything on broken bytes
        return None
    shown.thumbnail((SIDE, SIDE))
    buffer = io.BytesIO()
    shown.save(buffer, "WEBP", lossless=max(shown.size) <= CRISP, quality=88)
    return f"data:image/webp;base64,{base64.b64encode(buffer.getvalue()).decode()}"
