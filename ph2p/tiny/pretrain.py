"""The recipe of the embedded model: tokenizer, CLIP, VAE and U-Net from nothing but drawn scenes.

    python -m ph2p.tiny.pretrain --work outputs/pretrain --weights ph2p/tiny/weights

Every stage writes a checkpoint as it goes and is skipped once its part stands in the weights folder, so the
same command continues after an interruption. `--stages` picks some of them; `report` measures the result.
"""

import argparse
import json
import time
from collections import Counter
from dataclasses import replace
from pathlib import Path

import lightning as L
import numpy as np
import torch
from diffusers import AutoencoderKL, DDIMScheduler, StableDiffusionPipeline, UNet2DConditionModel
from diffusers.models.attention_processor import AttnProcessor
from diffusers.models.resnet import ResnetBlock2D
from lightning.pytorch.callbacks import ModelCheckpoint
from tokenizers import Tokenizer, models, pre_tokenizers, trainers
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn
from torch.utils.data import DataLoader
from transformers import CLIPConfig, CLIPModel, CLIPTextModel, CLIPTokenizer

from ph2p.tiny import world
from ph2p.tiny.captions import canonical_caption, random_caption
from ph2p.tiny.drawing import render

CONTEXT_LENGTH = 32
IMAGE_SIZE = 64
LATENT_CHANNELS = 20
STAGES = ("tokenizer", "clip", "vae", "unet", "clip_image", "report")


class Stage(L.LightningModule):
    """One stage of the recipe: a loss on a batch that depends on (seed, step) alone, AdamW, one cosine.

    Because a batch is a function of the step, a resumed stage sees exactly the batches that it would have seen.
    """

    name: str
    steps: int
    batch_size: int
    lr: float
    weight_decay: float = 0.01

    def __init__(self, seed: int):
        super().__init__()
        self.seed = seed

    def trained(self) -> nn.Module:
        raise NotImplementedError

    def loss(self, rng: np.random.Generator, generator: torch.Generator) -> Tensor:
        raise NotImplementedError

    def training_step(self, batch: Tensor, batch_index: int) -> Tensor:
        key = [self.seed, STAGES.index(self.name), self.global_step]
        generator = torch.Generator(self.device).manual_seed(int(np.random.default_rng(key).integers(2**60)))
        loss = self.loss(np.random.default_rng(key), generator)
        self.log("loss", loss, prog_bar=True)
        return loss

    def configure_optimizers(self):
        parameters = self.trained().parameters()
        optimizer = torch.optim.AdamW(
            parameters,
            lr=self.lr,
            weight_decay=self.weight_decay,
            betas=(0.9, 0.98),
            fused=self.trainer.precision == "32-true",  # Lightning clips no gradients of a fused one under autocast
        )
        schedule = torch.optim.lr_scheduler.OneCycleLR(
            optimizer, self.lr, total_steps=self.steps, pct_start=0.05, div_factor=10, final_div_factor=20
        )
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": schedule, "interval": "step"}}


class StepLog(L.Callback):
    """Print step, loss and time left every 50 steps: one line each, readable in a terminal and in a log."""

    def on_train_start(self, trainer: L.Trainer, stage: Stage) -> None:
        self.started, self.first = time.time(), trainer.global_step

    def on_train_batch_end(self, trainer: L.Trainer, stage: Stage, *_) -> None:
        step = trainer.global_step
        if step % 50 == 0 or step == stage.steps:
            pace = (time.time() - self.started) / (step - self.first)
            left = pace * (stage.steps - step) / 60
            loss = float(trainer.callback_metrics["loss"])
            print(
                f"{stage.name} {step}/{stage.steps}  loss {loss:.4f}  {pace:.2f} s/step  {left:.1f} min left",
                flush=True,
            )


def start_linear(model: nn.Module) -> None:
    """Begin with residual branches that add nothing, so that colours pass the depth of the network at once."""
    for block in model.modules():
        if isinstance(block, ResnetBlock2D):
            nn.init.zeros_(block.conv2.weight)
            nn.init.zeros_(block.conv2.bias)


