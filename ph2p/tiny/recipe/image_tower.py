"""CLIP's image tower, tuned to the text tower that was trained on with the U-Net."""

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from diffusers import AutoencoderKL, UNet2DConditionModel
from transformers import CLIPModel, CLIPTokenizer

from ph2p.tiny.recipe.clip import ClipStage, load_text_encoder, set_text_tower
from ph2p.tiny.recipe.scenes import IMAGE_SIZE, to_unit
from ph2p.tiny.recipe.stage import save_half
from ph2p.tiny.recipe.tokenizer import load_tokenizer, tokenize
from ph2p.tiny.recipe.unet import make_scheduler
from ph2p.world import scenes as world
from ph2p.world.captions import canonical_caption
from ph2p.world.drawing import render


class ClipImageStage(ClipStage):
    """Tune the image tower to the final, frozen text tower (Zhai et al. 2022, arXiv 2111.07991).

    Random scenes are told apart without their shapes: a CLIP that ranked captions with 97 % named 13 % of them. So
    half of a batch is siblings: scenes that differ in nothing but the shape. And half of the pictures are what the
    U-Net makes of them (`repaint`): a tower that saw clean pictures alone misread the colours of painted ones.
    """

    name, lr = "clip_image", 1e-3
    families = 6  # of siblings in a batch, 19 each
    known = 300  # scenes whose siblings are painted
    again = 12_000  # scenes that are repainted

    def __init__(
        self,
        seed: int,
        steps: int,
        scenes: list[world.Scene],
        pictures: np.ndarray,
        weights: Path,
        earlier: CLIPModel,
    ):
        super().__init__(seed, steps, scenes, pictures, load_tokenizer(weights))
        self.model.load_state_dict(earlier.state_dict())
        set_text_tower(self.model, load_text_encoder(weights))
        self.model.text_model.requires_grad_(False)
        alone = [scene for scene in scenes if scene.place]
        self.related = [siblings(scene) for scene in alone[: self.known]]
        self.painted = [np.stack([render(scene, IMAGE_SIZE) for scene in family]) for family in self.related]
        together = [scene for family in self.related for scene in family] + scenes[: self.again]
        originals = np.concatenate([*self.painted, pictures[: self.again]])
        repainted = repaint(weights, self.tokenizer, together, originals)
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


def siblings(scene: world.Scene) -> list[world.Scene]:
    """The scene with every shape that training may show in this colour."""
    thing = scene.things[0]
    shapes = [shape for shape in world.SHAPES if not world.held_out(shape, thing.colour)]
    return [replace(scene, things=(replace(thing, shape=shape),)) for shape in shapes]


@torch.no_grad()
def repaint(weights: Path, tokenizer: CLIPTokenizer, scenes: list[world.Scene], pictures: np.ndarray) -> np.ndarray:
    """Noise pictures (N, 64, 64, 3) to a random t in [300, 800) and decode what the U-Net makes of them.

    It is told the captions. The pictures show its errors without the cost of sampling.
    """
    text_encoder = load_text_encoder(weights)
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


def save_clip(model: CLIPModel, weights: Path) -> None:
    save_half(model.eval(), weights / "clip")
    load_tokenizer(weights).save_pretrained(weights / "clip")  # one that was used would write its padding down
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
