"""The CLIP model that scores pictures and prompts."""

from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor
from transformers import CLIPModel, CLIPTokenizer, PreTrainedTokenizerBase
from transformers.utils import ModelOutput

from ph2p import pretrained
from ph2p.errors import UserError
from ph2p.frozen import Frozen, context_length, frame_prompt, soft_prompt


class Scorer(Frozen):
    """A frozen CLIP model whose cosine similarities score pictures and prompts: features of unit norm."""

    mean: Tensor
    std: Tensor

    def __init__(self, model: CLIPModel, tokenizer: PreTrainedTokenizerBase, mean: list, std: list) -> None:
        super().__init__()
        self.model, self.tokenizer = model, tokenizer
        self.image_size: int = model.config.vision_config.image_size
        self.context_length = context_length(tokenizer, model.config.text_config.max_position_embeddings)
        self.register_buffer("mean", torch.tensor(mean).view(3, 1, 1), persistent=False)
        self.register_buffer("std", torch.tensor(std).view(3, 1, 1), persistent=False)
        self.freeze()

    @property
    def device(self) -> torch.device:
        return self.mean.device

    @torch.no_grad()
    def image_features(self, images: Tensor) -> Tensor:
        """Features (B, E) of images (B, 3, H, W) in [0, 1], of any size."""
        pixels = (self._resize(images.to(self.mean)) - self.mean) / self.std
        return _features(self.model.get_image_features(pixel_values=pixels))

    def _resize(self, images: Tensor) -> Tensor:
        """Shorter side to the model's size by antialiased bicubic interpolation, then the centre square."""
        height, width = images.shape[-2:]
        size, short = self.image_size, min(height, width)
        if short != size:
            shape = (height * size // short, width * size // short)
            images = F.interpolate(images, shape, mode="bicubic", antialias=True).clamp(0, 1)
        top, left = ((side - size) // 2 for side in images.shape[-2:])
        return images[..., top : top + size, left : left + size]

    @torch.no_grad()
    def text_features(self, texts: list[str]) -> Tensor:
        """Features (B, E) of texts; what exceeds the context is cut off."""
        options = dict(padding="max_length", truncation=True, max_length=self.context_length)
        ids = self.tokenizer(texts, return_tensors="pt", **options).input_ids
        return _features(self.model.get_text_features(input_ids=ids.to(self.device)))

    def text_features_from(self, token_ids: Tensor, embeddings: Tensor) -> Tensor:
        """Features (B, E) of prompts (B, M) embedded as `embeddings` (B, M, D), to which gradients flow."""
        ids = frame_prompt(self.tokenizer, token_ids.to(self.device), self.context_length)  # (B, L)
        with soft_prompt(self.model.text_model.get_input_embeddings(), embeddings):
            return _features(self.model.get_text_features(input_ids=ids))


def load_scorer(path: str | Path, device: str | torch.device = "cpu") -> Scorer:
    """A `CLIPModel` folder of transformers with its tokenizer and `preprocessor_config.json`.

    Raises:
        UserError: missing or damaged files, or a tokenizer with another end of text than the model's.
    """
    folder = Path(path).expanduser()
    processor = pretrained.read_json(folder / "preprocessor_config.json", "give the folder of a CLIP model")
    with pretrained.plain_errors(str(path)), pretrained.no_progress_bars():
        pretrained.check_weights(folder)
        model = CLIPModel.from_pretrained(folder, dtype=torch.float32, use_safetensors=True, local_files_only=True)
        tokenizer = CLIPTokenizer.from_pretrained(folder, local_files_only=True)
    # With a wrong id the model would pool at the first token, where all prompts look the same. With 2, the
    # value in old configurations, it pools at the highest id of the text instead.
    if model.config.text_config.eos_token_id not in (2, tokenizer.eos_token_id):
        raise UserError(f"{path}: eos_token_id of config.json and tokenizer differ; set it to {tokenizer.eos_token_id}")
    return Scorer(model, tokenizer, processor["image_mean"], processor["image_std"]).to(device)


def _features(output: Tensor | ModelOutput) -> Tensor:
    """Unit-norm features; transformers 5 wraps them in an output object, transformers 4 returns them bare."""
    return F.normalize(getattr(output, "pooler_output", output), dim=-1)
