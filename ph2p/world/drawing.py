"""Pictures of the embedded world's scenes, and the mask of each object."""

import numpy as np
from PIL import Image, ImageChops, ImageDraw, ImageFilter

from ph2p.world.scenes import Pictured, Scene, Thing
from ph2p.world.shapes import draw_shape
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
    draw_shape(ImageDraw.Draw(mask), thing.shape, x, y, radius)
    if thing.fill == "outlined":
        inside = Image.new("L", (canvas, canvas), 0)
        draw_shape(ImageDraw.Draw(inside), thing.shape, x, y, radius)
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
    red, green, blue = (round(0.4 * c + 0.6 * target) for c in shade)
    return red, green, blue


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
