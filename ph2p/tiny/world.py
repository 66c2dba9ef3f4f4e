"""The embedded world: procedurally drawn scenes whose ground truth is known word by word.

A scene is one object at a place, or two objects in a relation, on a coloured background. Everything is a
function of (split, seed, index), so training, validation and test scenes never meet.
"""

import math
from dataclasses import dataclass

import numpy as np
from PIL import Image, ImageChops, ImageDraw, ImageFilter

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
CENTRES = {"center": (32, 32), "top": (32, 19), "bottom": (32, 45), "left": (19, 32), "right": (45, 32)}
RELATIONS: dict[str, tuple[str, ...]] = {
    "above": ("above", "over"),
    "below": ("below", "under", "beneath"),
    "left of": ("left of",),
    "right of": ("right of",),
}
MEDIA = ("picture", "image", "drawing", "painting", "sketch", "illustration", "photo", "rendering")
GROUNDS = ("background", "backdrop")
SPLITS = {"train": 0, "val": 1, "test": 2}
SUPERSAMPLING = 3


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
class Scene:
    """One object at a `place`, or two objects of which the first stands in `relation` to the second."""

    things: tuple[Thing, ...]
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
    centres = [CENTRES[place]] if place else _related_centres(relation)
    things = tuple(
        _thing(rng, shape, colour, str(rng.choice(sizes)), centre)
        for shape, colour, centre in zip(shapes, colours, centres, strict=False)
    )
    return Scene(things, background, _jitter(rng, COLOURS[background]), place, relation)


def _thing(rng: np.random.Generator, shape: str, colour: str, size: str, centre: tuple[float, float]) -> Thing:
    radius = RADII[size] * rng.uniform(0.94, 1.06)
    at = tuple(float(np.clip(c + rng.uniform(-2, 2), radius + 1, 63 - radius)) for c in centre)
    return Thing(shape, colour, size, str(rng.choice(list(FILLS))), at, radius, _jitter(rng, COLOURS[colour]))


def _related_centres(relation: str) -> list[tuple[float, float]]:
    first, second = {
        "above": ((32, 16), (32, 48)),
        "below": ((32, 48), (32, 16)),
        "left of": ((16, 32), (48, 32)),
        "right of": ((48, 32), (16, 32)),
    }[relation]
    return [first, second]


def _jitter(rng: np.random.Generator, colour: tuple[int, int, int]) -> tuple[int, int, int]:
    return tuple(int(c) for c in np.clip(np.array(colour) + rng.integers(-7, 8, size=3), 0, 255))


# --- rendering ---------------------------------------------------------------------------------------------------


def render(scene: Scene, size: int = 64) -> np.ndarray:
    """Paint a scene, antialiased: (size, size, 3) uint8."""
    canvas = size * SUPERSAMPLING
    picture = Image.new("RGB", (canvas, canvas), scene.ground)
    for thing in scene.things:
        picture.paste(_texture(thing, canvas), mask=_thing_mask(thing, canvas))
    return np.asarray(picture.resize((size, size), Image.Resampling.BOX))


def object_mask(thing: Thing, size: int = 64) -> np.ndarray:
    """Say which pixels the object covers: (size, size) float in [0, 1]."""
    mask = _thing_mask(thing, size * SUPERSAMPLING).resize((size, size), Image.Resampling.BOX)
    return np.asarray(mask, dtype=np.float32) / 255


def _thing_mask(thing: Thing, canvas: int) -> Image.Image:
    mask = Image.new("L", (canvas, canvas), 0)
    scale = canvas / 64
    (x, y), radius = (c * scale for c in thing.centre), thing.radius * scale
    _draw_shape(ImageDraw.Draw(mask), thing.shape, x, y, radius)
    if thing.fill == "outlined":
        inside = Image.new("L", (canvas, canvas), 0)
        _draw_shape(ImageDraw.Draw(inside), thing.shape, x, y, radius)
        inside = _eroded(inside, pixels=round(2.0 * scale))
        mask = ImageChops.subtract(mask, inside)
    return mask


