"""Scenes of the embedded world, with their ground truth."""

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from PIL import Image

from ph2p.data.images import convert
from ph2p.data.targets import Target, Targets
from ph2p.errors import UserError
from ph2p.files import printable
from ph2p.world import scenes as world
from ph2p.world.captions import attribute_words, canonical_caption, random_caption
from ph2p.world.drawing import render


@dataclass(eq=False)
class WorldTargets(Targets):
    """Scenes 0 to count - 1 of a split of the embedded world, with caption and attribute words as truth.

    A scene is square; `fit` says what becomes of it for a model whose pictures are not. Raises UserError for values
    that the world does not know.
    """

    count: int = 8  # scenes
    objects: int | None = None  # 1, 2, or null for either
    split: str = "test"  # train, val or test

    def find(self) -> None:
        if self.objects not in (1, 2, None):
            raise UserError(f"data.objects={self.objects}: a scene holds 1 or 2 objects, or null for either")
        if self.split not in world.SPLITS:
            raise UserError(f"data.split={printable(self.split)}: choose one of {', '.join(world.SPLITS)}")
        self.ids = [f"{self.split}-{self.seed}-{self.objects or 'any'}-{index:04d}" for index in range(self.count)]

    def load(self, index: int) -> Target:
        scene = world.scene(self.split, index, self.seed, self.objects)
        drawn = Image.fromarray(render(scene, max(self.size)))
        picture = convert(drawn, self.size, self.fit)
        return Target(
            self.ids[index],
            f"world:{self.ids[index]}",
            picture.image,
            canonical_caption(scene),
            attribute_words(scene),
        )


def training_captions(count: int) -> Iterator[str]:
    """Captions of `count` scenes of the training split, as people might write them: the world's language."""
    for index in range(count):
        yield random_caption(world.scene("train", index), np.random.default_rng([index]))
