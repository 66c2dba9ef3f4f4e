"""One picture, of any format and whatever state, as a tensor."""

import io
import re
import warnings
from contextlib import suppress
from pathlib import Path
from typing import BinaryIO

import numpy as np
import torch
from PIL import Image, ImageOps, UnidentifiedImageError
from torch import Tensor

from ph2p.errors import UserError

SUFFIXES = (".png", ".jpg", ".jpeg", ".webp", ".gif", ".bmp", ".tif", ".tiff")


class TargetError(UserError):
    """One image cannot be used; the others can."""


def load_image(path: str | Path, image_size: int) -> Tensor:
    """Read a picture file as `from_pil` does: (3, image_size, image_size) float32 in [0, 1].

    Raises TargetError, one line with the file and the mend, when the file cannot be read as a picture.
    """
    return read_image(Path(path), printable(path), image_size)


def read_image(source: Path | BinaryIO, name: str, image_size: int) -> Tensor:
    """`load_image` of a path or an open file; errors call it by its `name`."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of large pictures and odd metadata: what matters is raised
            with Image.open(source) as image:
                # A JPEG decodes straight at a fraction of its size; twice ours is enough for the filter.
                image.draft(None, (2 * image_size, 2 * image_size))
                return from_pil(image, image_size)
    except Exception as error:  # Pillow's readers raise nearly anything on broken bytes
        raise TargetError(f"{name}: {_complaint(source, error)}") from error


def from_pil(image: Image.Image, image_size: int) -> Tensor:
    """Turn any Pillow image upright, its short side to `image_size`, and keep the centre square.

    The first frame counts, alpha lies on white. Returns (3, image_size, image_size) float32 in [0, 1].
    """
    image.load()
    with suppress(SyntaxError, ValueError, KeyError, TypeError):  # broken EXIF: keep the picture as it lies
        image = ImageOps.exif_transpose(image)
    image = _eight_bit(image)
    side = min(image.size)
    left, top = (image.width - side) // 2, (image.height - side) // 2
    # Crop and resize in one go: a 20,000 x 10 strip never grows to its full length. Alpha is still there, so
    # that hidden colours of transparent pixels do not bleed into their neighbours.
    square = image.resize(
        (image_size, image_size),
        Image.Resampling.LANCZOS,
        box=(left, top, left + side, top + side),
        reducing_gap=3.0,
    )
    if square.mode == "RGBA":
        square = Image.alpha_composite(Image.new("RGBA", square.size, "white"), square).convert("RGB")
    pixels = torch.from_numpy(np.array(square, dtype=np.float32) / 255)  # (H, W, 3)
    return pixels.permute(2, 0, 1).contiguous()


def _eight_bit(image: Image.Image) -> Image.Image:
    """Convert any mode to RGB, or to RGBA when something in the picture is transparent."""
    if image.mode in ("I", "F") or image.mode.startswith("I;"):
        return _scale_grey(image).convert("RGB")
    if image.has_transparency_data:
        # Premultiplied grey has only one way out.
        return (image.convert("LA") if image.mode == "La" else image).convert("RGBA")
    return image.convert("RGB")


def _scale_grey(image: Image.Image) -> Image.Image:
    """Map grey of more than 8 bits to 8 bits; Pillow's own conversion clips it to white instead."""
    grey = np.array(image, dtype=np.float32)
    np.nan_to_num(grey, copy=False, posinf=0, neginf=0)
    # 16 bits say which value is white. Wider modes do not: the first usual one that covers the picture.
    levels = (1, 255, 65535) if image.mode == "F" else (65535,)
    peak = float(grey.max())
    white = next((level for level in levels if peak <= level), peak)
    grey *= 255 / white
    return Image.fromarray(grey.clip(0, 255, out=grey).round(out=grey).astype(np.uint8))


def _complaint(source: Path | BinaryIO, error: Exception) -> str:
    """Say what is wrong with a picture file and how to mend it."""
    if isinstance(error, FileNotFoundError):
        return "does not exist: check the path"
    if isinstance(error, PermissionError):
        return "permission denied: make the file readable (chmod u+r)"
    if isinstance(error, IsADirectoryError):
        return "is a folder, not a picture"
    if isinstance(error, Image.DecompressionBombError):
        return f"has more than {2 * (Image.MAX_IMAGE_PIXELS or 0) / 1e6:.0f} megapixels: scale it down first"
    if isinstance(error, UnidentifiedImageError):
        size = source.stat().st_size if isinstance(source, Path) else source.seek(0, io.SEEK_END)
        broken = "is not a picture that can be read" if size else "is empty (0 bytes)"
        return f"{broken}: replace it"
    return f"is damaged or cut off ({printable(error) or type(error).__name__}): replace it"


def printable(text: object) -> str:
    """Write control characters and undecodable bytes of a name as escapes: one line, valid Unicode."""
    return re.sub(
        r"[\x00-\x1f\x7f-\x9f\u2028\u2029\ud800-\udfff]",
        lambda found: found.group().encode("unicode_escape").decode(),
        str(text),
    )
