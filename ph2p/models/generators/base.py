"""Frozen text-to-image pipelines seen through a few functions."""

import inspect
import math
from collections.abc import Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager, nullcontext
from types import MappingProxyType
from typing import Any, Self

import torch
from torch import Tensor, nn

from ph2p.errors import UserError
from ph2p.models.counter import Counter
from ph2p.models.frozen import Frozen, at_least_float32, scale_gradient
from ph2p.models.generators.autoencoder import Autoencoder, at_once
from ph2p.models.generators.checks import (
    check_channels,
    check_conditioning,
    check_image_size,
    check_negative,
    check_sampling,
)
from ph2p.models.generators.schedules import Schedule
from ph2p.models.microbatch import MicroBatch
from ph2p.models.quiet import quiet
from ph2p.models.vocabulary import Vocabulary

HELD = (nn.Linear, nn.Conv2d)  # layers whose weights autocast would cast at each call


class Generator(Frozen):
    """A text-to-image diffusion pipeline of diffusers, frozen; one subclass for every family of pipelines.

    Symbols: B images, M prompt tokens, L context length, E width of the conditioning, D width of the token
    embeddings, K denoiser rows, (C, h, w) a latent.

    Args:
        context_length: L, begin and end of text included.
        framing: how many of these L are not the prompt's.
        image_size: (H, W); None: the pipeline's own.
        clip_skip: CLIP layers passed over at the end, counted as the pipeline does; None: as it does by default.

    Raises:
        UserError: parts that do not fit each other, a size that the pipeline cannot paint, or a `clip_skip` that it
            does not know.
    """

    pipeline_class: str  # the name in model_index.json and in diffusers
    absent: tuple[str, ...] = ()  # components of the pipeline that we always leave out
    optional: tuple[str, ...] = ()  # components that a user may leave out
    offloaded: tuple[str, ...] = ("vae",)  # components that wait on the CPU if `offload` is set
    packing = 1  # side of the latent's squares that the pipeline packs into one
    sampling: Mapping[str, Any] = MappingProxyType({})  # fixed arguments of the pipeline's __call__

    def __init__(
        self,
        pipeline: Any,
        vocabulary: Vocabulary,
        schedule: Schedule,
        *,
        context_length: int,
        framing: int,
        image_size: tuple[int, int] | None = None,
        clip_skip: int | None = None,
    ) -> None:
        super().__init__()
        self.pipeline, self.vocabulary, self.schedule = pipeline, vocabulary, schedule
        self.microbatch = MicroBatch()  # rows that this model takes at once on its device
        self.autocast: torch.dtype | None = None  # see `mix`
        self.offload = False
        modules = {name: part for name, part in pipeline.components.items() if isinstance(part, nn.Module)}
        self.components = nn.ModuleDict(modules)
        if clip_skip is not None and "clip_skip" not in inspect.signature(pipeline.__call__).parameters:
            raise UserError(f"generator.clip_skip={clip_skip}: {self.pipeline_class} has none; leave it out")
        self.clip_skip = clip_skip
        self.context_length, self.max_prompt_length = context_length, context_length - framing
        self.autoencoder = Autoencoder(pipeline.vae)
        check_channels(self.denoiser, self.autoencoder.channels, self.packing)
        scale: int = pipeline.vae_scale_factor
        self.image_size = image_size or self._own_image_size()  # (H, W)
        check_image_size(self.image_size, self.denoiser, scale, self.packing)
        self.latent_shape = (self.autoencoder.channels, *(side // scale for side in self.image_size))  # (C, h, w)
        # In float16 the gradient of a mean over a latent underflows; with this it is that of a sum.
        self.gradient_scale = float(math.prod(self.latent_shape)) if self.denoiser.dtype == torch.float16 else 1.0
        self.counter = Counter(self.denoiser)
        pipeline.set_progress_bar_config(disable=True)
        self.freeze()

    @property
    def denoiser(self) -> Any:
        return getattr(self.pipeline, "unet", None) or self.pipeline.transformer

    @property
    def device(self) -> torch.device:
        return self.vocabulary.embeddings.device

    @property
    def num_timesteps(self) -> int:
        return self.schedule.num_timesteps

    def _own_image_size(self) -> tuple[int, int]:
        size = getattr(self.pipeline, "default_sample_size", None) or self.denoiser.config.sample_size
        height, width = (size, size) if isinstance(size, int) else size
        return height * self.pipeline.vae_scale_factor, width * self.pipeline.vae_scale_factor

    # --- memory and precision ------------------------------------------------------------------------------------

    def place(self, device: torch.device | str, offload: bool = False) -> Self:
        """Move to a device; with `offload` the components in `offloaded` go there only while they work."""
        self.offload = offload
        self.vocabulary.to(device)
        self.schedule.to(device)
        for name, part in self.components.items():
            part.to("cpu" if offload and name in self.offloaded else device)
            if name in ("unet", "vae"):
                lay_out(part, torch.device(device))
        return self

    def mix(self, dtype: torch.dtype) -> Self:
        """Compute in mixed precision: what autocast holds safe in `dtype`, the rest as the weights are.

        The weights that autocast would cast at each call are cast once: the results are the same. The VAE stays as
        it is, or latents would lose digits that a target has but once.
        """
        self.autocast = dtype
        for name, part in self.components.items():
            for layer in part.modules() if name != "vae" else ():
                if isinstance(layer, HELD) and layer.weight.dtype == torch.float32:
                    layer.to(dtype)
        return self

    def _precision(self) -> AbstractContextManager[Any]:
        return torch.autocast(self.device.type, self.autocast) if self.autocast else nullcontext()

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

    def encode_images(self, images: Tensor) -> Tensor:
        """Latents (B, C, h, w) of images (B, 3, H, W) in [0, 1]; see `Autoencoder.encode`."""
        with self.resident("vae"):
            return self.microbatch.map(
                "encode", at_once(self.image_size), self.autoencoder.encode, images.to(self.device)
            )

    def decode_latents(self, latents: Tensor) -> Tensor:
        """Images (B, 3, H, W) in [0, 1] of latents (B, C, h, w)."""
        with self.resident("vae"):
            return self.microbatch.map("decode", at_once(self.image_size), self.autoencoder.decode, latents)

    # --- prompts -------------------------------------------------------------------------------------------------

    def prepare(self, token_ids: Tensor) -> None:
        """Encode once what encoders without a gradient read of prompts (K, M) that will come in parts."""

    def condition(self, token_ids: Tensor, embeddings: Tensor | None = None) -> dict[str, Tensor]:
        """What the denoiser knows of prompts: tensors of B rows for `predict`.

        Args:
            token_ids: (B, M) long; what is read as well as the embeddings: the end of text, and all that encoders
                without a gradient see, which so follow the last projection.
            embeddings: (B, M, D), taken instead of the token embeddings of `token_ids`; gradients reach them.

        Raises:
            UserError: M is more than `max_prompt_length`.
        """
        if embeddings is not None:
            embeddings = scale_gradient(embeddings, 1 / self.gradient_scale)
        with self._precision():
            return self._condition(token_ids.to(self.device), embeddings)

    @torch.no_grad()
    def check_texts(self) -> None:
        """Encode one word: the denoiser takes what comes out.

        Raises:
            UserError: it does not, or `clip_skip` passes over more layers than there are.
        """
        try:
            conditioning = self.condition(self.vocabulary.allowed_ids[None, :1])
        except IndexError as error:
            if self.clip_skip is None:
                raise
            raise UserError(f"generator.clip_skip={self.clip_skip}: the text encoder has fewer layers") from error
        check_conditioning(self.denoiser, conditioning)

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
        noisy = noisy if self.autocast else noisy.to(self.denoiser.dtype)
        with self._precision():
            output = self._denoise(noisy, times, conditioning)
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
        negative_prompt: str | None = None,
    ) -> Tensor:
        """Renderings (K, 3, H, W) of prompts, in [0, 1], made by the pipeline's own `__call__`.

        Each has a random generator of its own, on the CPU: it depends neither on its batch nor on the device.

        Raises:
            UserError: the pipeline knows no `guidance_rescale`, or no negative prompt can act (`check_negative`).
        """
        self.check_sampling({}, guidance_rescale)
        options: dict[str, Any] = dict(guidance_rescale=guidance_rescale) if guidance_rescale else {}
        if self.clip_skip is not None:
            options["clip_skip"] = self.clip_skip
        if negative_prompt is not None:
            check_negative(self.pipeline, guidance_scale)
            options["negative_prompt"] = [negative_prompt] * len(prompts)
        height, width = self.image_size
        with self.resident(*self.offloaded), self._precision(), quiet():
            latents = self.pipeline(
                prompt=prompts,
                generator=[torch.Generator().manual_seed(seed) for seed in seeds],
                num_inference_steps=steps,
                guidance_scale=guidance_scale,
                height=height,
                width=width,
                output_type="latent",
                **options,
                **self.sampling,
            ).images
        return self.decode_latents(self._unpack(latents))

    def check_sampling(self, steps: Mapping[str, int], guidance_rescale: float) -> None:
        """Raise UserError if the pipeline cannot paint so; see `checks.check_sampling`."""
        check_sampling(self.pipeline, steps, guidance_rescale)

    def _unpack(self, latents: Tensor) -> Tensor:
        return latents


def lay_out(part: nn.Module, device: torch.device) -> None:
    """Convolutions on a GPU are faster with the channels last."""
    if device.type == "cuda":
        part.to(memory_format=torch.channels_last)  # type: ignore[call-overload]  # torch's stubs lack it
