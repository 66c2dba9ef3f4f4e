"""Draw the README's picture from a results folder: targets, found prompts, and their renderings.

python benchmarks/first_look.py outputs/demo docs/first-look.png
"""

import sys
import textwrap
from pathlib import Path

from PIL import Image, ImageDraw, ImageFont

from ph2p.report.records import read_results, succeeded

SIDE, GAP, TEXT = 128, 12, 300  # pixels: a picture, the space between things, the prompt's column


def draw(folder: Path) -> Image.Image:
    records = [record for record in read_results(folder) if succeeded(record)]
    renderings = max(len(record["files"]["renderings"]) for record in records)
    width = GAP + (SIDE + GAP) * (1 + renderings) + TEXT + GAP
    sheet = Image.new("RGB", (width, GAP + len(records) * (SIDE + GAP)), "white")
    pen, font = ImageDraw.Draw(sheet), ImageFont.load_default(size=17)
    for row, record in enumerate(records):
        top = GAP + row * (SIDE + GAP)
        sheet.paste(_picture(folder / record["files"]["target"]), (GAP, top))
        text = "\n".join(textwrap.wrap(record["prompt"], 32))
        pen.multiline_text((2 * GAP + SIDE, top + SIDE // 2), text, "black", font, anchor="lm")
        for k, name in enumerate(record["files"]["renderings"]):
            sheet.paste(_picture(folder / name), (2 * GAP + SIDE + TEXT + k * (SIDE + GAP), top))
    return sheet


def _picture(path: Path) -> Image.Image:
    return Image.open(path).resize((SIDE, SIDE), Image.Resampling.LANCZOS)


if __name__ == "__main__":
    draw(Path(sys.argv[1])).save(sys.argv[2], optimize=True)
