"""The shapes of the embedded world, as the parts they are put together from."""

import math

from PIL import ImageDraw

# A part: what it is, and its numbers in radii around the centre. "disc" and "hole" are centre and half axes, "box" is
# left, top, right, bottom, "polygon" is x, y of its corners.
Part = tuple[str, tuple[float, ...]]


def corners(number: int, radii: tuple[float, ...]) -> list[tuple[float, float]]:
    """Corners of a regular polygon, the first on top, whose distances from the centre cycle through `radii`."""
    angles = [2 * math.pi * k / number - math.pi / 2 for k in range(number)]
    return [(radii[k % len(radii)] * math.cos(a), radii[k % len(radii)] * math.sin(a)) for k, a in enumerate(angles)]


def _regular(number: int, *radii: float) -> Part:
    return "polygon", tuple(c for corner in corners(number, radii) for c in corner)


PARTS: dict[str, tuple[Part, ...]] = {
    "circle": (("disc", (0, 0, 0.95, 0.95)),),
    "square": (("box", (-0.82, -0.82, 0.82, 0.82)),),
    "triangle": (("polygon", (0, -1, 0.98, 0.8, -0.98, 0.8)),),
    "star": (_regular(10, 1.05, 0.45),),
    "heart": (
        ("disc", (-0.45, -0.35, 0.5, 0.5)),
        ("disc", (0.45, -0.35, 0.5, 0.5)),
        ("polygon", (-0.92, -0.15, 0.92, -0.15, 0, 1)),
    ),
    "diamond": (("polygon", (0, -1.05, 0.7, 0, 0, 1.05, -0.7, 0)),),
    "cross": (("box", (-0.3, -1, 0.3, 1)), ("box", (-1, -0.3, 1, 0.3))),
    "ring": (("disc", (0, 0, 1, 1)), ("hole", (0, 0, 0.52, 0.52))),
    "arrow": (("box", (-1, -0.24, 0.2, 0.24)), ("polygon", (0.1, -0.75, 1, 0, 0.1, 0.75))),
    "hexagon": (_regular(6, 1),),
}


def draw_shape(draw: ImageDraw.ImageDraw, shape: str, x: float, y: float, r: float) -> None:
    """Draw a white shape of radius r around (x, y). Raises KeyError for an unknown one."""
    for kind, numbers in PARTS[shape]:
        if kind in ("disc", "hole"):
            cx, cy, rx, ry = numbers
            box = [x + r * (cx - rx), y + r * (cy - ry), x + r * (cx + rx), y + r * (cy + ry)]
            draw.ellipse(box, fill=255 if kind == "disc" else 0)
            continue
        at = [(x + r * px, y + r * py) for px, py in zip(numbers[::2], numbers[1::2], strict=True)]
        if kind == "polygon":
            draw.polygon(at, fill=255)
        else:
            draw.rectangle(at, fill=255)
