"""Scenes of the embedded world, with their ground truth."""

from PIL import Image

from ph2p.data.images import from_pil
from ph2p.data.targets import Target, Targets
from ph2p.errors import UserError
from ph2p.world import scenes as world
from ph2p.world.captions import attribute_words, canonical_caption
from ph2p.world.drawing import render


class WorldTargets(Targets):
    """Scenes 0 to count - 1 of a split of the embedded world, with caption and attribute words as truth.

    `objects` is 1, 2 or None for either. Raises UserError for values that the world does not know.
    """

    def __init__(
        self, count: int, seed: int = 0, objects: int | None = None, image_size: int = 64, split: str = "test"
    ) -> None:
        _check_world(count, seed, objects, split)
        self.seed, self.objects, self.image_size, self.split = seed, objects, image_size, split
        self.ids = [f"{split}-{seed}-{objects or 'any'}-{index:04d}" for index in range(count)]

    def load(self, index: int) -> Target:
        scene = world.scene(self.split, index, self.seed, self.objects)
        image = from_pil(Image.fromarray(render(scene, self.image_size)), self.image_size)
        return Target(
            self.ids[index],
            f"world:{self.ids[index]}",
            image,
            canonical_caption(scene),
            attribute_words(scene),
        )


def _check_world(count: int, seed: int, objects: int | None, split: str) -> None:
    if count < 1:
        raise UserError(f"data.count={count}: ask for at least one scene")
    if seed < 0:
        raise UserError(f"data.seed={seed}: a seed is 0 or greater")
    if objects not in (1, 2, None):
        raise UserError(f"data.objects={objects}: a scene holds 1 or 2 objects, or null for either")
    if split not in world.SPLITS:
        raise UserError(f"data.split={split}: choose one of {', '.join(world.SPLITS)}")
