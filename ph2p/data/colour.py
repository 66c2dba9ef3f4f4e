"""Pictures of any mode and colour profile as eight-bit sRGB."""

import io
import math

import numpy as np
from PIL import Image, ImageCms

from ph2p.files import printable

GREY = ("1", "L", "LA", "La")


def to_srgb(image: Image.Image, profile: bytes | None) -> tuple[Image.Image, tuple[str, ...]]:
    """The picture in RGB, or in RGBA where something in it is transparent, and notes on what had to be assumed.

    An embedded ICC `profile` says what the numbers mean; one that is broken or of another kind of picture is left
    aside, with a note, and the numbers are taken for sRGB.
    """
    if image.mode in ("I", "F") or image.mode.startswith("I;"):
        image = Image.fromarray(_grey_levels(np.asarray(image), image.mode))
    if image.mode == "LAB" and not profile:
        return _applied(image, ImageCms.ImageCmsProfile(ImageCms.createProfile("LAB")), "RGB"), ()
    if not profile:
        return _plain(image), ()
    try:
        return _converted(image, ImageCms.ImageCmsProfile(io.BytesIO(profile))), ()
    except Exception as error:  # a profile is a small program, and may be wrong anywhere
        return _plain(image), (f"its colour profile cannot be used ({printable(error)}), so its colours count as sRGB",)


def _converted(image: Image.Image, profile: ImageCms.ImageCmsProfile) -> Image.Image:
    space = profile.profile.xcolor_space.strip()
    if space == "RGB" and image.mode not in ("CMYK", "LAB"):
        image = _plain(image)
        return _applied(image, profile, image.mode)
    if space == "GRAY" and image.mode in GREY:
        grey = image.convert("LA" if image.has_transparency_data else "L")
        colour = _applied(grey.getchannel("L"), profile, "RGB")
        if grey.mode == "LA":
            colour.putalpha(grey.getchannel("A"))
        return colour
    if {"CMYK": "CMYK", "Lab": "LAB"}.get(space) == image.mode:
        return _applied(image, profile, "RGB")
    raise ValueError(f"it is for {space}, the picture is {image.mode}")


def _applied(image: Image.Image, profile: ImageCms.ImageCmsProfile, mode: str) -> Image.Image:
    """The colours of `profile` in sRGB, white as white; alpha stays."""
    converted = ImageCms.profileToProfile(
        image,
        profile,
        ImageCms.createProfile("sRGB"),
        renderingIntent=ImageCms.Intent.RELATIVE_COLORIMETRIC,
        outputMode=mode,
        flags=ImageCms.Flags.BLACKPOINTCOMPENSATION,
    )
    assert converted is not None  # it is only in place that there is none
    return converted


def _plain(image: Image.Image) -> Image.Image:
    """Convert any mode to RGB or RGBA by its numbers alone."""
    if image.has_transparency_data:
        # Premultiplied grey has only one way out.
        return (image.convert("LA") if image.mode == "La" else image).convert("RGBA")
    return image.convert("RGB")


def _grey_levels(grey: np.ndarray, mode: str) -> np.ndarray:
    """Map grey of more than 8 bits to 8 bits; Pillow's own conversion clips it to white instead."""
    grey = np.nan_to_num(np.array(grey, dtype=np.float32), copy=False, posinf=0, neginf=0)
    # 16 bits say which value is white. Wider modes do not: the first usual one that covers the picture.
    levels = (1, 255, 65535) if mode == "F" else (65535,)
    peak = float(grey.max(initial=-math.inf))
    white = next((level for level in levels if peak <= level), peak)
    grey *= 255 / white
    return grey.clip(0, 255, out=grey).round(out=grey).astype(np.uint8)
