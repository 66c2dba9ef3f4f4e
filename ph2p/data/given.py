"""Pictures that are given in Python, of any kind, as targets."""

import os
import re
from typing import TYPE_CHECKING, Any

import numpy as np
from PIL import Image

from ph2p.data.images import FITS, Size, TargetError, complaint, convert, read_image
from ph2p.data.targets import Target
from ph2p.errors import UserError
from ph2p.files import expand, printable

if TYPE_CHECKING:
    from torch import Tensor

    Given = str | os.PathLike[str] | Image.Image | np.ndarray | Tensor

TAKES = (
    "give a path, a Pillow image, an array (H, W, 3) of uint8 or of floats in [0, 1], or a tensor (3, H, W) of floats "
    "in [0, 1]"
)


def as_target(picture: "Given", name: str, image_size: Size, fit: str = "crop") -> Target:
    """A picture as a target: of a path (`~` and `$VAR` expanded), a Pillow image, an array or a tensor.

    Arrays are (H, W, 3), uint8 or floats in [0, 1]; tensors (3, H, W), floats in [0, 1]; both are sRGB, and are
    rounded to 8 bits as in a file. A file is called by its own name, anything else by `name`. The result's image is
    (3, H, W) of `image_size`. Raises TargetError, one line, for what is no such picture or cannot be read.
    """
    if fit not in FITS:
        raise UserError(f"data.fit={printable(fit)}: choose one of {', '.join(FITS)}")
    if isinstance(picture, str | os.PathLike):
        return _of_file(os.fspath(picture), name, image_size, fit)
    image = picture if isinstance(picture, Image.Image) else Image.fromarray(_pixels(picture, name))
    try:
        found = convert(image, image_size, fit)
    except Exception as error:  # Pillow decodes late, and raises nearly anything on broken bytes
        raise TargetError(f"{name}: {complaint(None, error)}") from error
    return Target(name, "memory", found.image, notes=found.notes)


def _of_file(path: str | bytes, name: str, image_size: Size, fit: str) -> Target:
    if isinstance(path, bytes) or not path.strip():
        raise TargetError(f"{name}: a path of {type(path).__name__} {path!r}: {TAKES}")
    if re.match(r"[A-Za-z][A-Za-z0-9+.-]+:(//|.*;base64,)", path):
        raise TargetError(f"{name}: {printable(path[:60])} is an address, and nothing is downloaded: {TAKES}")
    file = expand(path)
    found = read_image(file, printable(path), image_size, fit)
    return Target(printable(file.name), printable(file), found.image, notes=found.notes)


def _pixels(picture: Any, name: str) -> np.ndarray:
    """The bytes (H, W, 3) of an array or a tensor."""
    import torch

    if isinstance(picture, torch.Tensor):
        if picture.ndim != 3 or picture.shape[0] != 3 or not picture.is_floating_point():
            raise TargetError(f"{name}: a tensor {tuple(picture.shape)} of {picture.dtype}: {TAKES}")
        picture = picture.detach().cpu().float().permute(1, 2, 0).numpy()
    if not isinstance(picture, np.ndarray):
        raise TargetError(f"{name}: {type(picture).__name__}: {TAKES}")
    floats = np.issubdtype(picture.dtype, np.floating)
    if picture.ndim != 3 or picture.shape[2] != 3 or not picture.size or not (floats or picture.dtype == np.uint8):
        raise TargetError(f"{name}: an array {picture.shape} of {picture.dtype}: {TAKES}")
    if not floats:
        return np.ascontiguousarray(picture)
    low, high = float(picture.min()), float(picture.max())  # NaN, if there is one
    if not (low >= 0 and high <= 1):
        raise TargetError(f"{name}: floats from {low:.3g} to {high:.3g}: {TAKES}")
    return (picture.astype(np.float64) * 255).round().astype(np.uint8)