def _eroded(mask: Image.Image, pixels: int) -> Image.Image:
    for _ in range(pixels):  # small filters in a row are faster than a large one
        mask = mask.filter(ImageFilter.MinFilter(3))
    return mask


def _texture(thing: Thing, canvas: int) -> Image.Image:
    """Fill the canvas with the object's colour, or with its colour and its second tone in a pattern."""
    texture = Image.new("RGB", (canvas, canvas), thing.shade)
    pattern = _pattern(thing.fill, canvas, thing.centre, cell=canvas / 64 * (2.2 + thing.radius / 10))
    if pattern is not None:
        texture.paste(_second_tone(thing.shade), mask=pattern)
    return texture


def _second_tone(shade: tuple[int, int, int]) -> tuple[int, int, int]:
    # A light tint, or for light colours a dark one, so that the pattern shows on every colour.
    target = 255 if sum(shade) < 480 else 60
    return tuple(round(0.4 * c + 0.6 * target) for c in shade)


def _pattern(fill: str, canvas: int, centre: tuple[float, float], cell: float) -> Image.Image | None:
    y, x = np.mgrid[:canvas, :canvas].astype(np.float32)
    x, y = (x - centre[0] * canvas / 64) / cell, (y - centre[1] * canvas / 64) / cell
    if fill == "striped":
        on = np.floor(y) % 2 == 0
    elif fill == "checkered":
        on = (np.floor(x) + np.floor(y)) % 2 == 0
    elif fill == "dotted":
        on = np.hypot((x % 2) - 1, (y % 2) - 1) < 0.62
    else:
        return None
    return Image.fromarray((on * 255).astype(np.uint8))


def _draw_shape(draw: ImageDraw.ImageDraw, shape: str, x: float, y: float, r: float) -> None:
    """Draw a white shape of radius r around (x, y)."""

    def polygon(*points: tuple[float, float]) -> None:
        draw.polygon([(x + r * px, y + r * py) for px, py in points], fill=255)

    def ellipse(cx: float, cy: float, rx: float, ry: float | None = None, fill: int = 255) -> None:
        ry = rx if ry is None else ry
        draw.ellipse([x + r * (cx - rx), y + r * (cy - ry), x + r * (cx + rx), y + r * (cy + ry)], fill=fill)

    def box(left: float, top: float, right: float, bottom: float) -> None:
        draw.rectangle([x + r * left, y + r * top, x + r * right, y + r * bottom], fill=255)

    match shape:
        case "circle":
            ellipse(0, 0, 0.95)
        case "square":
            box(-0.82, -0.82, 0.82, 0.82)
        case "triangle":
            polygon((0, -1), (0.98, 0.8), (-0.98, 0.8))
        case "star":
            polygon(*_corners(10, (1.05, 0.45)))
        case "heart":
            ellipse(-0.45, -0.35, 0.5)
            ellipse(0.45, -0.35, 0.5)
            polygon((-0.92, -0.15), (0.92, -0.15), (0, 1))
        case "diamond":
            polygon((0, -1.05), (0.7, 0), (0, 1.05), (-0.7, 0))
        case "cross":
            box(-0.3, -1, 0.3, 1)
            box(-1, -0.3, 1, 0.3)
        case "ring":
            ellipse(0, 0, 1)
            ellipse(0, 0, 0.52, fill=0)
        case "moon":
            ellipse(-0.05, 0, 1)
            ellipse(0.5, -0.1, 0.85, fill=0)
        case "house":
            box(-0.7, -0.1, 0.7, 0.95)
            polygon((0, -1), (1, -0.05), (-1, -0.05))
        case "tree":
            polygon((0, -1.05), (0.6, -0.2), (-0.6, -0.2))
            polygon((0, -0.6), (0.85, 0.55), (-0.85, 0.55))
            box(-0.17, 0.5, 0.17, 1)
        case "fish":
            ellipse(-0.2, 0, 0.8, 0.52)
            polygon((0.35, 0), (1, -0.6), (1, 0.6))
        case "boat":
            polygon((-1, 0.3), (1, 0.3), (0.6, 0.9), (-0.6, 0.9))
            polygon((-0.08, -1), (-0.08, 0.2), (0.8, 0.2))
            polygon((-0.2, -0.7), (-0.2, 0.2), (-0.75, 0.2))
        case "cup":
            polygon((-0.85, -0.75), (0.45, -0.75), (0.3, 0.85), (-0.7, 0.85))
            draw.arc(
                [x + r * 0.1, y - r * 0.5, x + r * 0.95, y + r * 0.4], -100, 110, fill=255, width=max(1, round(r * 0.2))
            )
        case "flower":
            for px, py in _corners(6, (0.62,)):
                ellipse(px, py, 0.4)
            ellipse(0, 0, 0.4)
        case "arrow":
            box(-1, -0.24, 0.2, 0.24)
            polygon((0.1, -0.75), (1, 0), (0.1, 0.75))
        case "hexagon":
            polygon(*_corners(6, (1,)))
        case "cloud":
            ellipse(-0.5, 0.15, 0.45)
            ellipse(0.5, 0.15, 0.45)
            ellipse(0, -0.2, 0.55)
            box(-0.5, 0.1, 0.5, 0.6)
        case "car":
            box(-1, -0.1, 1, 0.45)
            polygon((-0.6, -0.05), (-0.35, -0.6), (0.35, -0.6), (0.65, -0.05))
            ellipse(-0.5, 0.45, 0.28)
            ellipse(0.5, 0.45, 0.28)
        case "mushroom":
            draw.pieslice([x - r, y - r * 0.9, x + r, y + r * 0.9], 180, 360, fill=255)
            box(-0.28, -0.05, 0.28, 0.9)
        case _:
            raise ValueError(f"unknown shape {shape!r}")


