"""CLIP: both towers from nothing. Its text tower is where the diffusion pipeline's begins."""

from pathlib import Path

import numpy as np
import torch
from torch import Tensor
from transformers import CLIPConfig, CLIPModel, CLIPTextModel, CLIPTokenizer

from ph2p.tiny.recipe.scenes import IMAGE_SIZE, to_unit
from ph2p.tiny.recipe.stage import Stage
from ph2p.tiny.recipe.tokenizer import CONTEXT_LENGTH, tokenize
from ph2p.world import scenes as world
from ph2p.world.captions import random_caption


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

    def __init__(
        self, seed: int, steps: int, scenes: list[world.Scene], pictures: np.ndarray, tokenizer: CLIPTokenizer
    ):
        super().__init__(seed, steps)
        self.scenes, self.pictures, self.tokenizer = scenes, pictures, tokenizer
        config = clip_config(tokenizer)
        config._attn_implementation = "eager"  # the fused attention's bf16 backward is slower on CPUs
        self.model = CLIPModel(config).train()

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
