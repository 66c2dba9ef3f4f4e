"""CLIP: both towers from nothing. Its text tower is where the diffusion pipeline's begins."""

from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional
from transformers import CLIPConfig, CLIPModel, CLIPTextModel, CLIPTokenizer

from ph2p.tiny.recipe.judge import HEADS, reading_loss, truths, turned
from ph2p.tiny.recipe.scenes import IMAGE_SIZE, to_unit
from ph2p.tiny.recipe.stage import Stage
from ph2p.tiny.recipe.tokenizer import CONTEXT_LENGTH, tokenize
from ph2p.world.captions import random_caption
from ph2p.world.scenes import Scene


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
    """Contrastive training of both towers (Radford et al. 2021, arXiv 2103.00020) with fresh captions every step.

    Every other batch has two backgrounds only: random scenes are told apart by background, place and size, and the
    nouns, which are to be learnt, hardly count. For the same reason the image tower also has to say what it sees, to
    classifiers of nouns, colours, backgrounds and places that are thrown away afterwards.
    """

    name, batch_size, lr, weight_decay = "clip", 256, 2e-3, 0.05

    def __init__(self, seed: int, steps: int, scenes: list[Scene], pictures: np.ndarray, tokenizer: CLIPTokenizer):
        super().__init__(seed, steps)
        self.scenes, self.pictures, self.tokenizer = scenes, pictures, tokenizer
        grounds = np.array([scene.background for scene in scenes])
        self._alike = [np.flatnonzero(grounds == ground) for ground in np.unique(grounds)]
        config = clip_config(tokenizer)
        config._attn_implementation = "eager"  # the fused attention's bf16 backward is slower on CPUs
        self.model = CLIPModel(config).train()
        self.classifiers = nn.ModuleDict({name: nn.Linear(128, size) for name, size in HEADS.items()})

    def trained(self) -> nn.Module:
        return nn.ModuleDict({"clip": self.model, "class_": self.classifiers})  # a last layer, to `split_parameters`

    def loss(self, rng: np.random.Generator, generator: torch.Generator) -> Tensor:
        scenes, pictures = self.pairs(rng)
        # Whole descriptions are to be told apart: an attribute is named with 90 %.
        captions = [random_caption(scene, rng, keep=0.9) for scene in scenes]
        ids = tokenize(self.tokenizer, captions, self.device)
        images = turned(to_unit(pictures, self.device), generator, resize=0.05)  # or "small" would be "medium"
        images = worn(images, generator)
        seen = self.model(input_ids=ids, pixel_values=images, return_loss=True)
        said = {name: head(seen.vision_model_output.pooler_output) for name, head in self.classifiers.items()}
        truth = {name: torch.from_numpy(values).to(self.device) for name, values in truths(scenes).items()}
        return seen.loss + reading_loss(said, truth)

    def pairs(self, rng: np.random.Generator) -> tuple[list[Scene], np.ndarray]:
        """The scenes of a batch and their pictures (batch, 64, 64, 3)."""
        rows = self.rows(rng, self.batch_size)
        return [self.scenes[i] for i in rows], self.pictures[rows]

    def rows(self, rng: np.random.Generator, size: int) -> np.ndarray:
        """Numbers of the scenes of a batch: of any scenes, or of scenes on two backgrounds: (size,)."""
        if rng.random() < 0.5 or len(self._alike) < 2:
            return rng.integers(len(self.scenes), size=size)
        two = rng.choice(len(self._alike), size=2, replace=False)
        return rng.choice(np.concatenate([self._alike[i] for i in two]), size=size)


def worn(images: Tensor, generator: torch.Generator) -> Tensor:
    """Blur half of the images (B, 3, H, W) and lay up to 10 % of noise on all, as painted pictures have it."""
    soft = functional.avg_pool2d(functional.pad(images, (1, 1, 1, 1), mode="replicate"), 3, stride=1)
    draw = torch.rand(2, len(images), 1, 1, 1, generator=generator, device=images.device)
    mixed = torch.where(draw[0] < 0.5, images, soft)
    return mixed + 0.1 * draw[1] * torch.randn(images.shape, generator=generator, device=images.device)


def text_tower(model: CLIPModel) -> CLIPTextModel:
    """The text tower of a CLIP model, as the diffusion pipeline wants it."""
    encoder = CLIPTextModel(model.config.text_config)
    source = model.text_model.state_dict()
    encoder.load_state_dict({k: source[k.removeprefix("text_model.")] for k in encoder.state_dict()})
    return encoder


def set_text_tower(model: CLIPModel, text_encoder: CLIPTextModel) -> None:
    """Give a CLIP model the text tower of the diffusion pipeline."""
    model.text_model.load_state_dict({k.removeprefix("text_model."): v for k, v in text_encoder.state_dict().items()})


def load_text_encoder(weights: Path) -> CLIPTextModel:
    return CLIPTextModel.from_pretrained(weights / "text_encoder", dtype=torch.float32)
