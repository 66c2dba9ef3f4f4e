"""The denoiser, trained together with its text tower."""

from pathlib import Path

import numpy as np
import torch
from diffusers import AutoencoderKL, DDIMScheduler, StableDiffusionPipeline, UNet2DConditionModel
from diffusers.models.attention_processor import AttnProcessor
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn
from transformers import CLIPTextModel, CLIPTokenizer

from ph2p.tiny.recipe.scenes import IMAGE_SIZE
from ph2p.tiny.recipe.stage import Stage
from ph2p.tiny.recipe.tokenizer import load_tokenizer, tokenize
from ph2p.tiny.recipe.vae import LATENT_CHANNELS, start_linear
from ph2p.world import scenes as world
from ph2p.world.captions import canonical_caption, random_caption


class UNetStage(Stage):
    """The denoiser and its text tower: v-prediction on frozen latents, 10 % empty captions, averaged weights.

    The text tower comes from CLIP and is trained along: on CLIP's frozen states the U-Net learnt colours, sizes and
    places, but painted every shape as the same blob.
    """

    name, batch_size, lr = "unet", 64, 6e-4
    empty_captions = 0.1
    # Draws from [500, 1000) only, where the words decide and PH2P works; the others are from all timesteps. With 0.6
    # too little was learnt of the early ones, and painted shapes stayed blurred.
    late_timesteps = 0.2
    # Errors on objects weigh three times in the first part of the steps, for there the words are to be learnt; then
    # alike, since a weight that depends on the picture bends what the denoiser should predict.
    object_weight, weighted_steps = 3.0, 0.5
    # How much more often a scene comes whose objects are all small: they fill nine of the 64 patches, and as often
    # as the others they were painted with the right shape in 42 %, larger ones in 94 %.
    small_scenes = 3.0

    def __init__(
        self,
        seed: int,
        steps: int,
        scenes: list[world.Scene],
        latents: Tensor,
        objects: Tensor,
        tokenizer: CLIPTokenizer,
        text_encoder: CLIPTextModel,
    ):
        super().__init__(seed, steps)
        self.scenes, self.tokenizer = scenes, tokenizer
        small = np.array([all(thing.size == "small" for thing in scene.things) for scene in scenes])
        frequency = np.where(small, self.small_scenes, 1)  # (S,)
        self._chances = frequency / frequency.sum()
        self._latents, self._objects = latents, objects  # (S, 20, 8, 8), (S, 1, 8, 8); kept out of the checkpoint
        self.scheduler = make_scheduler()
        self.model = nn.ModuleDict({"unet": make_unet(), "text_encoder": text_encoder.train().requires_grad_(True)})
        self.average = AveragedModel(self.model, multi_avg_fn=get_ema_multi_avg_fn(0.998))

    def loss(self, rng: np.random.Generator, generator: torch.Generator) -> Tensor:
        rows = rng.choice(len(self.scenes), size=self.batch_size, p=self._chances)
        captions = [self._caption(self.scenes[i], rng) for i in rows]
        states = self.model["text_encoder"](tokenize(self.tokenizer, captions, self.device))[0]
        latents = self._latents[rows].to(self.device)
        low = np.where(rng.random(self.batch_size) < self.late_timesteps, 500, 0)
        timesteps = torch.from_numpy(rng.integers(low, 1000)).to(self.device)
        noise = torch.randn(latents.shape, generator=generator, device=self.device)
        noisy = self.scheduler.add_noise(latents, noise, timesteps)
        velocity = self.scheduler.get_velocity(latents, noise, timesteps)
        error = (self.model["unet"](noisy, timesteps, states).sample.float() - velocity).square()
        if self.global_step < self.weighted_steps * self.steps:
            error = error * (1 + (self.object_weight - 1) * self._objects[rows].to(self.device))
        return error.mean()

    def _caption(self, scene: world.Scene, rng: np.random.Generator) -> str:
        if rng.random() < self.empty_captions:
            return ""
        return canonical_caption(scene) if rng.random() < 0.25 else random_caption(scene, rng)

    def on_train_batch_end(self, *_) -> None:
        self.average.update_parameters(self.model)


def make_unet() -> UNet2DConditionModel:
    unet = UNet2DConditionModel(
        sample_size=IMAGE_SIZE // 8,
        in_channels=LATENT_CHANNELS,
        out_channels=LATENT_CHANNELS,
        block_out_channels=(96, 160),
        down_block_types=("CrossAttnDownBlock2D", "DownBlock2D"),
        up_block_types=("UpBlock2D", "CrossAttnUpBlock2D"),
        layers_per_block=1,
        cross_attention_dim=128,
        attention_head_dim=4,
    )
    # With the fused attention a training step in bfloat16 takes 1.5 times as long on CPUs.
    unet.set_attn_processor(AttnProcessor())
    start_linear(unet)
    return unet


def make_scheduler() -> DDIMScheduler:
    """Stable Diffusion's schedule, rescaled to end in pure noise.

    With the original one the last timestep still shows the picture's mean, and plain backgrounds come out muddy
    (Lin et al. 2023, arXiv 2305.08891): hence v-prediction, zero terminal SNR and trailing spacing.
    """
    return DDIMScheduler(
        num_train_timesteps=1000,
        beta_start=0.00085,
        beta_end=0.012,
        beta_schedule="scaled_linear",
        prediction_type="v_prediction",
        rescale_betas_zero_snr=True,
        timestep_spacing="trailing",
        clip_sample=False,
        set_alpha_to_one=True,
        steps_offset=1,
    )


def object_patches(pictures: np.ndarray) -> Tensor:
    """Which 8x8 patches show more than background, the colour of the top left pixel: (N, 1, 8, 8) in {0, 1}."""
    differs = (np.abs(pictures.astype(np.int16) - pictures[:, :1, :1]) > 12).any(3)
    return torch.from_numpy(differs.reshape(-1, 1, 8, 8, 8, 8).any((3, 5))).float()


def save_pipeline(model: nn.ModuleDict, weights: Path) -> None:
    """Write U-Net, text tower, scheduler and model_index.json beside the finished parts: a diffusers folder."""
    pipeline = StableDiffusionPipeline(
        vae=AutoencoderKL.from_pretrained(weights / "vae"),
        text_encoder=model["text_encoder"].cpu(),
        tokenizer=load_tokenizer(weights),
        unet=model["unet"].cpu(),
        scheduler=make_scheduler(),
        safety_checker=None,
        feature_extractor=None,
        requires_safety_checker=False,
    )
    pipeline.to(dtype=torch.float16).save_pretrained(weights, safe_serialization=True)
