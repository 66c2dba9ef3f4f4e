"""Pictures of the embedded world's scenes, and the mask of each object."""

import math

import numpy as np
from PIL import Image, ImageChops, ImageDraw, ImageFilter

from ph2p.world.scenes import Pictured, Scene, Thing
from ph2p.world.sprites import sprite

SUPERSAMPLING = 3


def render(scene: Scene, size: int = 64) -> np.ndarray:
    """Paint a scene, antialiased: (size, size, 3) uint8."""
    canvas = size * SUPERSAMPLING
    picture = Image.new("RGB", (canvas, canvas), scene.ground)
    for thing in scene.things:
        if isinstance(thing, Pictured):
            image, corner = _sprite(thing, canvas)
            picture.paste(image, corner, mask=image)
        else:
            picture.paste(_texture(thing, canvas), mask=_thing_mask(thing, canvas))
    return np.asarray(picture.resize((size, size), Image.Resampling.BOX))


def object_mask(thing: Thing | Pictured, size: int = 64) -> np.ndarray:
    """Say which pixels the object covers: (size, size) float in [0, 1]."""
    canvas = size * SUPERSAMPLING
    if isinstance(thing, Pictured):
        image, corner = _sprite(thing, canvas)
        mask = Image.new("L", (canvas, canvas), 0)
        mask.paste(image.getchannel("A"), corner)
    else:
        mask = _thing_mask(thing, canvas)
    return np.asarray(mask.resize((size, size), Image.Resampling.BOX), dtype=np.float32) / 255


def _sprite(thing: Pictured, canvas: int) -> tuple[Image.Image, tuple[int, int]]:
    """The thing as it stands on the canvas: RGBA, two radii wide before it is turned, and its left upper corner."""
    image = sprite(thing.style, thing.noun).convert("RGBa")  # premultiplied: what is transparent lends no colour
    if thing.mirrored:
        image = image.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
    scale = 2 * thing.radius * canvas / 64 / image.width
    image = image.rotate(thing.angle, Image.Resampling.BICUBIC, expand=True)
    side = max(1, round(image.width * scale))
    image = image.resize((side, side), Image.Resampling.BICUBIC).convert("RGBA")
    x, y = (round(c * canvas / 64 - side / 2) for c in thing.centre)
    return image, (x, y)


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
