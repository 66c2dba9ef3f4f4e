"""The example pictures that come with the project: held-out scenes, each the first of the test split that fits.

python -m ph2p.world.examples --to ph2p/examples
"""

import argparse
from itertools import count
from pathlib import Path

from PIL import Image

from ph2p.world import scenes as world
from ph2p.world.captions import canonical_caption
from ph2p.world.drawing import render

SEED = 100  # scenes that no figure is measured on
EXAMPLES = {  # what the canonical caption must say
    "fox": ("fox", "large", "white background"),
    "umbrella": ("umbrella", "large", "yellow background"),
    "guitar": ("guitar", "large", "blue background"),
    "penguin": ("penguin", "medium", "pink background"),
    "strawberry": ("strawberry", "large", "green background"),
    "cat-and-moon": ("cat", "moon", "left of"),
    "red-square": ("large", "solid red square", "white background"),
    "striped-star": ("striped yellow star", "black background"),
}


def example(name: str) -> world.Scene:
    """The first test scene whose caption says all that is asked for. Raises KeyError for an unknown name."""
    wanted, number = EXAMPLES[name], 2 if "-and-" in name else 1
    scenes = (world.scene("test", index, SEED, number) for index in count())
    return next(scene for scene in scenes if all(words in canonical_caption(scene) for words in wanted))


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m ph2p.world.examples", description="Write the example pictures.")
    parser.add_argument("--to", type=Path, required=True, help="the folder to write")
    folder = parser.parse_args(argv).to
    folder.mkdir(parents=True, exist_ok=True)
    for name in EXAMPLES:
        scene = example(name)
        Image.fromarray(render(scene)).save(folder / f"{name}.png", optimize=True)
        print(f"{name}: {canonical_caption(scene)}")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
