"""The fixed noise draws that an image is optimised and measured on."""

import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from ph2p.errors import UserError


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
