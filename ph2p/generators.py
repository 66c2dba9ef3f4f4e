"""Frozen text-to-image pipelines seen through a few functions."""

from collections.abc import Iterable
from pathlib import Path
from typing import Any

import diffusers
import torch
from torch import Tensor, nn

from ph2p import pretrained
from ph2p.errors import UserError
from ph2p.frozen import Frozen, at_least_float32, context_length, frame_prompt, soft_prompt
from ph2p.memory import MicroBatch
from ph2p.vocabulary import Vocabulary

INDEX = diffusers.DiffusionPipeline.config_name  # model_index.json
PREDICTION_TYPES = ("epsilon", "v_prediction", "sample")


class Generator(Frozen):
    """A text-to-image diffusion pipeline of diffusers, frozen; one subclass for every family of pipelines.

    Symbols: B images, M prompt tokens, L context length, E width of the conditioning, D width of the token
    embeddings, K denoiser rows, (C, h, w) a latent.
    """

    pipeline_class: str  # the name in model_index.json and in diffusers
    absent: tuple[str, ...] = ()  # components of the pipeline that we leave out
    latent_shift = 0.0  # subtracted before scaling, in the families whose pipeline does so
    latent_shape: tuple[int, int, int]  # (C, h, w)
    image_size: int  # H = W
    context_length: int  # L
    max_prompt_length: int
    alphas_cumprod: Tensor  # (T,)

    def __init__(self, pipeline: "diffusers.DiffusionPipeline", vocabulary: Vocabulary) -> None:
        super().__init__()
        self.pipeline = pipeline
        self.vocabulary = vocabulary
        self.microbatch = MicroBatch()  # rows that this model takes at once on its device
        modules = {name: part for name, part in pipeline.components.items() if isinstance(part, nn.Module)}
        self.components = nn.ModuleDict(modules)  # moves the pipeline together with this module
        config = pipeline.scheduler.config
        self.num_timesteps: int = config.num_train_timesteps
        self.prediction_type: str = config.get("prediction_type", "epsilon")
        if self.prediction_type not in PREDICTION_TYPES:
            raise UserError(
                f"scheduler: prediction_type {self.prediction_type!r} is not supported; known: "
                + ", ".join(PREDICTION_TYPES)
            )
        self.latent_scale: float = pipeline.vae.config.scaling_factor
        # A copy of our own: schedulers move and change theirs while they sample.
        self.register_buffer("alphas_cumprod", pipeline.scheduler.alphas_cumprod.clone(), persistent=False)
        self.freeze()

    @property
    def device(self) -> torch.device:
        return self.vocabulary.embeddings.device

    @torch.no_grad()
    def encode_images(self, images: Tensor) -> Tensor:
        """Latents (B, C, h, w), the mode of the posterior, scaled as the pipeline does.

        Args:
            images: (B, 3, H, W) in [0, 1].
        """
        vae = self.pipeline.vae
        posterior = vae.encode((2 * images - 1).to(self.device, vae.dtype)).latent_dist
        return (at_least_float32(posterior.mode()) - self.latent_shift) * self.latent_scale

    @torch.no_grad()
    def decode_latents(self, latents: Tensor) -> Tensor:
        """Images (B, 3, H, W) in [0, 1] of latents (B, C, h, w)."""
        vae = self.pipeline.vae
        images = vae.decode((latents / self.latent_scale + self.latent_shift).to(vae.dtype)).sample
        return (at_least_float32(images) / 2 + 0.5).clamp(0, 1)

    def condition(self, token_ids: Tensor, embeddings: Tensor | None = None) -> dict[str, Tensor]:
        """The denoiser's keyword arguments for prompts, a row for every prompt.

        Args:
            token_ids: (B, M) long; what the pipeline's own code reads besides the embeddings (end of text).
            embeddings: (B, M, D), taken instead of the token embeddings of `token_ids`; gradients reach them.

        Raises:
            UserError: M is more than `max_prompt_length`.
        """
        raise NotImplementedError

    def add_noise(self, latents: Tensor, noise: Tensor, timesteps: Tensor) -> Tensor:
        """z_t = sqrt(a_t) z_0 + sqrt(1 - a_t) eps (Ho et al. 2020, eq. 4), the input that the denoiser knows.

        The scheduler's own `add_noise` is not used: Euler schedulers scale z_t differently.

        Args:
            latents: (K, C, h, w).
            noise: (K, C, h, w).
            timesteps: (K,) long in [0, num_timesteps), one for every row.
        """
        signal, spread = self._rates(timesteps, latents)
        return signal * latents + spread * noise

    def target(self, latents: Tensor, noise: Tensor, timesteps: Tensor) -> Tensor:
        """What the denoiser was trained to predict: eps, v = sqrt(a_t) eps - sqrt(1 - a_t) z_0, or z_0.

        Source of v: Salimans & Ho 2022, section 4. Shapes as in `add_noise`.
        """
        if self.prediction_type == "epsilon":
            return noise
        if self.prediction_type == "sample":
            return latents
        signal, spread = self._rates(timesteps, latents)
        return signal * noise - spread * latents

    def _rates(self, timesteps: Tensor, like: Tensor) -> tuple[Tensor, Tensor]:
        alphas = self.alphas_cumprod[timesteps].to(like.dtype)[:, None, None, None]  # (K, 1, 1, 1)
        return alphas.sqrt(), (1 - alphas).sqrt()

    def predict(self, noisy: Tensor, timesteps: Tensor, conditioning: dict[str, Tensor]) -> Tensor:
        """The denoiser's prediction (K, C, h, w), float32 at least, for K rows of each argument."""
        raise NotImplementedError

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
        """
        self.pipeline.set_progress_bar_config(disable=True)
        images = self.pipeline(
            prompt=prompts,
            generator=[torch.Generator().manual_seed(seed) for seed in seeds],
            num_inference_steps=steps,
            guidance_scale=guidance_scale,
            guidance_rescale=guidance_rescale,
            output_type="pt",
        ).images
        return at_least_float32(images)


class StableDiffusion(Generator):
    """Stable Diffusion 1.x and 2.x: one CLIP text encoder, its last hidden states, a U-Net."""

    pipeline_class = "StableDiffusionPipeline"
    absent = ("safety_checker", "feature_extractor", "image_encoder")

    def __init__(
        self,
        pipeline: "diffusers.StableDiffusionPipeline",
        *,
        blocklist: Iterable[str],
        allowlist: Iterable[str],
    ) -> None:
        tokenizer, encoder, unet = pipeline.tokenizer, pipeline.text_encoder, pipeline.unet
        table = encoder.get_input_embeddings().weight
        super().__init__(pipeline, Vocabulary(tokenizer, table, blocklist=blocklist, allowlist=allowlist))
        size = unet.config.sample_size
        height, width = (size, size) if isinstance(size, int) else size
        if height != width:
            raise UserError(f"generator: it paints {height}x{width} latents; only square pictures are supported")
        self.latent_shape = (unet.config.in_channels, height, width)
        self.image_size = height * pipeline.vae_scale_factor
        self.context_length = context_length(tokenizer, encoder.config.max_position_embeddings)
        self.max_prompt_length = self.context_length - 2  # begin and end of text

    def condition(self, token_ids: Tensor, embeddings: Tensor | None = None) -> dict[str, Tensor]:
        encoder = self.pipeline.text_encoder
        ids = frame_prompt(self.vocabulary.tokenizer, token_ids.to(self.device), self.context_length)  # (B, L)
        mask = None
        if getattr(encoder.config, "use_attention_mask", False):  # as in the pipeline's encode_prompt
            text = torch.arange(self.context_length, device=self.device) < token_ids.shape[1] + 2
            mask = text.long().expand_as(ids)
        with soft_prompt(encoder.get_input_embeddings(), embeddings):
            return {"encoder_hidden_states": encoder(ids, attention_mask=mask)[0]}  # (B, L, E)

    def predict(self, noisy: Tensor, timesteps: Tensor, conditioning: dict[str, Tensor]) -> Tensor:
        unet = self.pipeline.unet
        return at_least_float32(unet(noisy.to(unet.dtype), timesteps, **conditioning).sample)


FAMILIES = {family.pipeline_class: family for family in (StableDiffusion,)}


def load_generator(
    path_or_hub_id: str | Path,
    *,
    device: str | torch.device = "cpu",
    dtype: torch.dtype = torch.float32,
    local_files_only: bool = False,
    revision: str | None = None,
    variant: str | None = None,
    cache_dir: str | Path | None = None,
    blocklist: Iterable[str] | None = None,
    allowlist: Iterable[str] | None = None,
) -> Generator:
    """A pipeline from a diffusers folder or the Hugging Face hub.

    The class in `model_index.json` picks the family; weights are read from safetensors alone. `blocklist`
    and `allowlist` are words, see `Vocabulary`.

    Raises:
        UserError: no such folder or hub model, unknown pipeline class, missing or damaged files.
    """
    name = str(path_or_hub_id)
    folder = Path(name).expanduser()
    remote = not folder.exists()
    hub = dict(local_files_only=local_files_only, revision=revision, cache_dir=cache_dir)
    index_file = pretrained.download_file(name, INDEX, **hub) if remote else folder / INDEX
    index = pretrained.read_json(index_file, "give the folder of a diffusers pipeline")
    family = FAMILIES.get(index.get("_class_name", ""))
    if family is None:
        known = ", ".join(sorted(FAMILIES))
        raise UserError(f"{name}: pipelines of class {index.get('_class_name')} are not supported; known: {known}")
    with pretrained.plain_errors(name), pretrained.no_progress_bars():
        pipeline_class = pretrained.import_pipeline(family.pipeline_class)
        options: dict[str, Any] = dict(variant=variant, use_safetensors=True) | dict.fromkeys(family.absent)
        if remote:
            folder = Path(pipeline_class.download(name, **hub, **options))
        pretrained.check_components(folder, index, family.absent)
        pipeline = pipeline_class.from_pretrained(folder, dtype=dtype, requires_safety_checker=False, **options)
        pretrained.check_complete(pipeline)
    return family(pipeline, blocklist=blocklist or (), allowlist=allowlist or ()).to(device)
