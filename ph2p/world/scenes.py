"""The embedded world: procedurally drawn scenes whose ground truth is known word by word.

A scene is one object at a place, or two objects in a relation, on a coloured background. Everything is a
function of (split, seed, index), so training, validation and test scenes never meet. `drawing` paints a scene,
`captions` describes it.
"""

from dataclasses import dataclass

import numpy as np

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
    "moon": ("moon", "crescent"),
    "house": ("house", "cottage"),
    "tree": ("tree", "fir"),
    "fish": ("fish",),
    "boat": ("boat", "ship"),
    "cup": ("cup", "mug"),
    "flower": ("flower", "blossom"),
    "arrow": ("arrow", "pointer"),
    "hexagon": ("hexagon",),
    "cloud": ("cloud",),
    "car": ("car", "automobile"),
    "mushroom": ("mushroom", "toadstool"),
}
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
RADII = {"small": 9.0, "medium": 14.0, "large": 20.0}  # pixels of a 64-pixel picture
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


def held_out(shape: str, colour: str) -> bool:
    """Say whether this pair never occurs in training: 12 of the 240, one for every colour."""
    return (list(SHAPES).index(shape) + 7 * list(COLOURS).index(colour)) % 20 == 3


def scene(split: str, index: int, seed: int = 0, objects: int | None = None) -> Scene:
    """Draw the scene number `index` of a split; `objects` is 1, 2 or None for either.

    Training scenes never hold a pair of `held_out`; the other splits hold them at their natural rate.
    """
    rng = np.random.default_rng([SPLITS[split], seed, index])
    number = int(objects or (1 if rng.random() < 0.65 else 2))
    background, *colours = rng.choice(list(COLOURS), size=3, replace=False).tolist()
    shapes = rng.choice(list(SHAPES), size=2, replace=False).tolist()
    while split == "train" and any(held_out(s, c) for s, c in zip(shapes, colours, strict=True)):
        shapes = rng.choice(list(SHAPES), size=2, replace=False).tolist()
    sizes = list(SIZES) if number == 1 else ["small", "medium"]
    place = str(rng.choice(list(PLACES))) if number == 1 else None
    relation = str(rng.choice(list(RELATIONS))) if number == 2 else None
    things = tuple(
        _thing(rng, shape, colour, str(rng.choice(sizes)), centre)
        for shape, colour, centre in zip(shapes, colours, centres(place, relation), strict=False)
    )
    return Scene(things, background, jitter(rng, COLOURS[background]), place, relation)


def _thing(rng: np.random.Generator, shape: str, colour: str, size: str, centre: tuple[int, int]) -> Thing:
    radius = RADII[size] * rng.uniform(0.94, 1.06)
    at = near(rng, centre, radius, by=2)
    return Thing(shape, colour, size, str(rng.choice(list(FILLS))), at, radius, jitter(rng, COLOURS[colour]))


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
