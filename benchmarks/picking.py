"""Whether a prompt alone picks its picture among eight of its kind, by what it paints and by its words."""

from collections.abc import Iterator
from functools import cache
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

from ph2p.config.compose import PACKAGE
from ph2p.data import WorldTargets
from ph2p.evaluation.wording import word_f1
from ph2p.tiny.recipe.judge import GROUNDS, NOUNS, Judge, load_judge, noun_of, where
from ph2p.tiny.recipe.scenes import IMAGE_SIZE
from ph2p.world import scenes as world
from ph2p.world.captions import attribute_words
from ph2p.world.scenes import Scene, Thing

CHOICES = 8


def picks(targets: WorldTargets, index: int, prompt: str, renderings: Tensor) -> dict[str, float]:
    """Who finds picture `index` of the targets from its prompt: 1 or 0 for the judge and for a reader.

    The judge, which chose and trained nothing, looks at renderings (R, 3, H, W) in [0, 1] of the prompt and takes the
    scene whose objects, background and place are likeliest. The reader takes the scene whose attributes agree best
    with the prompt's words (F1). Who cannot tell the true one from another has not found it.
    """
    scenes = [world.scene(targets.split, index, targets.seed, targets.objects), *others(targets, index)]
    seen = likelihoods(_judge(), renderings, scenes)
    read = torch.tensor([word_f1(prompt, attribute_words(scene)) for scene in scenes])
    found = {"judge": seen, "reader": read}
    return {f"picked_by_{who}": float(values[0] > values[1:].max()) for who, values in found.items()}


def others(targets: WorldTargets, index: int) -> list[Scene]:
    """Seven other scenes of the split with as many objects, each a thing or a shape as in this one."""
    own = world.scene(targets.split, index, targets.seed, targets.objects)

    def drawn() -> Iterator[Scene]:
        number = (index + 1) * 10_000  # far beyond the targets, and for each of them elsewhere
        while True:
            scene = world.scene(targets.split, number, targets.seed, len(own.things))
            if _kinds(scene) == _kinds(own) and attribute_words(scene) != attribute_words(own):
                yield scene
            number += 1

    scenes = drawn()
    return [next(scenes) for _ in range(CHOICES - 1)]


def _kinds(scene: Scene) -> list[bool]:
    return [isinstance(thing, Thing) for thing in scene.things]


@torch.no_grad()
def likelihoods(judge: Judge, renderings: Tensor, scenes: list[Scene]) -> Tensor:
    """The logarithm of how likely each scene is, up to what all have in common, mean over the renderings: (scenes,)."""
    small = functional.interpolate(renderings, (IMAGE_SIZE, IMAGE_SIZE), mode="bilinear", antialias=True)
    said: dict[str, Tensor] = {name: logits.float() for name, logits in judge(small * 2 - 1).items()}
    ground, place = (said[name].log_softmax(1).mean(0) for name in ("background", "where"))
    nouns, colours = (
        said[name].mean(0) for name in ("noun", "colour")
    )  # independent yes or no: the logit is what counts
    found = []
    for scene in scenes:
        value: Any = ground[GROUNDS.index(scene.background)] + place[where(scene)]
        value = value + sum(nouns[NOUNS.index(noun_of(thing))] for thing in scene.things)
        found.append(value + sum(colours[GROUNDS.index(t.colour)] for t in scene.things if isinstance(t, Thing)))
    return torch.stack(found)


@cache
def _judge() -> Judge:
    """The judge that comes with the embedded model, whichever model painted."""
    return load_judge(PACKAGE / "tiny" / "weights")
