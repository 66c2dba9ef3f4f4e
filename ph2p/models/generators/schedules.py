"""How much noise a timestep means, and what the denoiser was trained to predict from it.

A timestep of ours, t in [0, 1000), means one noise level in every family: that of Stable Diffusion's schedule. So
"late timesteps", t in [500, 1000), are the same signal-to-noise ratios for a model of another schedule and for a
flow-matching model, which get the time of their own that comes closest.

Symbols: K denoiser rows, (C, h, w) a latent, T timesteps, a_t = alphas_cumprod, s = sigma of a flow.
"""

from abc import ABC, abstractmethod
from typing import Any

import torch
from torch import Tensor, nn

from ph2p.errors import UserError

PREDICTION_TYPES = ("epsilon", "v_prediction", "sample")


def stable_diffusion_alphas() -> Tensor:
    """a_t of Stable Diffusion 1 and 2 and SDXL: (1000,) float64, from 0.999 down to 0.0047.

    The square roots of beta rise linearly from sqrt(0.00085) to sqrt(0.012).
    """
    betas = torch.linspace(0.00085**0.5, 0.012**0.5, 1000, dtype=torch.float64).square()
    return (1 - betas).cumprod(0)


class Schedule(nn.Module, ABC):
    """Mixes latents with noise: z_t = signal z_0 + spread eps."""

    num_timesteps: int  # T
    times: Tensor  # (T,), what the denoiser is told for each timestep

    @abstractmethod
    def rates(self, timesteps: Tensor, like: Tensor) -> tuple[Tensor, Tensor]:
        """Signal and spread (K, 1, 1, 1) of timesteps (K,), in the dtype of `like`."""

    @abstractmethod
    def target(self, latents: Tensor, noise: Tensor, timesteps: Tensor) -> Tensor:
        """What the denoiser was trained to predict; shapes as in `add_noise`."""

    def add_noise(self, latents: Tensor, noise: Tensor, timesteps: Tensor) -> Tensor:
        """z_t = signal z_0 + spread eps (K, C, h, w) of latents and noise (K, C, h, w) at timesteps (K,) long."""
        signal, spread = self.rates(timesteps, latents)
        return signal * latents + spread * noise

    def denoiser_times(self, timesteps: Tensor) -> Tensor:
        """The denoiser's own time (K,) of timesteps (K,)."""
        return self.times[timesteps]


class Diffusion(Schedule):
    """z_t = sqrt(a_t) z_0 + sqrt(1 - a_t) eps (Ho et al. 2020, eq. 4), the input that the denoiser knows.

    The scheduler's own `add_noise` is not used: Euler schedulers scale z_t differently. `same_noise`: the
    timesteps are Stable Diffusion's, and each means the own timestep with the nearest log(a / (1 - a)); without,
    they are the scheduler's own, which a model of Stable Diffusion's line may have rescaled to end in pure noise.

    Raises:
        UserError: a scheduler without such a schedule, or of an unknown prediction type.
    """

    alphas_cumprod: Tensor  # (T,)

    def __init__(self, scheduler: Any, same_noise: bool = False) -> None:
        super().__init__()
        alphas = getattr(scheduler, "alphas_cumprod", None)
        if alphas is None:
            raise UserError(f"scheduler: {type(scheduler).__name__} is not supported; take one such as DDIMScheduler")
        self.prediction_type: str = scheduler.config.get("prediction_type", "epsilon")
        if self.prediction_type not in PREDICTION_TYPES:
            raise UserError(
                f"scheduler: prediction_type {self.prediction_type!r} is not supported; known: "
                + ", ".join(PREDICTION_TYPES)
            )
        times = _same_noise(alphas) if same_noise else torch.arange(len(alphas))
        # A copy of our own: schedulers move and change theirs while they sample.
        self.register_buffer("alphas_cumprod", alphas[times].clone(), persistent=False)
        self.register_buffer("times", times, persistent=False)
        self.num_timesteps = len(times)

    def rates(self, timesteps: Tensor, like: Tensor) -> tuple[Tensor, Tensor]:
        alphas = self.alphas_cumprod[timesteps].to(like.dtype)[:, None, None, None]  # (K, 1, 1, 1)
        return alphas.sqrt(), (1 - alphas).sqrt()

    def target(self, latents: Tensor, noise: Tensor, timesteps: Tensor) -> Tensor:
        """eps, v = sqrt(a_t) eps - sqrt(1 - a_t) z_0 (Salimans & Ho 2022, section 4), or z_0."""
        if self.prediction_type == "epsilon":
            return noise
        if self.prediction_type == "sample":
            return latents
        signal, spread = self.rates(timesteps, latents)
        return signal * noise - spread * latents


def _same_noise(alphas: Tensor) -> Tensor:
    """For each of Stable Diffusion's timesteps the one with the nearest log signal-to-noise ratio: (1000,)."""
    distance = torch.logit(stable_diffusion_alphas())[:, None] - torch.logit(alphas.double(), eps=1e-12)  # (1000, T)
    return distance.abs().argmin(1)


class Flow(Schedule):
    """z_t = (1 - s) z_0 + s eps, of which the denoiser predicts eps - z_0 (flow matching, arXiv 2403.03206, eq. 13).

    The ratio of signal to noise is (1 - s) / s here and sqrt(a_t) / sqrt(1 - a_t) in Stable Diffusion. Equal for
        s = sqrt(1 - a_t) / (sqrt(a_t) + sqrt(1 - a_t)),
    so [500, 1000) is s in [0.62, 0.94). The scheduler's shift moves the steps of sampling; it changes nothing here.

    Raises:
        UserError: the scheduler is not one of flow matching.
    """

    sigmas: Tensor  # (1000,)

    def __init__(self, scheduler: Any) -> None:
        super().__init__()
        if "shift" not in scheduler.config and "flow_shift" not in scheduler.config:
            name = type(scheduler).__name__
            raise UserError(f"scheduler: {name} does no flow matching; take FlowMatchEulerDiscreteScheduler")
        alphas = stable_diffusion_alphas()
        sigmas = (1 - alphas).sqrt() / (alphas.sqrt() + (1 - alphas).sqrt())
        self.register_buffer("sigmas", sigmas.float(), persistent=False)
        times = self.sigmas * scheduler.config.num_train_timesteps
        self.register_buffer("times", times, persistent=False)
        self.num_timesteps = len(times)

    def rates(self, timesteps: Tensor, like: Tensor) -> tuple[Tensor, Tensor]:
        sigmas = self.sigmas[timesteps].to(like.dtype)[:, None, None, None]  # (K, 1, 1, 1)
        return 1 - sigmas, sigmas

    def target(self, latents: Tensor, noise: Tensor, timesteps: Tensor) -> Tensor:
        """The velocity dz/ds = eps - z_0."""
        return noise - latents
