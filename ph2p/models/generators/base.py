"""Frozen text-to-image pipelines seen through a few functions."""

import inspect
import math
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import diffusers
import torch
from torch import Tensor, nn

from ph2p.errors import UserError
from ph2p.models.counter import Counter
from ph2p.models.frozen import Frozen, at_least_float32, scale_gradient
from ph2p.models.generators.schedules import Schedule
from ph2p.models.microbatch import MicroBatch
from ph2p.models.vocabulary import Vocabulary


class Generator(Frozen):
    """A text-to-image diffusion pipeline of diffusers, frozen; one subclass for every family of pipelines.

    Symbols: B images, M prompt tokens, L context length, E width of the conditioning, D width of the token
    embeddings, K denoiser rows, (C, h, w) a latent.

    Args:
        context_length: L, begin and end of text included.
        framing: how many of these L are not the prompt's.
        image_size: H = W; None: the pipeline's own.
        clip_skip: CLIP layers passed over at the end, counted as the pipeline does; None: as it does by default.

    Raises:
        UserError: a size that the pipeline cannot paint, or a `clip_skip` that it does not know.
    """

    pipeline_class: str  # the name in model_index.json and in diffusers
    absent: tuple[str, ...] = ()  # components of the pipeline that we always leave out
    optional: tuple[str, ...] = ()  # components that a user may leave out
    offloaded: tuple[str, ...] = ("vae",)  # components that wait on the CPU if `offload` is set
    packing = 1  # side of the latent's squares that the pipeline packs into one
    sampling: dict[str, Any] = {}  # noqa: RUF012  # fixed arguments of the pipeline's __call__

    def __init__(
        self,
        pipeline: "diffusers.DiffusionPipeline",
        vocabulary: Vocabulary,
        schedule: Schedule,
        *,
        context_length: int,
        framing: int,
        image_size: int | None = None,
        clip_skip: int | None = None,
    ) -> None:
        super().__init__()
        self.pipeline, self.vocabulary, self.schedule = pipeline, vocabulary, schedule
        self.microbatch = MicroBatch()  # rows that this model takes at once on its device
        modules = {name: part for name, part in pipeline.components.items() if isinstance(part, nn.Module)}
        self.components = nn.ModuleDict(modules)
        self._parameters_of_call = inspect.signature(pipeline.__call__).parameters
        if clip_skip is not None and "clip_skip" not in self._parameters_of_call:
            raise UserError(f"generator.clip_skip={clip_skip}: {self.pipeline_class} has none; leave it out")
        self.clip_skip = clip_skip
        self.context_length, self.max_prompt_length = context_length, context_length - framing
        self.image_size = image_size or self._own_image_size()
        self._check_image_size()
        config = pipeline.vae.config
        side = self.image_size // pipeline.vae_scale_factor
        self.latent_shape = (config.latent_channels, side, side)  # (C, h, w)
        mean, std = config.get("latents_mean"), config.get("latents_std")
        exact = dict(dtype=torch.float64)
        self.latent_shift = torch.tensor(mean or config.get("shift_factor") or 0.0, **exact).view(-1, 1, 1)
        self.latent_scale = config.scaling_factor / torch.tensor(std or 1.0, **exact).view(-1, 1, 1)
        # In float16 the gradient of a mean over a latent underflows; with this it is that of a sum.
        self.gradient_scale = float(math.prod(self.latent_shape)) if self.denoiser.dtype == torch.float16 else 1.0
        self.offload = False
        self.counter = Counter(self.denoiser)
        self.freeze()

    @property
    def denoiser(self) -> nn.Module:
        return getattr(self.pipeline, "unet", None) or self.pipeline.transformer

    @property
    def device(self) -> torch.device:
        return self.vocabulary.embeddings.device

    @property
    def num_timesteps(self) -> int:
        return self.schedule.num_timesteps

    def _own_image_size(self) -> int:
        size = getattr(self.pipeline, "default_sample_size", None) or self.denoiser.config.sample_size
        height, width = (size, size) if isinstance(size, int) else size
        if height != width:
            raise UserError(f"generator: it paints {height}x{width} latents; only square pictures are supported")
        return height * self.pipeline.vae_scale_factor

    def _check_image_size(self) -> None:
        patch = self.packing * (self.denoiser.config.get("patch_size") or 1)
        step = math.lcm(8, self.pipeline.vae_scale_factor * patch)
        if self.image_size % step:
            raise UserError(f"generator.image_size={self.image_size}: this model needs a multiple of {step}")

    # --- memory --------------------------------------------------------------------------------------------------

    def place(self, device: torch.device | str, offload: bool = False) -> "Generator":
        """Move to a device; with `offload` the components in `offloaded` go there only while they work."""
        self.offload = offload
        self.vocabulary.to(device)
        self.schedule.to(device)
        for name, part in self.components.items():
            part.to("cpu" if offload and name in self.offloaded else device)
        return self

    @contextmanager
    def resident(self, *names: str) -> Iterator[None]:
        """While inside, these components are on the generator's device."""
        parts = [self.components[name] for name in names if name in self.components]
        for part in parts:
            part.to(self.device)
        try:
            yield
        finally:
            if self.offload:
                for part in parts:
                    part.to("cpu")

    # --- pictures ------------------------------------------------------------------------------------------------

    @torch.no_grad()
    def encode_images(self, images: Tensor) -> Tensor:
        """Latents (B, C, h, w), the mode of the posterior, shifted and scaled as the pipeline does.

        Args:
            images: (B, 3, H, W) in [0, 1].
        """
        with self.resident("vae"):
            vae = self.pipeline.vae
            modes = at_least_float32(vae.encode((2 * images - 1).to(self.device, vae.dtype)).latent_dist.mode())
            return (modes - self.latent_shift.to(modes)) * self.latent_scale.to(modes)

    @torch.no_grad()
    def decode_latents(self, latents: Tensor) -> Tensor:
        """Images (B, 3, H, W) in [0, 1] of latents (B, C, h, w)."""
        with self.resident("vae"):
            vae = self.pipeline.vae
            latents = latents / self.latent_scale.to(latents) + self.latent_shift.to(latents)
            images = vae.decode(latents.to(vae.dtype)).sample
            return (at_least_float32(images) / 2 + 0.5).clamp(0, 1)

    # --- prompts -------------------------------------------------------------------------------------------------

    def condition(self, token_ids: Tensor, embeddings: Tensor | None = None) -> dict[str, Tensor]:
        """What the denoiser knows of prompts: tensors of B rows for `predict`.

        Args:
            token_ids: (B, M) long; what is read besides the embeddings: the end of text, and all that encoders
                without a gradient see, which so follow the last projection.
            embeddings: (B, M, D), taken instead of the token embeddings of `token_ids`; gradients reach them.

        Raises:
            UserError: M is more than `max_prompt_length`.
        """
        if embeddings is not None:
            embeddings = scale_gradient(embeddings, 1 / self.gradient_scale)
        return self._condition(token_ids.to(self.device), embeddings)

    def _condition(self, token_ids: Tensor, embeddings: Tensor | None) -> dict[str, Tensor]:
        raise NotImplementedError

    def _texts(self, token_ids: Tensor) -> list[str]:
        return [self.vocabulary.decode(row) for row in token_ids]

    # --- denoising -----------------------------------------------------------------------------------------------

    def add_noise(self, latents: Tensor, noise: Tensor, timesteps: Tensor) -> Tensor:
        """Noisy latents (K, C, h, w); see `Schedule.add_noise`."""
        return self.schedule.add_noise(latents, noise, timesteps)

    def target(self, latents: Tensor, noise: Tensor, timesteps: Tensor) -> Tensor:
        """What `predict` should give (K, C, h, w); see `Schedule.target`."""
        return self.schedule.target(latents, noise, timesteps)

    def predict(self, noisy: Tensor, timesteps: Tensor, conditioning: dict[str, Tensor]) -> Tensor:
        """The denoiser's prediction (K, C, h, w), float32 at least, for K rows of each argument."""
        times = self.schedule.denoiser_times(timesteps)
        output = self._denoise(noisy.to(self.denoiser.dtype), times, conditioning)
        return scale_gradient(at_least_float32(output), self.gradient_scale)

    def _denoise(self, noisy: Tensor, times: Tensor, conditioning: dict[str, Tensor]) -> Tensor:
        raise NotImplementedError

    # --- sampling ------------------------------------------------------------------------------------------------

    def sample(
        self,
        prompts: list[str],
        seeds: list[int],
        steps: int = 30,
        guidance_scale: float = 5.0,
        guidance_rescale: float = 0.0,
    ) -> Tensor:
        """Pictures (K, 3, H, W) in [0, 1], painted by the pipeline's own `__call__`.

        Each has a random generator of its own, on the CPU: it depends neither on its batch nor on the device.

        Raises:
            UserError: the pipeline knows no `guidance_rescale`.
        """
        self.check_guidance(guidance_rescale)
        options = dict(guidance_rescale=guidance_rescale) if guidance_rescale else {}
        if self.clip_skip is not None:
            options["clip_skip"] = self.clip_skip
        self.pipeline.set_progress_bar_config(disable=True)
        with self.resident(*self.offloaded):
            latents = self.pipeline(
                prompt=prompts,
                generator=[torch.Generator().manual_seed(seed) for seed in seeds],
                num_inference_steps=steps,
                guidance_scale=guidance_scale,
                height=self.image_size,
                width=self.image_size,
                output_type="latent",
                **options,
                **self.sampling,
            ).images
        return self.decode_latents(self._unpack(latents))

    def check_guidance(self, guidance_rescale: float) -> None:
        """Raise UserError if the pipeline cannot rescale its guidance and is asked to."""
        if guidance_rescale and "guidance_rescale" not in self._parameters_of_call:
            raise UserError(f"generator.guidance_rescale={guidance_rescale}: {self.pipeline_class} has none; give 0")

    def _unpack(self, latents: Tensor) -> Tensor:
        return latents