def _corners(number: int, radii: tuple[float, ...]) -> list[tuple[float, float]]:
    """Corners of a regular polygon, the first on top, whose distances from the centre cycle through `radii`."""
    angles = [2 * math.pi * k / number - math.pi / 2 for k in range(number)]
    return [(radii[k % len(radii)] * math.cos(a), radii[k % len(radii)] * math.sin(a)) for k, a in enumerate(angles)]


# --- captions ----------------------------------------------------------------------------------------------------


def canonical_caption(scene: Scene) -> str:
    """Name every attribute in one fixed order: `a large striped red square at the top on a blue background`."""
    nouns = [f"{_article(t.size)} {t.size} {t.fill} {t.colour} {t.shape}" for t in scene.things]
    where = f"at the {scene.place}" if scene.place else f"{_relation_phrase(scene.relation)} {nouns[1]}"
    return f"{nouns[0]} {where} on {_article(scene.background)} {scene.background} background"


def attribute_words(scene: Scene) -> tuple[frozenset[str], ...]:
    """List the ground truth: for every attribute of the scene the set of words that name it."""
    groups = [
        words for t in scene.things for words in (SIZES[t.size], FILLS[t.fill], COLOUR_WORDS[t.colour], SHAPES[t.shape])
    ]
    where = PLACES[scene.place] if scene.place else tuple(r.split()[0] for r in RELATIONS[scene.relation])
    return tuple(frozenset(g) for g in [*groups, where, COLOUR_WORDS[scene.background]])


def random_caption(scene: Scene, rng: np.random.Generator, keep: float = 0.75) -> str:
    """Describe a scene as a person might: sentences and tag lists, synonyms, each attribute named or not.

    `keep` is the probability that an attribute is named at all; a quarter of the captions name every one.
    """
    keep = 1.0 if rng.random() < 0.25 else keep
    style = rng.choice(["sentence", "statement", "tags"], p=[0.5, 0.15, 0.35])
    return {"sentence": _sentence, "statement": _statement, "tags": _tags}[style](scene, rng, keep)


