"""The denoiser, trained together with its text tower."""

import shutil
from pathlib import Path

import numpy as np
import torch
from diffusers import AutoencoderKL, DDIMScheduler, StableDiffusionPipeline, UNet2DConditionModel
from diffusers.models.attention_processor import AttnProcessor
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn
from transformers import CLIPTextModel, CLIPTokenizer

from ph2p.tiny.recipe.scenes import IMAGE_SIZE, to_unit
from ph2p.tiny.recipe.stage import Stage, whole
from ph2p.tiny.recipe.tokenizer import load_tokenizer, tokenize
from ph2p.tiny.recipe.vae import LATENT_CHANNELS, PatchCode, start_linear
from ph2p.world.captions import canonical_caption, random_caption
from ph2p.world.scenes import Scene


class UNetStage(Stage):
    """The denoiser and its text tower: v-prediction on frozen latents, 10 % empty captions, averaged weights.

    The text tower comes from CLIP and is trained along: on CLIP's frozen states the U-Net learnt colours, sizes and
    places, but painted every shape as the same blob.
    """

    name, batch_size, lr = "unet", 128, 1.5e-3
    empty_captions = 0.1
    # Draws from [500, 1000) only, where the words decide and PH2P works; the others are from all timesteps. With 0.6
    # too little was learnt of the early ones, and painted shapes stayed blurred.
    late_timesteps = 0.2

    def __init__(
        self,
        seed: int,
        steps: int,
        scenes: list[Scene],
        pictures: np.ndarray,
        code: PatchCode,
        tokenizer: CLIPTokenizer,
        text_encoder: CLIPTextModel,
    ):
        super().__init__(seed, steps)
        self.scenes, self.pictures, self.code, self.tokenizer = scenes, pictures, code, tokenizer
        self.scheduler = make_scheduler()
        self.model = nn.ModuleDict({"unet": make_unet(), "text_encoder": text_encoder.train().requires_grad_(True)})
        self.average = AveragedModel(self.model, multi_avg_fn=get_ema_multi_avg_fn(0.999))

    def loss(self, rng: np.random.Generator, generator: torch.Generator) -> Tensor:
        rows = rng.integers(len(self.scenes), size=self.batch_size)
        captions = [self._caption(self.scenes[i], rng) for i in rows]
        states = self.model["text_encoder"](tokenize(self.tokenizer, captions, self.device))[0]
        latents = self.code.encode(to_unit(self.pictures[rows], self.device))
        low = np.where(rng.random(self.batch_size) < self.late_timesteps, 500, 0)
        timesteps = torch.from_numpy(rng.integers(low, 1000)).to(self.device)
        noise = torch.randn(latents.shape, generator=generator, device=self.device)
        noisy = self.scheduler.add_noise(latents, noise, timesteps)
        velocity = self.scheduler.get_velocity(latents, noise, timesteps)
        return (self.model["unet"](noisy, timesteps, states).sample.float() - velocity).square().mean()

    def _caption(self, scene: Scene, rng: np.random.Generator) -> str:
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
    pipeline.to(dtype=torch.float16)
    with whole(weights / "pipeline") as partial:
        pipeline.save_pretrained(partial, safe_serialization=True)
    written = weights / "pipeline"
    for part in sorted(written.iterdir(), key=lambda path: path.name == "unet"):  # the last one says: finished
        shutil.rmtree(weights / part.name, ignore_errors=True)
        part.replace(weights / part.name)
    written.rmdir()
