"""Target images, the fixed noise draws they are optimised on, and the data module that joins both."""

import hashlib
import json
import os
import re
import warnings
from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from lightning.pytorch import LightningDataModule
from PIL import Image, ImageOps, UnidentifiedImageError
from torch import Tensor

from ph2p.errors import UserError
from ph2p.tiny import world

SUFFIXES = (".png", ".jpg", ".jpeg", ".webp", ".gif", ".bmp", ".tif", ".tiff")


class TargetError(UserError):
    """One image cannot be used; the others can."""


# --- one picture ----------------------------------------------------------------------------------


def load_image(path: str | Path, image_size: int) -> Tensor:
    """Read a picture file as `from_pil` does: (3, image_size, image_size) float32 in [0, 1].

    Raises TargetError, one line with the file and the mend, when the file cannot be read as a picture.
    """
    path = Path(path)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of large pictures and odd metadata: what matters is raised
            with Image.open(path) as image:
                # A JPEG decodes straight at a fraction of its size; twice ours is enough for the filter.
                image.draft(None, (2 * image_size, 2 * image_size))
                return from_pil(image, image_size)
    except Exception as error:  # Pillow's readers raise nearly anything on broken bytes
        raise TargetError(f"{printable(path)}: {_complaint(path, error)}") from error


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


def _complaint(path: Path, error: Exception) -> str:
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
        broken = "is not a picture that can be read" if path.stat().st_size else "is empty (0 bytes)"
        return f"{broken}: replace it"
    return f"is damaged or cut off ({printable(error) or type(error).__name__}): replace it"


def printable(text: object) -> str:
    """Write control characters and undecodable bytes of a name as escapes: one line, valid Unicode."""
    return re.sub(
        r"[\x00-\x1f\x7f-\x9f\u2028\u2029\ud800-\udfff]",
        lambda found: found.group().encode("unicode_escape").decode(),
        str(text),
    )


# --- sets of targets ------------------------------------------------------------------------------


@dataclass(frozen=True)
class Target:
    """One image to invert, with its ground truth where there is any.

    `image` is (3, H, W) float32 in [0, 1]; `words` holds one set of accepted synonyms for each attribute.
    """

    image_id: str
    source: str
    image: Tensor
    caption: str | None = None
    words: tuple[frozenset[str], ...] | None = None


class Targets(ABC):
    """A list of images of which nothing is read before `load`, so that one bad file spoils nothing else."""

    ids: list[str]

    def __len__(self) -> int:
        return len(self.ids)

    @abstractmethod
    def load(self, index: int) -> Target:
        """Read image number `index`; raises TargetError when it cannot be used."""


class FolderTargets(Targets):
    """The pictures of a folder and its subfolders in sorted order, or a single picture file.

    An image's id is its path inside the folder, with `/`. Hidden files and folders are passed over.
    Raises UserError when there is no such folder or no picture in it.
    """

    def __init__(self, path: str | Path, image_size: int) -> None:
        self.path, self.image_size = Path(path).expanduser(), image_size
        if self.path.is_file():  # named by hand: whatever its suffix, it is meant
            self.files, root = [self.path], self.path.parent
        else:
            self.files, root = _find_pictures(self.path), self.path
        self.ids = [printable(file.relative_to(root).as_posix()) for file in self.files]

    def load(self, index: int) -> Target:
        file = self.files[index]
        return Target(self.ids[index], printable(file), load_image(file, self.image_size))


def _find_pictures(folder: Path) -> list[Path]:
    if not folder.is_dir():
        raise UserError(f"{printable(folder)}: no such file or folder: give a picture or a folder of them")
    if not os.access(folder, os.R_OK | os.X_OK):
        raise UserError(f"{printable(folder)}: permission denied: make the folder readable (chmod u+rx)")
    pictures = [
        file
        for file in folder.rglob("*")
        if file.suffix.lower() in SUFFIXES
        and not any(part.startswith(".") for part in file.relative_to(folder).parts)
        and (file.is_file() or _is_dangling(file))
    ]
    if not pictures:
        known = ", ".join(suffix[1:] for suffix in SUFFIXES)
        raise UserError(f"{printable(folder)}: no pictures found in this folder (looked for {known})")
    return sorted(pictures, key=lambda file: file.relative_to(folder).as_posix())


def _is_dangling(file: Path) -> bool:
    # A link to nothing is reported as a failed image rather than silently left out.
    return file.is_symlink() and not file.exists()


class WorldTargets(Targets):
    """Scenes 0 to count - 1 of a split of the embedded world, with caption and attribute words as truth.

    `objects` is 1, 2 or None for either. Raises UserError for values that the world does not know.
    """

    def __init__(
        self, count: int, seed: int = 0, objects: int | None = None, image_size: int = 64, split: str = "test"
    ) -> None:
        _check_world(count, seed, objects, split)
        self.seed, self.objects, self.image_size, self.split = seed, objects, image_size, split
        self.ids = [f"{split}-{seed}-{objects or 'any'}-{index:04d}" for index in range(count)]

    def load(self, index: int) -> Target:
        scene = world.scene(self.split, index, self.seed, self.objects)
        image = from_pil(Image.fromarray(world.render(scene, self.image_size)), self.image_size)
        return Target(
            self.ids[index],
            f"world:{self.ids[index]}",
            image,
            world.canonical_caption(scene),
            world.attribute_words(scene),
        )