def _sentence(scene: Scene, rng: np.random.Generator, keep: float) -> str:
    nouns = [_noun_phrase(t, rng, keep) for t in scene.things]
    text = _with_article(nouns[0], rng)
    if scene.relation:
        text += f" {_relation_phrase(_pick(rng, RELATIONS[scene.relation]))} {_with_article(nouns[1], rng)}"
    elif rng.random() < keep:
        text += f" {_place_phrase(scene.place, rng)}"
    if rng.random() < keep:
        ground = _pick(rng, COLOUR_WORDS[scene.background]) + " " + _pick(rng, GROUNDS)
        text += f" {_pick(rng, ('on', 'against', 'with'))} {_with_article(ground, rng)}"
    opening = rng.random()
    if opening < 0.25:
        medium = _pick(rng, MEDIA)
        return f"{_article(medium)} {medium} of {text}"
    return f"there is {text}" if opening < 0.35 else text


def _statement(scene: Scene, rng: np.random.Generator, keep: float) -> str:
    """Speak in clauses: `the square is red and striped, it is large, the backdrop is blue`."""
    first = scene.things[0]
    shape = _pick(rng, SHAPES[first.shape])
    adjectives = _adjectives(first, rng, keep) or [_pick(rng, COLOUR_WORDS[first.colour])]
    text = f"the {shape} is {' and '.join(adjectives)}"
    if scene.relation:
        other = _with_article(_noun_phrase(scene.things[1], rng, keep), rng)
        text += f", it is {_relation_phrase(_pick(rng, RELATIONS[scene.relation]))} {other}"
    elif rng.random() < keep:
        text += f", it is {_place_phrase(scene.place, rng)}"
    if rng.random() < keep:
        text += f", the {_pick(rng, GROUNDS)} is {_pick(rng, COLOUR_WORDS[scene.background])}"
    return text


def _tags(scene: Scene, rng: np.random.Generator, keep: float) -> str:
    """List tags as prompt engineers do, with or without commas: `striped red square, blue background, top`."""
    tags = []
    if scene.relation:
        nouns = [_noun_phrase(t, rng, keep) for t in scene.things]
        tags.append(f"{nouns[0]} {_pick(rng, RELATIONS[scene.relation])} {nouns[1]}")
    else:
        thing = scene.things[0]
        words = [*_adjectives(thing, rng, keep), _pick(rng, SHAPES[thing.shape])]
        loose = rng.random() < 0.5  # half of the lists tear the object's words apart
        tags += words if loose else [" ".join(words)]
        tags += [_pick(rng, PLACES[scene.place])] if rng.random() < keep else []
    if rng.random() < keep:
        tags.append(f"{_pick(rng, COLOUR_WORDS[scene.background])} {_pick(rng, GROUNDS)}")
    return str(rng.choice([", ", " "])).join(tags[i] for i in rng.permutation(len(tags)))


def _noun_phrase(thing: Thing, rng: np.random.Generator, keep: float) -> str:
    return " ".join([*_adjectives(thing, rng, keep), _pick(rng, SHAPES[thing.shape])])


def _adjectives(thing: Thing, rng: np.random.Generator, keep: float) -> list[str]:
    groups = (SIZES[thing.size], FILLS[thing.fill], COLOUR_WORDS[thing.colour])
    words = [_pick(rng, group) for group in groups if rng.random() < keep]
    if rng.random() < 0.3:
        words = [words[i] for i in rng.permutation(len(words))]
    return words


def _place_phrase(place: str, rng: np.random.Generator) -> str:
    word = _pick(rng, PLACES[place])
    side = " side" if place in ("left", "right") and rng.random() < 0.3 else ""
    return f"{_pick(rng, ('at', 'in', 'on') if side else ('at', 'in'))} the {word}{side}"


def _relation_phrase(relation: str) -> str:
    return f"to the {relation}" if relation.endswith(" of") else relation


def _with_article(phrase: str, rng: np.random.Generator) -> str:
    return f"the {phrase}" if rng.random() < 0.15 else f"{_article(phrase)} {phrase}"


def _article(phrase: str) -> str:
    return "an" if phrase[0] in "aeiou" else "a"


def _pick(rng: np.random.Generator, words: tuple[str, ...]) -> str:
    return words[int(rng.integers(len(words)))]