def fit(stage: Stage, work: Path, accelerator: str, precision: str = "bf16-mixed", save_every: int = 250) -> None:
    """Train a stage to its last step, from its own last checkpoint if there is one."""
    last = work / stage.name / "last.ckpt"
    trainer = L.Trainer(
        max_steps=stage.steps,
        accelerator=accelerator,
        devices=1,
        precision=precision,
        gradient_clip_val=1.0,
        logger=False,
        enable_progress_bar=False,
        callbacks=[
            ModelCheckpoint(
                last.parent, save_last=True, save_top_k=0, every_n_train_steps=save_every, enable_version_counter=False
            ),
            StepLog(),
        ],
        enable_model_summary=False,
    )
    steps = DataLoader(torch.arange(stage.steps), batch_size=1)  # the step itself is the batch's only key
    trainer.fit(stage, steps, ckpt_path=str(last) if last.exists() else None)
    trainer.save_checkpoint(last)  # so that a finished stage is not continued from its last multiple of 250


# --- scenes ------------------------------------------------------------------------------------------------------


def load_scenes(work: Path, count: int, seed: int) -> tuple[list[world.Scene], np.ndarray]:
    """Return the training scenes and their pictures (count, 64, 64, 3) uint8, painted once and kept on disk."""
    scenes = [world.scene("train", i, seed) for i in range(count)]
    path = work / f"scenes-{count}-{seed}.npy"
    if not path.exists():
        print(f"painting {count} scenes", flush=True)
        pictures = np.stack([render(scene, IMAGE_SIZE) for scene in scenes])
        partial = path.with_suffix(".partial.npy")
        np.save(partial, pictures)
        partial.rename(path)
    return scenes, np.load(path)


def to_unit(pictures: np.ndarray, device: torch.device | str = "cpu") -> Tensor:
    """Turn (B, H, W, 3) uint8 into (B, 3, H, W) float in [-1, 1]."""
    images = torch.from_numpy(pictures).to(device).permute(0, 3, 1, 2).float() / 127.5 - 1
    return images.contiguous(memory_format=torch.channels_last)


# --- tokenizer ---------------------------------------------------------------------------------------------------


def train_tokenizer(scenes: list[world.Scene], seed: int) -> tuple[CLIPTokenizer, list[str]]:
    """Learn CLIP's byte-pair encoding on captions until every word of the world is one token.

    Only the merges are taken from the trainer: it numbers the single bytes differently in every run, so the
    vocabulary is laid out here in CLIP's own order (bytes, bytes that end a word, merges, specials).
    """
    rng = np.random.default_rng([seed, 99])
    counts = Counter()
    for scene in scenes[:4000]:
        captions = [canonical_caption(scene), *(random_caption(scene, rng) for _ in range(4))]
        counts.update(word for text in captions for word in text.replace(",", " , ").split())
    words = sorted(word for word in counts if word.isalpha())
    learner = Tokenizer(models.BPE(end_of_word_suffix="</w>"))
    learner.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    trainer = trainers.BpeTrainer(vocab_size=10_000, end_of_word_suffix="</w>", show_progress=False)
    learner.train_from_iterator((" ".join([word] * counts[word]) for word in words), trainer)
    merges = [tuple(pair) for pair in json.loads(learner.to_str())["model"]["merges"]]
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    tokens = alphabet + [a + "</w>" for a in alphabet] + ["".join(pair) for pair in merges]
    tokens += ["<|startoftext|>", "<|endoftext|>"]
    vocabulary = {token: i for i, token in enumerate(dict.fromkeys(tokens))}
    return CLIPTokenizer(vocab=vocabulary, merges=merges, model_max_length=CONTEXT_LENGTH), words


