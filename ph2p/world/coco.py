"""A small data set in the exact layout of COCO's captions, drawn from the embedded world.

python -m ph2p.world.coco --root my_coco --count 20
"""

import argparse
import json
from pathlib import Path

import numpy as np
from PIL import Image

from ph2p.world import scenes as world
from ph2p.world.captions import random_caption
from ph2p.world.drawing import render

CAPTIONS = 5  # an image, as in COCO


def write_coco(root: Path, count: int, split: str = "val2017", seed: int = 0, size: int = 64) -> None:
    """Write `root/<split>/000000000001.jpg` ... and `root/annotations/captions_<split>.json`.

    Pictures are (size, size), called `COCO_<split>_000000000001.jpg` in 2014; scenes are those of the world's test
    split for val, of its training split for train. Captions are sentences and tags as the models of the world were
    trained on; most leave something out.
    """
    for folder in (root / split, root / "annotations"):
        folder.mkdir(parents=True, exist_ok=True)
    images, annotations = [], []
    for number in range(1, count + 1):
        scene = world.scene("test" if split.startswith("val") else "train", number - 1, seed)
        name = f"COCO_{split}_{number:012d}.jpg" if split.endswith("2014") else f"{number:012d}.jpg"
        Image.fromarray(render(scene, size)).save(root / split / name, quality=95)
        images.append(_image(number, name, size))
        rng = np.random.default_rng([seed, number])
        annotations += [(number, random_caption(scene, rng)) for _ in range(CAPTIONS)]
    content = {
        "info": {"description": "Scenes of ph2p's embedded world", "version": "1.0", "year": 2025},
        "images": images,
        "licenses": [{"id": 1, "name": "Apache-2.0", "url": "https://www.apache.org/licenses/LICENSE-2.0"}],
        "annotations": [{"image_id": i, "id": k, "caption": text} for k, (i, text) in enumerate(annotations, 1)],
    }
    (root / "annotations" / f"captions_{split}.json").write_text(json.dumps(content), encoding="utf-8")


def _image(number: int, name: str, size: int) -> dict[str, str | int]:
    """An image's entry, with every key that COCO has."""
    nowhere = {"coco_url": "", "flickr_url": "", "date_captured": "2025-01-01 00:00:00"}
    return {"license": 1, "file_name": name, "height": size, "width": size, "id": number, **nowhere}


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        prog="python -m ph2p.world.coco", description="Write a small COCO of drawn scenes."
    )
    parser.add_argument("--root", type=Path, required=True, help="folder to write, as data.root of data=coco")
    parser.add_argument("--count", type=int, default=20, help="number of images")
    parser.add_argument("--split", choices=("val2017", "train2017", "val2014", "train2014"), default="val2017")
    parser.add_argument("--seed", type=int, default=0, help="of the scenes and captions, 0 or greater")
    parser.add_argument("--size", type=int, default=64, help="width and height in pixels")
    options = parser.parse_args(argv)
    if options.count < 1 or options.seed < 0 or options.size < 8:
        parser.error("--count is at least 1, --seed at least 0, --size at least 8")
    try:
        write_coco(options.root, options.count, options.split, options.seed, options.size)
    except OSError as error:
        parser.error(f"{options.root}: cannot be written ({error.strerror})")
    print(f"{options.count} images: python train.py data=coco data.root={options.root} data.split={options.split}")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
