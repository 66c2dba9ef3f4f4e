"""Prompt inversion from Python."""

from collections.abc import Sequence
from pathlib import Path

from PIL import Image

from ph2p.config.compose import load_config
from ph2p.data import Target, TargetError, from_pil, load_image
from ph2p.errors import UserError
from ph2p.evaluation.result import InversionResult
from ph2p.inverter import Inverter
from ph2p.run.build import load_inverter

Picture = str | Path | Image.Image


def invert(
    images: Picture | Sequence[Picture], overrides: Sequence[str] = (), inverter: Inverter | None = None
) -> InversionResult | list[InversionResult | TargetError]:
    """Find the prompt of a picture, or of each of several: `invert("star.png").prompt`.

    `images` are files or Pillow images; `overrides` are the command line's, such as
    `["method=ph2p", "generator=folder", "generator.path=/models/sd15", "scorer=siglip"]`. An
    `inverter` from an earlier `load_inverter` saves the loading and then brings its own configuration. Nothing
    is written. Of several pictures, one for which no prompt is found has its TargetError in its place.
    Raises UserError for a bad image or key, and for a single picture for which no prompt is found.
    """
    inverter = inverter or load_inverter(load_config(list(overrides)))
    if inverter.cfg.trainer.get("devices") not in (1, "1") or inverter.cfg.trainer.get("num_nodes", 1) != 1:
        raise UserError("trainer.devices: invert works in this process alone; leave it at 1, and num_nodes too")
    single = isinstance(images, str | Path | Image.Image)
    some = [images] if single else list(images)
    size, batch_size = inverter.generator.image_size, inverter.cfg.data.batch_size
    targets = [_target(image, number, size) for number, image in enumerate(some)]
    found = [r for k in range(0, len(some), batch_size) for r in inverter(targets[k : k + batch_size])]
    if not single:
        return found
    if isinstance(found[0], TargetError):
        raise found[0]
    return found[0]


def _target(image: Picture, number: int, size: int) -> Target:
    if isinstance(image, Image.Image):
        try:
            return Target(f"image-{number}", "memory", from_pil(image, size))
        except Exception as error:  # Pillow decodes late, and raises nearly anything on broken bytes
            raise UserError(f"image-{number}: cannot be read as a picture; {' '.join(str(error).split())}") from error
    return Target(Path(image).name, str(image), load_image(image, size))