def tokenize(tokenizer: CLIPTokenizer, texts: list[str], device: torch.device | str = "cpu") -> Tensor:
    """Return token ids (B, 32), padded as the diffusion pipeline pads them."""
    encoded = tokenizer(texts, padding="max_length", max_length=CONTEXT_LENGTH, truncation=True, return_tensors="pt")
    return encoded.input_ids.to(device)


# --- CLIP --------------------------------------------------------------------------------------------------------


def clip_config(tokenizer: CLIPTokenizer) -> CLIPConfig:
    width = {"hidden_size": 128, "intermediate_size": 512, "num_attention_heads": 4, "projection_dim": 128}
    text = {
        **width,
        "num_hidden_layers": 3,
        "vocab_size": len(tokenizer),
        "max_position_embeddings": CONTEXT_LENGTH,
        "bos_token_id": tokenizer.bos_token_id,
        "eos_token_id": tokenizer.eos_token_id,
        "pad_token_id": tokenizer.pad_token_id,
    }
    vision = {**width, "num_hidden_layers": 4, "image_size": IMAGE_SIZE, "patch_size": 8}
    return CLIPConfig(text_config=text, vision_config=vision, projection_dim=128)


class ClipStage(Stage):
    """Contrastive training of both towers (Radford et al. 2021, arXiv 2103.00020) with fresh captions every step."""

    name, batch_size, lr, weight_decay = "clip", 256, 1.5e-3, 0.05

    def __init__(self, seed: int, steps: int, scenes: list[world.Scene], pictures: np.ndarray, tokenizer):
        super().__init__(seed)
        self.steps, self.scenes, self.pictures, self.tokenizer = steps, scenes, pictures, tokenizer
        config = clip_config(tokenizer)
        config._attn_implementation = "eager"  # the fused attention's bf16 backward is slower on CPUs
        self.model = CLIPModel(config).train()

    def trained(self) -> nn.Module:
        return self.model

    def loss(self, rng: np.random.Generator, generator: torch.Generator) -> Tensor:
        scenes, pictures = self.pairs(rng)
        # Whole descriptions are to be told apart: an attribute is named with 90 %.
        captions = [random_caption(scene, rng, keep=0.9) for scene in scenes]
        ids = tokenize(self.tokenizer, captions, self.device)
        return self.model(input_ids=ids, pixel_values=to_unit(pictures, self.device), return_loss=True).loss

    def pairs(self, rng: np.random.Generator) -> tuple[list[world.Scene], np.ndarray]:
        """The scenes of a batch and their pictures (batch, 64, 64, 3)."""
        rows = rng.integers(len(self.scenes), size=self.batch_size)
        return [self.scenes[i] for i in rows], self.pictures[rows]


