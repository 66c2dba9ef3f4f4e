"""One picture, of any format and whatever state, as a tensor."""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING, BinaryIO, NamedTuple

import numpy as np
from PIL import Image, ImageOps, PngImagePlugin, UnidentifiedImageError

from ph2p.data.colour import to_srgb
from ph2p.data.formats import beginning, formats
from ph2p.errors import UserError
from ph2p.files import expand, printable

if TYPE_CHECKING:  # torch is loaded when the first picture is read
    from torch import Tensor

FITS = ("crop", "pad", "resize")
LARGEST_TEXT = PngImagePlugin.MAX_TEXT_MEMORY  # bytes; programs that paint keep whole recipes in a PNG
UNABLE = ("unsupported", "not supported", "unknown", "unrecognized", "not available", "not installed")

Size = tuple[int, int] | int  # (height, width) in pixels, or one number for a square
TAKES = "give a path, a Pillow image, an array (H, W, 3) or a tensor (3, H, W), or a list of them"


class TargetError(UserError):
    """One image cannot be used; the others can."""


class Picture(NamedTuple):
    """A picture (3, H, W) float32 in [0, 1], and what had to be assumed to read it."""

    image: Tensor
    notes: tuple[str, ...] = ()


def load_image(path: str | Path, image_size: Size, fit: str = "crop") -> Tensor:
    """Read a picture file as `from_pil` does: (3, H, W) float32 in [0, 1]; `~` and `$VAR` are expanded.

    Raises TargetError, one line with the file and how to fix it, when the file cannot be read as a picture.
    """
    return read_image(expand(path), printable(path), image_size, fit).image


def read_image(source: Path | BinaryIO, name: str, image_size: Size, fit: str = "crop") -> Picture:
    """`load_image` of a path or an open file, with notes; errors call it by its `name`."""
    try:
        with _tolerant(), Image.open(source, formats=formats()) as image:
            # A JPEG decodes straight at a fraction of its size; twice ours is enough for the filter.
            side = 2 * max(as_size(image_size))
            image.draft(None, (side, side))
            return convert(image, image_size, fit)
    except Exception as error:  # Pillow's readers raise nearly anything on broken bytes
        raise TargetError(f"{name}: {complaint(source, error)}") from error


def from_pil(image: Image.Image, image_size: Size, fit: str = "crop") -> Tensor:
    """Turn any Pillow image upright and fit it to `image_size`: (3, H, W) float32 in [0, 1].

    `crop` keeps the middle part that has the shape of the result, `pad` the whole picture on white, `resize` the
    whole picture, stretched. The first frame counts, alpha lies on white, colours are converted to sRGB.
    """
    return convert(image, image_size, fit).image


def convert(image: Image.Image, image_size: Size, fit: str) -> Picture:
    """`from_pil` with notes on what had to be assumed."""
    import torch

    with _tolerant():
        image.load()
    if not (image.width and image.height):
        raise ValueError("it has no pixels")
    profile = image.info.get("icc_profile")
    with suppress(SyntaxError, ValueError, KeyError, TypeError):  # broken EXIF: keep the picture as it lies
        image = ImageOps.exif_transpose(image)
    image, notes = to_srgb(image, profile)
    fitted = _fitted(image, *as_size(image_size), fit)
    pixels = torch.from_numpy(np.array(fitted, dtype=np.float32) / 255)  # (H, W, 3)
    return Picture(pixels.permute(2, 0, 1).contiguous(), notes)


def as_pillow(picture: np.ndarray | Tensor) -> Image.Image:
    """An array (H, W), (H, W, 1), (H, W, 3) or (H, W, 4), or a tensor with the channels first, as a Pillow image.

    Values are uint8, or floats in [0, 1], which are rounded to 8 bits. Raises UserError for any other.
    """
    import torch

    shape = f"{'x'.join(map(str, picture.shape))} {type(picture).__name__}"
    if isinstance(picture, torch.Tensor):
        picture = picture.detach().cpu()
        picture = picture.double() if picture.is_floating_point() else picture  # NumPy has no bfloat16
        picture = (picture.movedim(0, -1) if picture.ndim == 3 else picture).numpy()
    pixels = picture[..., None] if picture.ndim == 2 else picture  # (H, W, channels)
    if pixels.ndim != 3 or pixels.shape[2] not in (1, 3, 4) or not pixels.size:
        raise UserError(f"{shape}: {TAKES}")
    if np.issubdtype(pixels.dtype, np.floating):
        if not (pixels.min() >= 0 and pixels.max() <= 1):  # NaN neither
            raise UserError(f"{shape}: its values lie outside [0, 1]; bring them there, or give uint8")
        pixels = (pixels * 255).round().astype(np.uint8)
    if pixels.dtype != np.uint8:
        raise UserError(f"{shape}: {pixels.dtype} values; give uint8, or floats in [0, 1]")
    return Image.fromarray(pixels[..., 0] if pixels.shape[2] == 1 else pixels)


