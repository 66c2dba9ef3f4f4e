"""The fixed noise draws that an image, or a set of images, is optimised and measured on."""

import hashlib
import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from ph2p.errors import UserError


class SetKey(str):
    """The key of a set of pictures that share a prompt: a name, and how the set's draws are divided among them.

    The set has `pictures` and, behind them, `negatives`, whose losses count `-weight`.
    """

    pictures: int
    negatives: int
    weight: float

    @classmethod
    def of(cls, name: str, pictures: int, negatives: int = 0, weight: float = 0.0) -> "SetKey":
        key = cls(name)
        key.pictures, key.negatives, key.weight = pictures, negatives, weight
        return key

    def named(self, name: str) -> "SetKey":
        """The same set by another name."""
        return SetKey.of(name, self.pictures, self.negatives, self.weight)

    def shown(self) -> "SetKey":
        """The set without its negatives."""
        return SetKey.of(self, self.pictures)


@dataclass(frozen=True)
class Draws:
    """Timesteps (B, N) long and noise (B, N, C, h, w) float32: with them a loss is a fixed function.

    `shifts` (B, N, M, D) are added to a prompt's embeddings, each with its draw; None: nothing is. Of a target that is
    a set each draw is of one of its `pictures` (B, N) long, and counts by its weight (B, N); None: of the only one.
    """

    timesteps: Tensor
    noise: Tensor
    shifts: Tensor | None = None
    pictures: Tensor | None = None
    weights: Tensor | None = None

    def clean(self, latents: Tensor) -> Tensor:
        """The latent that each draw is added to (B N, C, h, w); `latents` are (B, C, h, w), or (B, P, C, h, w) of sets
        of up to P pictures."""
        if self.pictures is not None:
            rows = torch.arange(len(latents), device=latents.device)[:, None]
            return latents[rows, self.pictures].flatten(0, 1)
        single = latents[:, 0] if latents.ndim == 5 else latents
        return single.repeat_interleave(self.timesteps.shape[1], 0)

    def __getitem__(self, rows: Tensor | slice | tuple[Any, ...]) -> "Draws":
        return self._each(lambda part: part[rows])

    def to(self, device: torch.device | str) -> "Draws":
        return self._each(lambda part: part.to(device))

    @staticmethod
    def joined(parts: "Sequence[Draws]") -> "Draws":
        """The draws of all `parts`, which have no shifts, one after another along N."""

        def along(one: Callable[[Draws], Tensor | None]) -> Tensor | None:
            known = [value for part in parts if (value := one(part)) is not None]
            return torch.cat(known, 1) if known else None

        timesteps = torch.cat([part.timesteps for part in parts], 1)
        noise = torch.cat([part.noise for part in parts], 1)
        return Draws(timesteps, noise, None, along(lambda part: part.pictures), along(lambda part: part.weights))

    def _each(self, change: Callable[[Tensor], Tensor]) -> "Draws":
        others = (None if part is None else change(part) for part in (self.shifts, self.pictures, self.weights))
        return Draws(change(self.timesteps), change(self.noise), *others)


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
    process do not matter. Those of a set, whose key is a `SetKey`, are divided among its pictures (`divided`).
    Raises UserError for an empty range of timesteps or no draws.
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
    members = divided(keys, count, generators) if any(isinstance(key, SetKey) for key in keys) else (None, None)
    return Draws(drawn.floor().long().clamp(t_min, t_max - 1), noise, shifts, *members)


def divided(keys: Sequence[str], count: int, generators: Sequence[torch.Generator]) -> tuple[Tensor, Tensor]:
    """Which picture of its set each draw is of (B, N) long, and its weight (B, N) float32.

    Draw n is of picture (first + n) mod (P + Q), of P pictures and Q negatives behind them; `first` is a random one of
    the P, so few draws are of other pictures each time. With the weights a mean over the draws is the mean over those
    of pictures, minus `key.weight` times the mean over those of negatives, if there are any among them.
    """
    pictures, weights = torch.zeros(len(keys), count, dtype=torch.long), torch.ones(len(keys), count)
    for row, (key, generator) in enumerate(zip(keys, generators, strict=True)):
        if isinstance(key, SetKey):
            first = torch.randint(key.pictures, (), generator=generator)
            pictures[row] = (first + torch.arange(count)) % (key.pictures + key.negatives)
            negative = pictures[row] >= key.pictures  # (N,)
            shown = count - int(negative.sum())
            weights[row] = torch.where(negative, -key.weight * count / max(1, count - shown), count / shown)
    return pictures, weights


def restarted(key: str, number: int) -> str:
    """The key of a target's restart `number`: the key itself for the first, 0."""
    name = f"{key}#{number}" if number else key
    return key.named(name) if isinstance(key, SetKey) else name


def random_generator(seed: int, key: str, purpose: tuple[str | int, ...]) -> torch.Generator:
    """A generator on the CPU that is a function of seed, an image's key and a purpose alone."""
    # Python's own hash() differs from process to process; sha256 of an unambiguous text does not.
    text = json.dumps([int(seed), key, *purpose])
    digest = hashlib.sha256(text.encode()).digest()
    return torch.Generator().manual_seed(int.from_bytes(digest[:8], "big") >> 1)
