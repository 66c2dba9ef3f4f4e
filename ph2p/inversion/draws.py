"""The fixed noise draws that an image is optimised and measured on."""

import hashlib
import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from ph2p.errors import UserError


@dataclass(frozen=True)
class Draws:
    """Timesteps (B, N) long and noise (B, N, C, h, w) float32: with them a loss is a fixed function.

    `shifts` (B, N, M, D) are added to a prompt's embeddings, each with its draw; None: nothing is.
    """

    timesteps: Tensor
    noise: Tensor
    shifts: Tensor | None = None

    def __getitem__(self, rows: Tensor | slice | tuple[Any, ...]) -> "Draws":
        return self._each(lambda part: part[rows])

    def to(self, device: torch.device | str) -> "Draws":
        return self._each(lambda part: part.to(device))

    @staticmethod
    def joined(parts: "Sequence[Draws]") -> "Draws":
        """The draws of all `parts`, which have no shifts, one after another along N."""
        return Draws(torch.cat([part.timesteps for part in parts], 1), torch.cat([part.noise for part in parts], 1))

    def _each(self, change: Callable[[Tensor], Tensor]) -> "Draws":
        shifts = None if self.shifts is None else change(self.shifts)
        return Draws(change(self.timesteps), change(self.noise), shifts)


def make_draws(
    seed: int,
    keys: Sequence[str],
    purpose: tuple[str | int, ...],
    count: int,
    timesteps: tuple[int, int],
    latent_shape: Sequence[int],
    deviation: Tensor | None = None,
) -> Draws:
    """Draw `count` = N pairs (t, eps) an image, t stratified: one in each N-th part of [t_min, t_max).

    With a `deviation` (M, D) each also has normal shifts of the prompt's embeddings, that far from zero.

    An image's draws are a function of (seed, its key, purpose) alone: its place in the batch, its neighbours and the
    process do not matter. Raises UserError for an empty range of timesteps or no draws.
    """
    t_min, t_max = timesteps
    if not 0 <= t_min < t_max:
        raise UserError(f"timesteps=[{t_min}, {t_max}]: give 0 <= first < last")
    if count < 1:
        raise UserError(f"draws={count}: at least one draw is needed")
    generators = [random_generator(seed, key, purpose) for key in keys]
    uniform = torch.stack([torch.rand(count, generator=g, dtype=torch.float64) for g in generators])  # (B, N)
    noise = torch.stack([torch.randn(count, *latent_shape, generator=g) for g in generators])
    shifts = None
    if deviation is not None:
        unit = torch.stack([torch.randn(count, *deviation.shape, generator=g) for g in generators])
        shifts = unit * deviation.to(unit)  # (B, N, M, D)
    drawn = t_min + (torch.arange(count) + uniform) * ((t_max - t_min) / count)
    return Draws(drawn.floor().long().clamp(t_min, t_max - 1), noise, shifts)


def random_generator(seed: int, key: str, purpose: tuple[str | int, ...]) -> torch.Generator:
    """A generator on the CPU that is a function of seed, an image's key and a purpose alone."""
    # Python's own hash() differs from process to process; sha256 of an unambiguous text does not.
    text = json.dumps([int(seed), key, *purpose])
    digest = hashlib.sha256(text.encode()).digest()
    return torch.Generator().manual_seed(int.from_bytes(digest[:8], "big") >> 1)
