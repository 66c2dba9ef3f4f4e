"""The second edition of the embedded world: scenes of pictured things and plain shapes.

A scene is one object at a place, or two in a relation, on a coloured background. An object is a thing as one of five
hands drew it (`ph2p.world.sprites`), or a shape in a colour and a fill. Validation and test scenes show their things
in a hand that training never sees.
"""

import functools
from collections.abc import Collection
from dataclasses import replace

import numpy as np

from ph2p.world.scenes import (
    COLOURS,
    FILLS,
    PLACES,
    RELATIONS,
    SIZES,
    SPLITS,
    Pictured,
    Scene,
    Thing,
    centres,
    jitter,
    near,
)
from ph2p.world.scenes import SHAPES as DRAWN
from ph2p.world.sprites import HELD_OUT_STYLE, STYLES, THINGS, sprite

PLAIN = ("circle", "square", "triangle", "star", "heart", "diamond", "cross", "ring", "hexagon", "arrow")
SHAPES = {shape: DRAWN[shape] for shape in PLAIN}
NOUNS: dict[str, tuple[str, ...]] = {**THINGS, **SHAPES}
RADII = {"small": 12.0, "medium": 15.5, "large": 21.0}  # pixels of a 64-pixel picture
SHAPE_RATE = 0.3  # share of the objects that are shapes
PAIR_RATE = 0.3  # share of the scenes that hold two objects
TURN = 8.0  # degrees: a thing is turned by up to as much
_NUMBERS = {noun: number for number, noun in enumerate(NOUNS)}


def held_out(noun: str, background: str) -> bool:
    """Say whether this noun never stands on this background in training: 65 of the 1,560 pairs."""
    return (_NUMBERS[noun] + 5 * list(COLOURS).index(background)) % 24 == 3


def held_out_pair(one: str, other: str) -> bool:
    """Say whether these two nouns, in either order, never meet in training: one of about 20 pairs."""
    return (_NUMBERS[one] + _NUMBERS[other]) % 20 == 7


def scene(split: str, index: int, seed: int = 0, objects: int | None = None) -> Scene:
    """Draw the scene number `index` of a split; `objects` is 1, 2 or None for either.

    Training scenes hold neither a pair of `held_out` nor one of `held_out_pair`, and nothing in the held-out hand; the
    other splits show every thing in that hand.
    """
    rng = np.random.default_rng([SPLITS[split], seed, index, 2])
    number = int(objects or (2 if rng.random() < PAIR_RATE else 1))
    place = _pick(rng, PLACES) if number == 1 else None
    relation = _pick(rng, RELATIONS) if number == 2 else None
    places = centres(place, relation)
    while True:
        nouns = _nouns(rng, number)
        things = tuple(_object(rng, split, noun, number, at) for noun, at in zip(nouns, places, strict=True))
        grounds = [colour for colour in COLOURS if all(visible(thing, colour) for thing in things)]
        if split == "train":
            grounds = [c for c in grounds if not any(held_out(noun, c) for noun in nouns)]
            grounds *= not (number == 2 and held_out_pair(*nouns))
        if grounds:
            background = _pick(rng, grounds)
            return Scene(things, background, jitter(rng, COLOURS[background]), place, relation)


def _nouns(rng: np.random.Generator, number: int) -> list[str]:
    while True:
        kinds = [PLAIN if rng.random() < SHAPE_RATE else THINGS for _ in range(number)]
        nouns = [_pick(rng, kind) for kind in kinds]
        if len(set(nouns)) == number:
            return nouns


def _object(rng: np.random.Generator, split: str, noun: str, number: int, centre: tuple[int, int]) -> Thing | Pictured:
    size = _pick(rng, SIZES if number == 1 else ("small", "medium"))
    radius = RADII[size] * rng.uniform(0.96, 1.04)
    at = near(rng, centre, radius, by=1)
    if noun in SHAPES:
        colour = _pick(rng, COLOURS)
        return Thing(noun, colour, size, _pick(rng, FILLS), at, radius, jitter(rng, COLOURS[colour]))
    style = _pick(rng, STYLES) if split == "train" else HELD_OUT_STYLE
    return Pictured(noun, style, size, at, radius, float(rng.uniform(-TURN, TURN)), bool(rng.random() < 0.5))


def alike(thing: Thing | Pictured) -> list[str]:
    """The nouns that could stand in the place of an object's: all things or all shapes, its own among them."""
    return list(SHAPES if isinstance(thing, Thing) else THINGS)


def renamed(thing: Thing | Pictured, noun: str, rng: np.random.Generator) -> Thing | Pictured:
    """The same object with another noun of its kind: a shape in any fill, a thing in any hand of training."""
    if isinstance(thing, Thing):
        return replace(thing, shape=noun, fill=_pick(rng, FILLS))
    return replace(thing, noun=noun, style=_pick(rng, STYLES))


def visible(thing: Thing | Pictured, background: str) -> bool:
    """Say whether the object stands out: a shape of another colour than the background, a thing mostly of others."""
    if isinstance(thing, Thing):
        return thing.colour != background
    return _contrast(thing.style, thing.noun)[background] > 0.6


@functools.cache
def _contrast(style: str, noun: str) -> dict[str, float]:
    """For every background the share of the thing's pixels that differ from it by more than 40 of 255 in a channel."""
    pixels = np.asarray(sprite(style, noun)).astype(int).reshape(-1, 4)
    seen = pixels[pixels[:, 3] > 127, :3]  # (P, 3)
    return {name: float((np.abs(seen - np.array(rgb)).max(1) > 40).mean()) for name, rgb in COLOURS.items()}


def _pick(rng: np.random.Generator, names: Collection[str]) -> str:
    return list(names)[int(rng.integers(len(names)))]
