"""Measure the applications on the embedded world, whose truth is known: the figures of docs/applications.md.

python benchmarks/applications.py attention --scenes 20
"""

import argparse
from collections.abc import Callable, Iterable, Sequence
from statistics import mean

import torch
from torch import Tensor

from ph2p import Target, load_inverter
from ph2p.applications.attention import attention_maps, intersection_over_union, word_maps
from ph2p.applications.settings import AttentionSettings
from ph2p.evaluation.intervals import confidence_interval
from ph2p.inverter import Inverter
from ph2p.world.captions import attributes, canonical_caption
from ph2p.world.drawing import object_mask, render
from ph2p.world.scenes import Scene, scene

DISCS = (10, 15, 20, 25)  # radii in pixels of a 64-pixel picture


def interval(values: Sequence[float]) -> str:
    low, high = confidence_interval(values)
    return f"{mean(values):.3f} [{low:.3f}, {high:.3f}]"


def some_scenes(split: str, count: int, objects: int | None = None) -> list[Scene]:
    return [scene(split, index, objects=objects) for index in range(count)]


def as_target(one: Scene) -> Target:
    picture = torch.from_numpy(render(one).copy()).permute(2, 0, 1) / 255
    return Target("scene", "world", picture, canonical_caption(one))


def disc(radius: float, size: int = 64) -> Tensor:
    """A disc in the middle of a picture: a mask (size, size) that knows nothing of it."""
    place = torch.arange(size) - (size - 1) / 2
    return place[:, None] ** 2 + place[None] ** 2 < radius**2


def attention_scores(
    inverter: Inverter, scenes: Iterable[Scene], settings: AttentionSettings
) -> dict[str, list[float]]:
    """Intersection over union with every object's true mask: of its noun's mask, and of masks that know nothing."""
    scores: dict[str, list[float]] = {}
    for one in scenes:
        nouns = [attributes(thing)[-1][0] for thing in one.things]
        target = as_target(one)
        maps = attention_maps(inverter.generator, target, canonical_caption(one), settings, inverter.cfg.seed)
        chosen = word_maps(maps, inverter.generator.vocabulary, nouns)
        masks, labels = chosen.masks(settings.threshold), chosen.labels(settings.threshold)
        for number, thing in enumerate(one.things):
            truth = torch.from_numpy(object_mask(thing) > 0.5)
            found = {"the noun's mask": masks[number], "told apart (labels)": labels == number}
            found |= {f"disc of radius {radius}": disc(radius) for radius in DISCS}
            found |= {"the whole picture": torch.ones_like(truth)}
            for name, mask in found.items():
                scores.setdefault(name, []).append(intersection_over_union(mask, truth))
    return scores


def attention(count: int) -> None:
    scores = attention_scores(load_inverter(), some_scenes("test", count), AttentionSettings())
    for name, values in scores.items():
        print(f"{interval(values)}  {name}, {len(values)} objects")


MEASURES: dict[str, Callable[[int], None]] = {"attention": attention}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("name", choices=MEASURES)
    parser.add_argument("--scenes", type=int, default=20)
    arguments = parser.parse_args()
    MEASURES[arguments.name](arguments.scenes)


if __name__ == "__main__":
    main()
