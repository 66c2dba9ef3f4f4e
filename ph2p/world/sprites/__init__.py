"""The sprites: 120 things in seven hands, one atlas a hand, drawn by nobody here (see NOTICE)."""

import csv
import functools
from pathlib import Path

from PIL import Image

HERE = Path(__file__).parent
STYLES = ("fluent-emoji-flat", "fluent-emoji", "noto", "noto-v1", "twemoji", "emojione")  # that training shows
HELD_OUT_STYLE = "fxemoji"  # the hand of the validation and test scenes
SIDE = 64  # pixels of a sprite
COLUMNS = 12  # sprites in a row of an atlas


def table() -> list[dict[str, str]]:
    """Read `nouns.csv`: for every thing its noun, its synonyms, its icon in the training hands and in fxemoji."""
    with (HERE / "nouns.csv").open(encoding="utf-8", newline="") as file:
        return list(csv.DictReader(file))


# The first word of every entry is the canonical one, the others are synonyms that captions use as well.
THINGS: dict[str, tuple[str, ...]] = {row["noun"]: (row["noun"], *row["synonyms"].split()) for row in table()}


@functools.cache
def sprite(style: str, noun: str) -> Image.Image:
    """Return a thing as one hand drew it: RGBA, 64x64, the drawing reaches two opposite edges.

    Raises KeyError for a noun that is not one of `THINGS`, FileNotFoundError for an unknown style.
    """
    number = _NUMBERS[noun]
    left, top = number % COLUMNS * SIDE, number // COLUMNS * SIDE
    return _atlas(style).crop((left, top, left + SIDE, top + SIDE))


_NUMBERS = {noun: number for number, noun in enumerate(THINGS)}


@functools.cache
def _atlas(style: str) -> Image.Image:
    with Image.open(HERE / f"{style}.webp") as image:
        return image.convert("RGBA")
