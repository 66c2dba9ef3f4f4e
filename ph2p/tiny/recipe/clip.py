"""CLIP: both towers from nothing. Its text tower is where the diffusion pipeline's begins."""

from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional
from transformers import (
    CLIPTextConfig,
    CLIPTextModel,
    CLIPTokenizer,
    VisionTextDualEncoderConfig,
    VisionTextDualEncoderModel,
)
from transformers.models.clip.modeling_clip import CLIPOutput

from ph2p.models.conv_tower import WIDTHS, ConvTowerConfig
from ph2p.tiny.recipe.judge import HEADS, reading_loss, truths, turned
from ph2p.tiny.recipe.scenes import IMAGE_SIZE, to_unit
from ph2p.tiny.recipe.stage import Stage
from ph2p.tiny.recipe.tokenizer import CONTEXT_LENGTH, tokenize
from ph2p.world.captions import random_caption
from ph2p.world.scenes import Scene


def dual_encoder(tokenizer: CLIPTokenizer) -> VisionTextDualEncoderModel:
    """Both towers from nothing: CLIP's of text, a convolutional one of pictures.

    A convolution knows from the start that a thing is itself wherever it stands. A vision transformer, or a ConvNeXt,
    would have to learn that first (README.md has the figures).
    """
    text = CLIPTextConfig(
        hidden_size=128,
        intermediate_size=512,
        num_attention_heads=4,
        num_hidden_layers=3,
        vocab_size=len(tokenizer),
        max_position_embeddings=CONTEXT_LENGTH,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )
    text._attn_implementation = "eager"  # the fused attention's bf16 backward is slower on CPUs
    vision = ConvTowerConfig(image_size=IMAGE_SIZE)
    config = VisionTextDualEncoderConfig.from_vision_text_configs(vision, text, projection_dim=128)
    return VisionTextDualEncoderModel(config)


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
        self.model = dual_encoder(tokenizer).train()
        self.classifiers = nn.ModuleDict({name: nn.Linear(WIDTHS[-1], size) for name, size in HEADS.items()})

    def trained(self) -> nn.Module:
        return nn.ModuleDict({"clip": self.model, "class_": self.classifiers})  # a last layer, to `split_parameters`

    def loss(self, rng: np.random.Generator, generator: torch.Generator) -> Tensor:
        scenes, pictures = self.pairs(rng)
        # Whole descriptions are to be told apart: an attribute is named with 90 %.
        captions = [random_caption(scene, rng, keep=0.9) for scene in scenes]
        ids = tokenize(self.tokenizer, captions, self.device)
        images = turned(to_unit(pictures, self.device), generator, resize=0.05)  # or "small" would be "medium"
        images = worn(warped(images, generator), generator)
        seen = self.model(input_ids=ids, pixel_values=images, return_loss=True)
        said = {name: head(seen.vision_model_output.pooler_output) for name, head in self.classifiers.items()}
        truth = {name: torch.from_numpy(values).to(self.device) for name, values in truths(scenes).items()}
        return self.contrast(seen, said, scenes, rng) + reading_loss(said, truth)

    def contrast(
        self, seen: CLIPOutput, said: dict[str, Tensor], scenes: list[Scene], rng: np.random.Generator
    ) -> Tensor:
        """The contrastive loss of a batch of scenes and of what their pictures are taken for, logits by head."""
        loss: Tensor = seen.loss
        return loss

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


def warped(images: Tensor, generator: torch.Generator) -> Tensor:
    """Bend half of the images (B, 3, H, W): the points of a 4x4 net move, with a deviation of up to 4 pixels of 64."""
    count, _, height, width = images.shape
    draw = torch.rand(count, 1, 1, 1, generator=generator, device=images.device)
    strength = 0.24 * (draw - 0.5).clamp(min=0)
    moves = strength * torch.randn(count, 2, 4, 4, generator=generator, device=images.device)
    moves = functional.interpolate(moves, (height, width), mode="bicubic", align_corners=True)
    still = functional.affine_grid(
        torch.eye(2, 3, device=images.device)[None], [1, 3, height, width], align_corners=False
    )
    grid = still + moves.permute(0, 2, 3, 1)
    return functional.grid_sample(images, grid, padding_mode="border", align_corners=False)


def worn(images: Tensor, generator: torch.Generator) -> Tensor:
    """Blur half of the images (B, 3, H, W) and lay up to 10 % of noise on all, as painted pictures have it."""
    soft = functional.avg_pool2d(functional.pad(images, (1, 1, 1, 1), mode="replicate"), 3, stride=1)
    draw = torch.rand(2, len(images), 1, 1, 1, generator=generator, device=images.device)
    mixed = torch.where(draw[0] < 0.5, images, soft)
    return mixed + 0.1 * draw[1] * torch.randn(images.shape, generator=generator, device=images.device)


def load_text_encoder(weights: Path) -> CLIPTextModel:
    return CLIPTextModel.from_pretrained(weights / "text_encoder", dtype=torch.float32)
