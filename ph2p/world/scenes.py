"""The embedded world: scenes of pictured things and plain shapes, whose ground truth is known word by word.

A scene is one object at a place, or two in a relation, on a coloured background. An object is a thing as one of seven
hands drew it (`ph2p.world.sprites`), or a shape in a colour and a fill. Everything is a function of (split, seed,
index), so training, validation and test scenes never meet; the latter two show their things in a hand that training
never sees. `drawing` paints a scene, `captions` describes it.
"""

import functools
from collections.abc import Collection
from dataclasses import dataclass, replace

import numpy as np

from ph2p.world.sprites import HELD_OUT_STYLE, STYLES, THINGS, sprite

# The first word of every entry is the canonical one, the others are synonyms that captions use as well.
SHAPES: dict[str, tuple[str, ...]] = {
    "circle": ("circle", "disc"),
    "square": ("square", "box"),
    "triangle": ("triangle", "wedge"),
    "star": ("star",),
    "heart": ("heart",),
    "diamond": ("diamond", "rhombus"),
    "cross": ("cross", "plus"),
    "ring": ("ring", "hoop"),
    "hexagon": ("hexagon",),
    "arrow": ("arrow", "pointer"),
}
NOUNS: dict[str, tuple[str, ...]] = {**THINGS, **SHAPES}
COLOURS: dict[str, tuple[int, int, int]] = {
    "red": (215, 35, 35),
    "orange": (245, 135, 25),
    "yellow": (250, 222, 50),
    "green": (40, 150, 60),
    "cyan": (60, 205, 215),
    "blue": (40, 75, 210),
    "purple": (125, 45, 165),
    "pink": (250, 150, 195),
    "brown": (120, 75, 40),
    "black": (20, 20, 22),
    "white": (248, 248, 248),
    "gray": (140, 142, 145),
}
COLOUR_WORDS: dict[str, tuple[str, ...]] = {
    **{name: (name,) for name in COLOURS},
    "red": ("red", "crimson", "scarlet"),
    "orange": ("orange", "tangerine"),
    "yellow": ("yellow", "golden"),
    "green": ("green", "emerald"),
    "cyan": ("cyan", "turquoise"),
    "blue": ("blue", "azure"),
    "purple": ("purple", "violet"),
    "gray": ("gray", "grey"),
}
SIZES: dict[str, tuple[str, ...]] = {
    "small": ("small", "little", "tiny"),
    "medium": ("medium", "average"),
    "large": ("large", "big", "huge"),
}
RADII = {"small": 12.0, "medium": 15.5, "large": 21.0}  # pixels of a 64-pixel picture
FILLS: dict[str, tuple[str, ...]] = {
    "solid": ("solid", "filled"),
    "striped": ("striped", "stripy"),
    "dotted": ("dotted", "spotted"),
    "checkered": ("checkered", "chequered"),
    "outlined": ("outlined", "hollow"),
}
PLACES: dict[str, tuple[str, ...]] = {
    "center": ("center", "middle"),
    "top": ("top",),
    "bottom": ("bottom",),
    "left": ("left",),
    "right": ("right",),
}
CENTRES = {"center": (32, 32), "top": (32, 19), "bottom": (32, 45), "left": (19, 32), "right": (45, 32)}  # pixels
RELATIONS: dict[str, tuple[str, ...]] = {
    "above": ("above", "over"),
    "below": ("below", "under", "beneath"),
    "left of": ("left of",),
    "right of": ("right of",),
}
RELATED_CENTRES = {  # of the first object and of the second
    "above": ((32, 16), (32, 48)),
    "below": ((32, 48), (32, 16)),
    "left of": ((16, 32), (48, 32)),
    "right of": ((48, 32), (16, 32)),
}
SPLITS = {"train": 0, "val": 1, "test": 2}
SHAPE_RATE = 0.3  # share of the objects that are shapes
PAIR_RATE = 0.3  # share of the scenes that hold two objects
TURN = 8.0  # degrees: a thing is turned by up to as much
_NUMBERS = {noun: number for number, noun in enumerate(NOUNS)}


@dataclass(frozen=True)
class Thing:
    """One drawn object: its words, its centre and radius in pixels of a 64-pixel picture, and its shade."""

    shape: str
    colour: str
    size: str
    fill: str
    centre: tuple[float, float]
    radius: float
    shade: tuple[int, int, int]


@dataclass(frozen=True)
class Pictured:
    """One thing as a hand drew it: its noun, the hand, its size, centre and radius as a `Thing` has them; turned by
    `angle` degrees and perhaps mirrored."""

    noun: str
    style: str
    size: str
    centre: tuple[float, float]
    radius: float
    angle: float = 0.0
    mirrored: bool = False


@dataclass(frozen=True)
class Scene:
    """One object at a `place`, or two objects of which the first stands in `relation` to the second."""

    things: tuple[Thing | Pictured, ...]
    background: str
    ground: tuple[int, int, int]
    place: str | None = None
    relation: str | None = None


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
        kinds = [SHAPES if rng.random() < SHAPE_RATE else THINGS for _ in range(number)]
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


def centres(place: str | None, relation: str | None) -> list[tuple[int, int]]:
    """Where the objects of a scene stand: one at its place, or two in their relation."""
    if place:
        return [CENTRES[place]]
    if relation:
        return list(RELATED_CENTRES[relation])
    raise ValueError("a scene has a place or a relation")


def near(rng: np.random.Generator, centre: tuple[int, int], radius: float, by: float) -> tuple[float, float]:
    """Move a centre by up to `by` pixels each way, so that an object of this radius stays in the picture."""
    x, y = (float(np.clip(c + rng.uniform(-by, by), radius + 1, 63 - radius)) for c in centre)
    return x, y


def jitter(rng: np.random.Generator, colour: tuple[int, int, int]) -> tuple[int, int, int]:
    """Move a colour a little: up to 7 of 255 in each channel."""
    red, green, blue = np.clip(np.array(colour) + rng.integers(-7, 8, size=3), 0, 255).tolist()
    return red, green, blue


def _pick(rng: np.random.Generator, names: Collection[str]) -> str:
    return list(names)[int(rng.integers(len(names)))]