class ClipImageStage(ClipStage):
    """Tune the image tower to the final, frozen text tower (Zhai et al. 2022, arXiv 2111.07991).

    Random scenes are told apart without their shapes: a CLIP that ranked captions with 97 % named 13 % of them. So
    half of a batch is siblings: scenes that differ in nothing but the shape. And half of the pictures are what the
    U-Net makes of them (`repaint`): a tower that saw clean pictures alone misread the colours of painted ones.
    """

    name, lr = "clip_image", 1e-3
    families = 6  # of siblings in a batch, 19 each

    def __init__(
        self,
        seed: int,
        steps: int,
        scenes: list[world.Scene],
        pictures: np.ndarray,
        tokenizer: CLIPTokenizer,
        text_encoder: CLIPTextModel,
        earlier: CLIPModel,
        weights: Path,
        known: int = 300,  # scenes whose siblings are painted
        again: int = 12_000,  # scenes that are repainted
    ):
        super().__init__(seed, steps, scenes, pictures, tokenizer)
        self.model.load_state_dict(earlier.state_dict())
        set_text_tower(self.model, text_encoder)
        self.model.text_model.requires_grad_(False)
        alone = [scene for scene in scenes if scene.place][:known]
        self.related = [siblings(scene) for scene in alone]
        self.painted = [np.stack([render(scene, IMAGE_SIZE) for scene in family]) for family in self.related]
        together = [scene for family in self.related for scene in family]
        pictures_of_all = np.concatenate([*self.painted, pictures[:again]])
        repainted = repaint(weights, together + scenes[:again], pictures_of_all, tokenizer, text_encoder)
        ends = np.cumsum([len(family) for family in self.related])
        *self.painted_again, self.pictures_again = np.split(repainted, ends)

    def pairs(self, rng: np.random.Generator) -> tuple[list[world.Scene], np.ndarray]:
        chosen = rng.choice(len(self.related), size=self.families, replace=False)
        related = [sibling for i in chosen for sibling in self.related[i]]
        size = self.batch_size - len(related)
        rows = rng.integers([len(self.pictures_again)] * (size // 2) + [len(self.scenes)] * (size - size // 2))
        pictures = [(self.painted if k % 2 else self.painted_again)[i] for k, i in enumerate(chosen)]
        pictures = np.concatenate([*pictures, self.pictures_again[rows[: size // 2]], self.pictures[rows[size // 2 :]]])
        return related + [self.scenes[i] for i in rows], pictures


@torch.no_grad()
def repaint(
    weights: Path,
    scenes: list[world.Scene],
    pictures: np.ndarray,
    tokenizer: CLIPTokenizer,
    text_encoder: CLIPTextModel,
) -> np.ndarray:
    """Noise pictures (N, 64, 64, 3) to a random t in [300, 800) and decode what the U-Net makes of them.

    It is told the captions. The pictures show its errors without the cost of sampling.
    """
    unet = UNet2DConditionModel.from_pretrained(weights / "unet", torch_dtype=torch.float32).eval()
    vae = AutoencoderKL.from_pretrained(weights / "vae", torch_dtype=torch.float32).eval()
    scheduler, generator, parts = make_scheduler(), torch.Generator().manual_seed(0), []
    for i in range(0, len(scenes), 100):
        captions = [canonical_caption(scene) for scene in scenes[i : i + 100]]
        latents = vae.encode(to_unit(pictures[i : i + 100])).latent_dist.mode() * vae.config.scaling_factor
        timesteps = torch.randint(300, 800, (len(captions),), generator=generator)
        noisy = scheduler.add_noise(latents, torch.randn(latents.shape, generator=generator), timesteps)
        velocity = unet(noisy, timesteps, text_encoder(tokenize(tokenizer, captions))[0]).sample
        signal = scheduler.alphas_cumprod[timesteps].view(-1, 1, 1, 1)
        clean = signal.sqrt() * noisy - (1 - signal).sqrt() * velocity
        images = vae.decode(clean / vae.config.scaling_factor).sample
        parts.append(((images.clamp(-1, 1) + 1) * 127.5).round().byte().permute(0, 2, 3, 1).numpy())
    return np.concatenate(parts)


def siblings(scene: world.Scene) -> list[world.Scene]:
    """The scene with every shape that training may show in this colour."""
    thing = scene.things[0]
    shapes = [shape for shape in world.SHAPES if not world.held_out(shape, thing.colour)]
    return [replace(scene, things=(replace(thing, shape=shape),)) for shape in shapes]


def set_text_tower(model: CLIPModel, text_encoder: CLIPTextModel) -> None:
    """Give a CLIP model the text tower of the diffusion pipeline."""
    model.text_model.load_state_dict({k.removeprefix("text_model."): v for k, v in text_encoder.state_dict().items()})


def text_tower(model: CLIPModel) -> CLIPTextModel:
    """The text tower of a CLIP model, as the diffusion pipeline wants it."""
    encoder = CLIPTextModel(model.config.text_config)
    source = model.text_model.state_dict()
    encoder.load_state_dict({k: source[k.removeprefix("text_model.")] for k in encoder.state_dict()})
    return encoder


def save_clip(stage: ClipStage, weights: Path) -> None:
    _save_half(stage.model.eval(), weights / "clip")
    stage.tokenizer.save_pretrained(weights / "clip")
    preprocessing = {
        "image_processor_type": "CLIPImageProcessor",
        "crop_size": IMAGE_SIZE,
        "size": {"shortest_edge": IMAGE_SIZE},
        "image_mean": [0.5, 0.5, 0.5],
        "image_std": [0.5, 0.5, 0.5],
        "resample": 3,
        "rescale_factor": 1 / 255,
        **{f"do_{step}": True for step in ("center_crop", "convert_rgb", "normalize", "rescale", "resize")},
    }
    (weights / "clip" / "preprocessor_config.json").write_text(json.dumps(preprocessing, indent=2) + "\n")


def _save_half(model: nn.Module, folder: Path) -> None:
    """Save in float16: half the repository's size, and the rounding is far below what any figure here shows."""
    model.half().save_pretrained(folder, safe_serialization=True)
    model.float()


# --- VAE ---------------------------------------------------------------------------------------------------------


def principal_components(pictures: np.ndarray) -> tuple[Tensor, Tensor]:
    """Return mean (8, 8, 3) and the 20 leading components (20, 8, 8, 3) of the pictures' 8x8 patches, in [-1, 1].

    A component is divided by its standard deviation: edges and patterns, whose variance is small, do not drown in the
    noise of the late timesteps, while a plain background is still read from its many patches.
    """
    images = to_unit(pictures).permute(0, 2, 3, 1)  # (N, 64, 64, 3)
    patches = images.unfold(1, 8, 8).unfold(2, 8, 8).permute(0, 1, 2, 4, 5, 3).reshape(-1, 192).double()
    mean = patches.mean(0)
    variances, vectors = torch.linalg.eigh((patches - mean).T @ (patches - mean) / len(patches))
    variances, vectors = variances[-LATENT_CHANNELS:], vectors[:, -LATENT_CHANNELS:]
    return mean.view(8, 8, 3).float(), (vectors / variances.sqrt()).T.reshape(-1, 8, 8, 3).float()


@torch.no_grad()
def make_linear_encoder(vae: AutoencoderKL, mean: Tensor, components: Tensor) -> None:
    """Set the encoder's weights so that it computes the principal components of each 8x8 patch, to within 1 %.

    Three convolutions of stride 2 gather a patch (space to depth), the third projects it. What stands in the way is
    the last normalisation and SiLU: constant channels of +-K in every group fix the statistics of the former, and
    silu(s) - silu(-s) = s undoes the latter. Trained from nothing, 2,000 steps reached 25.4 dB; the
    components alone hold 28.1 dB.
    """
    encoder, ballast = vae.encoder, 50.0
    for weight in encoder.parameters():
        if weight.dim() == 4:
            weight.zero_()
    for module in encoder.modules():
        if isinstance(module, nn.Conv2d):
            module.bias.zero_()
    one, two, three, four = encoder.down_blocks
    corners = [(y, x) for y in (0, 1) for x in (0, 1)]
    encoder.conv_in.weight[range(3), range(3), 1, 1] = 1
    for q, (y, x) in enumerate(corners):
        one.downsamplers[0].conv.weight[range(3 * q, 3 * q + 3), range(3), y, x] = 1
        two.downsamplers[0].conv.weight[range(12 * q, 12 * q + 12), range(12), y, x] = 1
    two.resnets[0].conv_shortcut.weight[range(12), range(12), 0, 0] = 1
    three.resnets[0].conv_shortcut.weight[range(48), range(48), 0, 0] = 1
    project = three.downsamplers[0].conv
    for y, x in corners:
        for q2, (y2, x2) in enumerate(corners):
            for q1, (y1, x1) in enumerate(corners):
                channels = slice(12 * q2 + 3 * q1, 12 * q2 + 3 * q1 + 3)
                pixel = components[:, 4 * y + 2 * y2 + y1, 4 * x + 2 * x2 + x1]  # (20, 3)
                project.weight[:LATENT_CHANNELS, channels, y, x] = pixel
    project.bias[:LATENT_CHANNELS] = -(components * mean).flatten(1).sum(1)
    # Groups of 12 channels: three signals and their negatives, then +K and -K three times each.
    spread, norm = four.resnets[0].conv_shortcut, encoder.conv_norm_out
    for k in range(LATENT_CHANNELS):
        plus = 12 * (k // 3) + 2 * (k % 3)
        spread.weight[plus, k, 0, 0], spread.weight[plus + 1, k, 0, 0] = 1, -1
        encoder.conv_out.weight[k, plus, 1, 1], encoder.conv_out.weight[k, plus + 1, 1, 1] = 1, -1
    for group in range(8):
        spread.bias[12 * group + 6 : 12 * group + 9], spread.bias[12 * group + 9 : 12 * group + 12] = ballast, -ballast
    norm.weight.fill_(ballast / 2**0.5)
    norm.bias.zero_()
    encoder.conv_out.bias[LATENT_CHANNELS:] = -6.0  # the posterior's log variance
    vae.quant_conv.weight.copy_(torch.eye(2 * LATENT_CHANNELS)[..., None, None])
    vae.quant_conv.bias.zero_()


class VaeStage(Stage):
    """An autoencoder from 64x64x3 to 8x8x20: the encoder is set to principal components, the decoder is trained.

    Small objects weigh more, since a plain mean forgets their colours; noise on the latents stands for what
    the U-Net will get wrong.
    """

    name, batch_size, lr = "vae", 16, 8e-4  # at 2e-3 nothing was learnt in 400 steps
    latent_noise = 0.05

    def __init__(self, seed: int, steps: int, pictures: np.ndarray):
        super().__init__(seed)
        self.steps, self.pictures = steps, pictures
        self.model = AutoencoderKL(
            sample_size=IMAGE_SIZE,
            latent_channels=LATENT_CHANNELS,
            block_out_channels=(32, 48, 64, 96),
            down_block_types=("DownEncoderBlock2D",) * 4,
            up_block_types=("UpDecoderBlock2D",) * 4,
            layers_per_block=1,
            norm_num_groups=8,
            mid_block_add_attention=False,
            scaling_factor=1.0,
        ).to(memory_format=torch.channels_last)
        start_linear(self.model)
        make_linear_encoder(self.model, *principal_components(pictures[:2000]))
        self.model.encoder.requires_grad_(False)

    def trained(self) -> nn.Module:
        return self.model.decoder

    def loss(self, rng: np.random.Generator, generator: torch.Generator) -> Tensor:
        images = to_unit(self.pictures[rng.integers(len(self.pictures), size=self.batch_size)], self.device)
        with torch.no_grad(), torch.autocast(self.device.type, enabled=False):
            latents = self.model.encode(images).latent_dist.mode()
        noise = torch.randn(latents.shape, generator=generator, device=self.device)
        error = self.model.decode(latents + self.latent_noise * noise).sample - images
        # A scene's top left pixel is background: what differs from it belongs to an object.
        background = images[:, :, :1, :1]
        weight = 1 + 2 * ((images - background).abs().amax(1, keepdim=True) > 0.1).float()
        return (weight * (error.square() + 0.1 * error.abs())).mean()


@torch.no_grad()
def encode_all(vae: AutoencoderKL, pictures: np.ndarray, device: str) -> Tensor:
    """Encode every picture to its posterior mean: (N, 20, 8, 8), unscaled."""
    vae = vae.to(device).eval()
    parts = [vae.encode(to_unit(pictures[i : i + 100], device)).latent_dist.mean.cpu() for i in _progress(pictures)]
    return torch.cat(parts)


def object_patches(pictures: np.ndarray) -> Tensor:
    """Which 8x8 patches show more than background, the colour of the top left pixel: (N, 1, 8, 8) in {0, 1}."""
    differs = (np.abs(pictures.astype(np.int16) - pictures[:, :1, :1]) > 12).any(3)
    return torch.from_numpy(differs.reshape(-1, 1, 8, 8, 8, 8).any((3, 5))).float()


def _progress(pictures: np.ndarray):
    from rich.progress import track

    return track(range(0, len(pictures), 100), description="encoding scenes")


# --- U-Net -------------------------------------------------------------------------------------------------------


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


class UNetStage(Stage):
    """The denoiser and its text tower: v-prediction on frozen latents, 10 % empty captions, averaged weights.

    The text tower comes from CLIP and is trained along: on CLIP's frozen states the U-Net learnt colours, sizes and
    places, but painted every shape as the same blob.
    """

    name, batch_size, lr = "unet", 128, 8e-4
    empty_captions = 0.1
    # Draws from [500, 1000) only, where the words decide and PH2P works; the others are from all timesteps. With 0.6
    # too little was learnt of the early ones, and painted shapes stayed blurred.
    late_timesteps = 0.2
    # Errors on objects weigh three times in the first part of the steps, for there the words are to be learnt; then
    # alike, since a weight that depends on the picture bends what the denoiser should predict.
    object_weight, weighted_steps = 3.0, 0.5

    def __init__(self, seed, steps, scenes, latents: Tensor, objects: Tensor, tokenizer, text_encoder: CLIPTextModel):
        super().__init__(seed)
        self.steps, self.scenes, self.tokenizer = steps, scenes, tokenizer
        self._latents, self._objects = latents, objects  # (S, 20, 8, 8), (S, 1, 8, 8); kept out of the checkpoint
        self.scheduler = make_scheduler()
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
        self.model = nn.ModuleDict({"unet": unet, "text_encoder": text_encoder.train().requires_grad_(True)})
        self.average = AveragedModel(self.model, multi_avg_fn=get_ema_multi_avg_fn(0.998))

    def trained(self) -> nn.Module:
        return self.model

    def loss(self, rng: np.random.Generator, generator: torch.Generator) -> Tensor:
        rows = rng.integers(len(self.scenes), size=self.batch_size)
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


# --- the whole ---------------------------------------------------------------------------------------------------


def pretrain(args: argparse.Namespace) -> None:
    """Run the chosen stages in order; a stage whose part stands in the weights folder is skipped."""
    args.work.mkdir(parents=True, exist_ok=True)
    L.seed_everything(args.seed, verbose=False)
    started = time.time()
    if not set(args.stages) <= {"report"}:
        scenes, pictures = load_scenes(args.work, args.scenes, args.seed)
    if "tokenizer" in args.stages and not (args.weights / "tokenizer").exists():
        tokenizer, words = train_tokenizer(scenes, args.seed)
        tokenizer.save_pretrained(args.weights / "tokenizer")
        (args.weights / "words.txt").write_text("\n".join(words) + "\n")
        print(f"tokenizer: {len(tokenizer)} tokens, {len(words)} words", flush=True)
    options = {"accelerator": args.accelerator, "precision": args.precision}
    if "clip" in args.stages and not (args.weights / "text_encoder").exists():
        stage = ClipStage(args.seed, args.clip_steps, scenes, pictures, _tokenizer(args))
        fit(stage, args.work, **options)
        _save_half(text_tower(stage.model), args.weights / "text_encoder")
    if "vae" in args.stages and not (args.weights / "vae").exists():
        stage = VaeStage(args.seed, args.vae_steps, pictures)
        fit(stage, args.work, **options)
        _save_half(stage.model.cpu(), args.weights / "vae")
    if "unet" in args.stages and (args.another_round or not (args.weights / "unet").exists()):
        vae = AutoencoderKL.from_pretrained(args.weights / "vae", torch_dtype=torch.float32)
        latents = encode_all(vae, pictures, args.device) * vae.config.scaling_factor
        objects, tokenizer, text_encoder = object_patches(pictures), _tokenizer(args), _text_encoder(args)
        stage = UNetStage(args.seed, args.unet_steps, scenes, latents, objects, tokenizer, text_encoder)
        if args.another_round:
            earlier = UNet2DConditionModel.from_pretrained(args.weights / "unet", torch_dtype=torch.float32)
            stage.model["unet"].load_state_dict(earlier.state_dict())
            stage.average.module.load_state_dict(stage.model.state_dict())
        fit(stage, args.work, **options)
        save_pipeline(stage.average.module, args.weights)
    if "clip_image" in args.stages and (args.another_round or not (args.weights / "clip").exists()):
        earlier = _earlier_clip(args)
        stage = ClipImageStage(
            args.seed,
            args.clip_image_steps,
            scenes,
            pictures,
            _tokenizer(args),
            _text_encoder(args),
            earlier,
            args.weights,
        )
        fit(stage, args.work, **options)
        save_clip(stage, args.weights)
    print(f"stages {', '.join(args.stages)}: {(time.time() - started) / 60:.1f} minutes", flush=True)
    if "report" in args.stages:
        from ph2p.tiny.bars import measure, show

        show(measure(args.weights))


def save_pipeline(model: nn.ModuleDict, weights: Path) -> None:
    """Write U-Net, text tower, scheduler and model_index.json beside the finished parts: a diffusers folder."""
    pipeline = StableDiffusionPipeline(
        vae=AutoencoderKL.from_pretrained(weights / "vae"),
        text_encoder=model["text_encoder"].cpu(),
        tokenizer=CLIPTokenizer.from_pretrained(weights / "tokenizer"),
        unet=model["unet"].cpu(),
        scheduler=make_scheduler(),
        safety_checker=None,
        feature_extractor=None,
        requires_safety_checker=False,
    )
    pipeline.to(dtype=torch.float16).save_pretrained(weights, safe_serialization=True)


def _earlier_clip(args: argparse.Namespace) -> CLIPModel:
    """Both towers as the contrastive stage left them, or, for another round, as they stand in the weights folder."""
    if args.another_round:
        return CLIPModel.from_pretrained(args.weights / "clip", dtype=torch.float32)
    model = CLIPModel(clip_config(_tokenizer(args)))
    state = torch.load(args.work / "clip" / "last.ckpt", weights_only=True)["state_dict"]
    model.load_state_dict({name.removeprefix("model."): value for name, value in state.items()})
    return model


def _text_encoder(args: argparse.Namespace) -> CLIPTextModel:
    return CLIPTextModel.from_pretrained(args.weights / "text_encoder", dtype=torch.float32)


def _tokenizer(args: argparse.Namespace) -> CLIPTokenizer:
    return CLIPTokenizer.from_pretrained(args.weights / "tokenizer")


def parse(argv: list[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--work", type=Path, default=Path("outputs/pretrain"), help="scenes and checkpoints")
    parser.add_argument("--weights", type=Path, required=True, help="the diffusers folder to write")
    parser.add_argument("--stages", nargs="+", default=list(STAGES), choices=STAGES)
    parser.add_argument("--scenes", type=int, default=48_000)
    parser.add_argument("--clip-steps", type=int, default=1_400)
    parser.add_argument("--vae-steps", type=int, default=1_400)
    parser.add_argument("--unet-steps", type=int, default=8_000)
    parser.add_argument("--clip-image-steps", type=int, default=700)
    parser.add_argument(
        "--another-round",
        action="store_true",
        help="train the U-Net and text tower that stand in the weights folder on",
    )
    parser.add_argument(
        "--precision", choices=("bf16-mixed", "32-true"), default="bf16-mixed", help="32-true: CPUs without bfloat16"
    )
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--accelerator", choices=("cpu", "gpu"), default="cpu")
    args = parser.parse_args(argv)
    args.device = "cuda" if args.accelerator == "gpu" else "cpu"
    return args


if __name__ == "__main__":
    pretrain(parse())