def _check_world(count: int, seed: int, objects: int | None, split: str) -> None:
    if count < 1:
        raise UserError(f"data.count={count}: ask for at least one scene")
    if seed < 0:
        raise UserError(f"data.seed={seed}: a seed is 0 or greater")
    if objects not in (1, 2, None):
        raise UserError(f"data.objects={objects}: a scene holds 1 or 2 objects, or null for either")
    if split not in world.SPLITS:
        raise UserError(f"data.split={split}: choose one of {', '.join(world.SPLITS)}")


def slug(image_id: str) -> str:
    """Name the image's folder of results: its readable stem, and a hash that keeps different images apart."""
    stem = re.sub(r"[^a-z0-9]+", "-", Path(image_id).stem.lower()).strip("-")[:40]
    digest = hashlib.sha256(image_id.encode("utf-8", "surrogatepass")).hexdigest()
    return f"{stem or 'image'}-{digest[:10]}"


# --- draws ----------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Draws:
    """Timesteps (B, N) long and noise (B, N, C, h, w) float32: with them a loss is a fixed function."""

    timesteps: Tensor
    noise: Tensor

    def __getitem__(self, rows: Tensor | slice | tuple) -> "Draws":
        return Draws(self.timesteps[rows], self.noise[rows])

    def to(self, device: torch.device | str) -> "Draws":
        return Draws(self.timesteps.to(device), self.noise.to(device))


def make_draws(
    seed: int,
    image_ids: Sequence[str],
    key: tuple[str | int, ...],
    count: int,
    timesteps: tuple[int, int],
    latent_shape: Sequence[int],
) -> Draws:
    """Draw `count` = N pairs (t, eps) an image, t stratified: one in each N-th part of [t_min, t_max).

    An image's draws are a function of (seed, image id, key) alone: neither its place in the batch nor its
    neighbours nor the process matter. Raises UserError for an empty range of timesteps or no draws.
    """
    t_min, t_max = timesteps
    if not 0 <= t_min < t_max:
        raise UserError(f"timesteps=[{t_min}, {t_max}]: give 0 <= first < last")
    if count < 1:
        raise UserError(f"draws={count}: at least one draw is needed")
    generators = [_generator(seed, image_id, key) for image_id in image_ids]
    uniform = torch.stack([torch.rand(count, generator=g, dtype=torch.float64) for g in generators])  # (B, N)
    noise = torch.stack([torch.randn(count, *latent_shape, generator=g) for g in generators])
    drawn = t_min + (torch.arange(count) + uniform) * ((t_max - t_min) / count)
    return Draws(drawn.floor().long().clamp(t_min, t_max - 1), noise)  # (B, N), (B, N, C, h, w)


def _generator(seed: int, image_id: str, key: tuple[str | int, ...]) -> torch.Generator:
    # Python's own hash() differs from process to process; sha256 of an unambiguous text does not.
    text = json.dumps([int(seed), image_id, *key])
    digest = hashlib.sha256(text.encode()).digest()
    return torch.Generator().manual_seed(int.from_bytes(digest[:8], "big") >> 1)


# --- Lightning ------------------------------------------------------------------------------------


class InversionData(LightningDataModule):
    """Feed an inversion: epoch e yields `steps` batches (latents, Draws for ("epoch", e, "step", s)).

    `latents` is (B, C, h, w); `draws` is N, the number of draws an image;
    `timesteps` the range [t_min, t_max) they come from.
    """

    def __init__(
        self,
        latents: Tensor,
        image_ids: Sequence[str],
        seed: int,
        draws: int,
        steps: int = 1,
        timesteps: tuple[int, int] = (500, 1000),
    ) -> None:
        super().__init__()
        self.latents, self.image_ids = latents, list(image_ids)
        self.seed, self.draws, self.steps, self.timesteps = seed, draws, steps, timesteps

    def train_dataloader(self) -> "_Steps":
        return _Steps(self)

    def batch(self, epoch: int, step: int) -> tuple[Tensor, Draws]:
        """Make the batch of one step, the same whenever and wherever it is asked for."""
        key = ("epoch", epoch, "step", step)
        shape = self.latents.shape[1:]
        return self.latents, make_draws(self.seed, self.image_ids, key, self.draws, self.timesteps, shape)


class _Steps:
    """The steps of the trainer's current epoch.

    A plain iterable: there is nothing to shuffle, shard or prefetch, and Lightning advises more workers
    only for a `DataLoader`.
    """

    def __init__(self, data: InversionData) -> None:
        self.data = data

    def __len__(self) -> int:
        return self.data.steps

    def __iter__(self) -> Iterator[tuple[Tensor, Draws]]:
        # A generator: this runs at the first `next`, when a resumed trainer already knows where it stands.
        trainer = self.data.trainer
        done = trainer.fit_loop.epoch_loop.batch_progress.current.ready if trainer else 0
        for step in range(done, self.data.steps):
            yield self.data.batch(trainer.current_epoch if trainer else 0, step)

    def state_dict(self) -> dict[str, int]:
        """Tell Lightning that this loader resumes in mid-epoch; the trainer's own counters say where."""
        return {}

    def load_state_dict(self, state: dict[str, int]) -> None:
        """Take nothing: see `state_dict`."""
