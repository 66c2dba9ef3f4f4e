"""The VAE as the pipelines use it: pictures to latents and back."""

import math

import diffusers
import torch
from torch import Tensor, nn

from ph2p.errors import UserError
from ph2p.models.frozen import at_least_float32

PIXELS_AT_ONCE = 2**21  # eight pictures of 512 x 512: a VAE keeps far more of a picture than its pixels


class Autoencoder:
    """A pipeline's VAE with the shift and scale of its latents; always in its own precision, never in a lower one.

    Raises:
        UserError: it is of a kind that is not known here.
    """

    def __init__(self, vae: nn.Module) -> None:
        if not isinstance(vae, diffusers.AutoencoderKL | diffusers.AutoencoderTiny):
            raise UserError(f"vae: {type(vae).__name__} is not supported; take AutoencoderKL or AutoencoderTiny")
        self.vae, config = vae, vae.config
        self.channels: int = config.latent_channels
        mean, std = config.get("latents_mean"), config.get("latents_std")
        self.shift = _channels(mean or config.get("shift_factor") or 0.0)
        self.scale = config.scaling_factor / _channels(std or 1.0)

    @torch.no_grad()
    def encode(self, images: Tensor) -> Tensor:
        """Latents (B, C, h, w), the mode of the posterior, shifted and scaled; images (B, 3, H, W) in [0, 1]."""
        with torch.autocast(images.device.type, enabled=False):
            output = self.vae.encode((2 * images - 1).to(self.vae.dtype))
        # AutoencoderTiny has no posterior.
        modes = at_least_float32(output.latent_dist.mode() if hasattr(output, "latent_dist") else output.latents)
        return (modes - self.shift.to(modes)) * self.scale.to(modes)

    @torch.no_grad()
    def decode(self, latents: Tensor) -> Tensor:
        """Images (B, 3, H, W) in [0, 1] of latents (B, C, h, w)."""
        latents = latents / self.scale.to(latents) + self.shift.to(latents)
        with torch.autocast(latents.device.type, enabled=False):
            images = self.vae.decode(latents.to(self.vae.dtype)).sample
        return (at_least_float32(images) / 2 + 0.5).clamp(0, 1)


def at_once(size: tuple[int, int]) -> int:
    """How many pictures of (H, W) go through a VAE at once."""
    return max(1, PIXELS_AT_ONCE // math.prod(size))


def _channels(values: float | list[float]) -> Tensor:
    return torch.tensor(values, dtype=torch.float64).view(-1, 1, 1)