def as_size(size: Size | list[int]) -> tuple[int, int]:
    """(height, width) of a size that may be given as one number."""
    height, width = (size, size) if isinstance(size, int) else size
    return height, width


def _fitted(image: Image.Image, height: int, width: int, fit: str) -> Image.Image:
    """Fit an RGB or RGBA picture to (height, width), what is transparent on white: RGB."""
    box = (0, 0, *image.size)
    inner = (width, height)
    if fit == "crop":
        box = _middle(*image.size, width / height)
    elif fit == "pad":
        scale = min(width / image.width, height / image.height)
        inner = (max(1, round(scale * image.width)), max(1, round(scale * image.height)))
    # Crop and resize in one go: a 20,000 x 10 strip never grows to its full length. Alpha is still there, so
    # that hidden colours of transparent pixels do not bleed into their neighbours.
    small = image.resize(inner, Image.Resampling.LANCZOS, box=box, reducing_gap=3.0)
    if small.mode == "RGBA":
        small = Image.alpha_composite(Image.new("RGBA", small.size, "white"), small).convert("RGB")
    if small.size == (width, height):
        return small
    canvas = Image.new("RGB", (width, height), "white")
    canvas.paste(small, ((width - small.width) // 2, (height - small.height) // 2))
    return canvas


def _middle(width: int, height: int, ratio: float) -> tuple[int, int, int, int]:
    """The box (left, top, right, bottom) of the largest middle part whose width is `ratio` times its height."""
    wide = min(width, max(1, round(height * ratio)))
    high = min(height, max(1, round(width / ratio)))
    left, top = (width - wide) // 2, (height - high) // 2
    return left, top, left + wide, top + high


# --- what goes wrong ------------------------------------------------------------------------------


@contextmanager
def _tolerant() -> Iterator[None]:
    """Silence warnings of large pictures and odd metadata (what matters is raised), and let a PNG hold long texts."""
    before = PngImagePlugin.MAX_TEXT_CHUNK
    PngImagePlugin.MAX_TEXT_CHUNK = max(before, LARGEST_TEXT)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        PngImagePlugin.MAX_TEXT_CHUNK = before


def complaint(source: Path | BinaryIO | None, error: Exception) -> str:
    """Say what is wrong with a picture file and how to fix it."""
    match error:
        case FileNotFoundError():
            return "does not exist: check the path"
        case PermissionError():
            return "permission denied: make the file readable (chmod u+r)"
        case IsADirectoryError():
            return "is a folder, not a picture"
        case Image.DecompressionBombError():
            return f"has more than {2 * (Image.MAX_IMAGE_PIXELS or 0) / 1e6:.0f} megapixels: scale it down first"
        case MemoryError():
            return "needs more memory than there is: scale it down first"
        case OSError(errno=int()):
            return f"cannot be read ({printable(error.strerror)}): check the disk"
        case UnidentifiedImageError() if source is not None:
            return _unidentified(source)
    reason = printable(error) or type(error).__name__
    if "MAX_TEXT" in reason or "text chunks" in reason:
        limit = LARGEST_TEXT / 2**20
        return f"holds more than {limit:.0f} MB of text or profile, which is too much: save it without metadata"
    if isinstance(error, NotImplementedError) or any(word in reason.lower() for word in UNABLE):
        return f"is of a kind that Pillow cannot decode ({reason}): save it as PNG"
    return f"is damaged or cut off ({reason}): replace it"


def _unidentified(source: Path | BinaryIO) -> str:
    size, what = beginning(source)
    if not size:
        return "is empty (0 bytes): replace it"
    return f"is {what}" if what else "is not a picture that can be read: replace it"
