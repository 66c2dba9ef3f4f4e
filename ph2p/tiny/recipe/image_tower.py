"""CLIP's image tower, tuned to the text tower that was trained on with the U-Net."""

import json
from dataclasses import replace
from itertools import cycle, islice
from pathlib import Path

import numpy as np
import torch
from diffusers import AutoencoderKL, UNet2DConditionModel
from torch import Tensor
from torch.nn import functional
from transformers import CLIPTokenizer, VisionTextDualEncoderModel
from transformers.models.clip.modeling_clip import CLIPOutput

from ph2p.tiny.recipe.clip import ClipStage, load_text_encoder
from ph2p.tiny.recipe.judge import NOUNS, noun_of
from ph2p.tiny.recipe.scenes import IMAGE_SIZE, to_unit
from ph2p.tiny.recipe.stage import whole
from ph2p.tiny.recipe.tokenizer import load_tokenizer, tokenize
from ph2p.tiny.recipe.unet import make_scheduler
from ph2p.world import scenes as world
from ph2p.world.captions import canonical_caption, random_caption
from ph2p.world.drawing import object_mask, render
from ph2p.world.scenes import Pictured, Scene


class ClipImageStage(ClipStage):
    """Tune the image tower to the final, frozen text tower (Zhai et al. 2022, arXiv 2111.07991).

    Half of a batch is siblings: scenes that differ in nothing but the noun, so that the noun is learnt. And half of
    the pictures are what the U-Net makes of them (`repaint`): a tower that saw clean pictures alone misread painted
    ones. The things of clean ones are `redrawn`. Every picture is also held against captions that are wrong in a noun,
    one for which it is easily taken (Yuksekgonul et al. 2023, arXiv 2210.01936).
    """

    name, batch_size = "clip_image", 128
    families = 4  # of siblings in a batch
    siblings = 16  # scenes in a family
    known = 500  # families
    wrong = 2  # captions a picture
    again = 8_000  # scenes that are repainted

    def __init__(
        self,
        seed: int,
        steps: int,
        scenes: list[Scene],
        pictures: np.ndarray,
        weights: Path,
        earlier: VisionTextDualEncoderModel,
        work: Path,
    ):
        super().__init__(seed, steps, scenes, pictures, load_tokenizer(weights))
        self.model.load_state_dict(earlier.state_dict())
        self.model.text_model.load_state_dict(load_text_encoder(weights).state_dict())
        self.model.text_model.requires_grad_(False)
        rng = np.random.default_rng([seed, 77])
        self.related = [siblings(scene, self.siblings, rng) for scene in scenes[: self.known]]
        together = [scene for family in self.related for scene in family] + scenes[: self.again]
        clean = np.stack([render(scene, IMAGE_SIZE) for family in self.related for scene in family])
        kept = work / "repainted"
        if not kept.exists():
            print(f"repainting {len(together)} pictures", flush=True)
            repainted = repaint(weights, self.tokenizer, together, np.concatenate([clean, pictures[: self.again]]))
            with whole(kept) as folder:
                np.save(folder / "pictures.npy", repainted)
        repainted = np.load(kept / "pictures.npy")
        shape = (len(self.related), self.siblings, *clean.shape[1:])
        self.painted = clean.reshape(shape)  # (families, siblings, 64, 64, 3)
        self.painted_again, self.pictures_again = repainted[: len(clean)].reshape(shape), repainted[len(clean) :]

    def pairs(self, rng: np.random.Generator) -> tuple[list[Scene], np.ndarray]:
        chosen = rng.choice(len(self.related), size=self.families)
        related = [sibling for i in chosen for sibling in self.related[i]]
        families = [
            redrawn(self.related[i], self.painted[i], rng) if k % 2 else self.painted_again[i]
            for k, i in enumerate(chosen)
        ]
        size = self.batch_size - len(related)
        again = rng.integers(len(self.pictures_again), size=size // 2)
        rows = self.rows(rng, size - size // 2)
        scenes = [self.scenes[i] for i in rows]
        clean = redrawn(scenes, self.pictures[rows], rng)
        pictures = np.concatenate([*families, self.pictures_again[again], clean])
        return related + [self.scenes[i] for i in again] + scenes, pictures

    def contrast(
        self, seen: CLIPOutput, said: dict[str, Tensor], scenes: list[Scene], rng: np.random.Generator
    ) -> Tensor:
        likely = said["noun"].detach().float().cpu().numpy()  # (B, nouns)
        others = [misnamed(s, row, rng) for s, row in zip(scenes, likely, strict=True) for _ in range(self.wrong)]
        ids = tokenize(self.tokenizer, [random_caption(scene, rng, keep=0.9) for scene in others], self.device)
        ids = ids[:, : int((ids == self.tokenizer.eos_token_id).int().argmax(1).max()) + 1]  # no padding: it is causal
        features = functional.normalize(self.model.get_text_features(input_ids=ids).pooler_output, dim=-1)
        false = torch.einsum("be,bwe->bw", seen.image_embeds, features.view(len(scenes), self.wrong, -1))
        true = (seen.image_embeds * seen.text_embeds).sum(-1, keepdim=True)
        logits = self.model.logit_scale.exp() * torch.cat([true, false], 1)  # (B, 1 + wrong)
        return super().contrast(seen, said, scenes, rng) - logits.log_softmax(1)[:, 0].mean()


def misnamed(scene: Scene, likely: np.ndarray, rng: np.random.Generator) -> Scene:
    """The scene with another noun for one of its objects, one of the five likeliest by their logits (nouns,)."""
    place = int(rng.integers(len(scene.things)))
    thing = scene.things[place]
    nouns = [noun for noun in world.alike(thing) if noun not in map(noun_of, scene.things)]
    nouns.sort(key=lambda noun: -likely[NOUNS.index(noun)])
    other = world.renamed(thing, nouns[int(rng.integers(5))], rng)
    return replace(scene, things=(*scene.things[:place], other, *scene.things[place + 1 :]))


def redrawn(scenes: list[Scene], pictures: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """The pictures (N, 64, 64, 3) uint8 with their things as no hand drew them: in every second picture in other
    colours, in every fourth in flat areas with dark outlines.

    A noun has six drawings in training, which would be learnt by heart. Shapes keep their colours, which their
    captions name.
    """
    changed = pictures.astype(np.float32)
    for number, (picture, scene) in enumerate(zip(changed, scenes, strict=True)):
        if number % 4 == 3:
            continue
        for thing in scene.things:
            if isinstance(thing, Pictured):
                mask = object_mask(thing, IMAGE_SIZE)[..., None]
                other = outlined(picture, rng) if number % 2 else in_other_colours(picture, rng)
                picture += mask * (other - picture)
    return changed.round().astype(np.uint8)


def in_other_colours(picture: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Mix the three colours of a picture (H, W, 3) in [0, 255] at random and shift them."""
    mix = np.eye(3) + 0.35 * rng.standard_normal((3, 3))
    return ((picture - 127.5) @ mix + 127.5 + 32 * rng.standard_normal(3)).clip(0, 255)


def outlined(picture: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Give a picture (H, W, 3) in [0, 255] four to six levels of each colour, and darken where a pixel differs from
    the next."""
    levels = rng.integers(3, 6)
    flat = (picture / 255 * levels).round() * 255 / levels
    down, right = np.diff(picture, axis=0, append=picture[-1:]), np.diff(picture, axis=1, append=picture[:, -1:])
    edges = (np.abs(down) + np.abs(right)).sum(-1, keepdims=True) / 100  # (H, W, 1)
    return flat * (1 - edges.clip(0, 1))


def siblings(scene: Scene, number: int, rng: np.random.Generator) -> list[Scene]:
    """The scene with `number` different nouns for its first object: things in the place of a thing, shapes of a shape.

    A shape has fewer than 16 others: then some come twice, with other fills.
    """
    first, *others = scene.things
    nouns = [noun for noun in world.alike(first) if not world.held_out(noun, scene.background)]
    changed = (world.renamed(first, noun, rng) for noun in cycle(rng.permutation(nouns).tolist()))
    seen = islice((thing for thing in changed if world.visible(thing, scene.background)), number)
    return [replace(scene, things=(thing, *others)) for thing in seen]


@torch.no_grad()
def repaint(weights: Path, tokenizer: CLIPTokenizer, scenes: list[Scene], pictures: np.ndarray) -> np.ndarray:
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


def save_clip(model: VisionTextDualEncoderModel, weights: Path) -> None:
    """Write `clip/`: both towers, tokenizer and preprocessing."""
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
    with whole(weights / "clip") as folder:
        model.eval().half().save_pretrained(folder)
        load_tokenizer(weights).save_pretrained(folder)  # one that was used would write its padding down
        (folder / "preprocessor_config.json").write_text(json.dumps(preprocessing, indent=2) + "\n")
