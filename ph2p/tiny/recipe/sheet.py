"""A sheet of renderings that nobody chose: the canonical captions of the first test scenes, each with its own seed.

python -m ph2p.tiny.recipe.sheet --weights ph2p/tiny/weights --to ph2p/tiny/weights/samples.png
"""

import argparse
from pathlib import Path

import numpy as np
from PIL import Image

from ph2p.models.generators import load_generator
from ph2p.models.painting import paint
from ph2p.tiny.bars import GUIDANCE, STEPS
from ph2p.world import scenes as world
from ph2p.world.captions import canonical_caption

COLUMNS, GAP = 12, 2  # pictures in a row, pixels between them


def sheet(weights: Path, count: int = 48) -> Image.Image:
    """Renderings of `count` scenes in rows of 12, from left to right."""
    generator = load_generator(weights)
    captions = [canonical_caption(world.scene("test", index)) for index in range(count)]
    images = paint(generator, captions, list(range(count)), STEPS, GUIDANCE).cpu()  # (N, 3, H, W)
    pixels = (images.clamp(0, 1) * 255).round().byte().permute(0, 2, 3, 1).numpy()
    side = pixels.shape[1] + GAP
    rows = -(-count // COLUMNS)
    page = np.full((rows * side - GAP, COLUMNS * side - GAP, 3), 255, np.uint8)
    for number, picture in enumerate(pixels):
        top, left = number // COLUMNS * side, number % COLUMNS * side
        page[top : top + side - GAP, left : left + side - GAP] = picture
    return Image.fromarray(page)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--weights", type=Path, required=True)
    parser.add_argument("--to", type=Path, required=True)
    parser.add_argument("--count", type=int, default=48)
    arguments = parser.parse_args()
    sheet(arguments.weights, arguments.count).save(arguments.to, optimize=True)
