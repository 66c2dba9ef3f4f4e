"""The CLIP or SigLIP model that scores pictures and prompts."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

import torch
import torch.nn.functional as F
from torch import Tensor
from transformers import (
    AutoConfig,
    AutoImageProcessor,
    AutoModel,
    AutoTokenizer,
    BaseImageProcessor,
    CLIPModel,
    PreTrainedTokenizerBase,
    SiglipModel,
)
from transformers.utils import ModelOutput

from ph2p.errors import UserError
from ph2p.models import hub, pretrained
from ph2p.models.frozen import Frozen, context_length, frame_prompt, prompt_start, soft_prompt

CONFIG = "config.json"
MODELS = ("clip", "siglip")  # `model_type` in config.json
RESAMPLING = {2: "bilinear", 3: "bicubic"}  # Pillow's numbers
MEND = "give the folder or hub id of a CLIP or SigLIP model of transformers"


@dataclass(frozen=True)
class Preprocessing:
    """What the model's own image processor does to pictures, for tensors.

    CLIP: the shorter side to `size`, then the centre square. SigLIP (`square`): both sides to `size`.
    """

    size: int  # pixels, height = width of what the model reads
    square: bool
    mode: str  # of the interpolation, antialiased
    mean: tuple[float, ...]
    std: tuple[float, ...]

    @classmethod
    def of(cls, processor: BaseImageProcessor, size: int) -> Self:
        """Read an image processor of transformers for a model that reads `size` pixels.

        Raises:
            UserError: it makes other sizes, or resamples in a way unknown here.
        """
        square = bool(processor.size.get("height"))
        made = [processor.size.get("height"), processor.size.get("width")] if square else []
        if getattr(processor, "do_center_crop", False):
            made = [processor.crop_size["height"], processor.crop_size["width"]]
        shorter = processor.size.get("height" if square else "shortest_edge")
        if made != [size, size] or shorter != size:
            raise UserError(f"image processor: it does not make {size} x {size} pixels, which the model reads; {MEND}")
        if processor.resample not in RESAMPLING:
            raise UserError(f"image processor: resample={processor.resample} is unknown; give 2 or 3 (bicubic)")
        mean, std = tuple(processor.image_mean), tuple(processor.image_std)
        return cls(size, square, RESAMPLING[processor.resample], mean, std)

    def __call__(self, images: Tensor) -> Tensor:
        """Pixels (B, 3, size, size) as the model reads them, of images (B, 3, H, W) in [0, 1]."""
        (height, width), size = images.shape[-2:], self.size
        short = min(height, width)
        shape = (size, size) if self.square else (height * size // short, width * size // short)
        for step in ((height, shape[1]), shape):  # as Pillow: first the width, then the height, in 8 bits each
            if step != images.shape[-2:]:
                images = F.interpolate(images, step, mode=self.mode, antialias=True).clamp(0, 1)
                images = (255 * images + 0.5).floor() / 255
        top, left = ((side - size) // 2 for side in shape)
        images = images[..., top : top + size, left : left + size]
        mean, std = (images.new_tensor(values)[:, None, None] for values in (self.mean, self.std))
        return (images - mean) / std


class Scorer(Frozen):
    """A frozen CLIP or SigLIP model whose cosine similarities score pictures and prompts: features of unit norm."""

    def __init__(
        self, model: CLIPModel | SiglipModel, tokenizer: PreTrainedTokenizerBase, preprocessing: Preprocessing
    ) -> None:
        super().__init__()
        self.model, self.tokenizer, self.preprocessing = model, tokenizer, preprocessing
        self.context_length = context_length(tokenizer, model.config.text_config.max_position_embeddings)
        self.freeze()

    @property
    def embeddings(self) -> Tensor:
        """The token table (V, D) of the text tower."""
        return self.model.text_model.get_input_embeddings().weight

    @torch.no_grad()
    def image_features(self, images: Tensor) -> Tensor:
        """Features (B, E) of images (B, 3, H, W) in [0, 1], of any size."""
        return _features(self.model.get_image_features(pixel_values=self.preprocessing(images.to(self.embeddings))))

    @torch.no_grad()
    def text_features(self, texts: list[str]) -> Tensor:
        """Features (B, E) of texts; what exceeds the context is cut off.

        All texts are padded to the context without a mask: SigLIP was trained so, and CLIP looks back only.
        """
        options = dict(padding="max_length", truncation=True, max_length=self.context_length)
        ids = self.tokenizer(texts, return_tensors="pt", **options).input_ids
        return _features(self.model.get_text_features(input_ids=ids.to(self.embeddings.device)))

    def text_features_from(self, token_ids: Tensor, embeddings: Tensor) -> Tensor:
        """Features (B, E) of prompts (B, M) embedded as `embeddings` (B, M, D), to which gradients flow."""
        ids = frame_prompt(self.tokenizer, token_ids.to(self.embeddings.device), self.context_length)  # (B, L)
        with soft_prompt(self.model.text_model.get_input_embeddings(), embeddings, prompt_start(self.tokenizer)):
            return _features(self.model.get_text_features(input_ids=ids))


def load_scorer(
    path_or_hub_id: str | Path,
    *,
    device: str | torch.device = "cpu",
    local_files_only: bool = False,
    revision: str | None = None,
    cache_dir: str | Path | None = None,
) -> Scorer:
    """A CLIP or SigLIP model with tokenizer and image processor, from a folder of transformers or the hub.

    Weights are read from safetensors alone.

    Raises:
        UserError: no such folder or hub model, another kind of model, missing, damaged or pickled files, or a
            tokenizer with another end of text than the model's.
    """
    name, folder = str(path_or_hub_id), Path(path_or_hub_id).expanduser()
    options = dict(local_files_only=local_files_only, revision=revision, cache_dir=cache_dir)
    remote = not folder.exists()
    file = hub.download_file(name, CONFIG, MEND, **options) if remote else folder / CONFIG
    kind = pretrained.read_json(file, MEND).get("model_type")
    if kind not in MODELS:  # before the weights of whatever it is are downloaded
        raise UserError(f"{name}: a model of type {kind}; {MEND}")
    if remote:
        folder = hub.download_model(name, **options)
    pretrained.check_weights(folder)
    pretrained.check_tokenizer(folder)
    if not any((folder / file).exists() for file in ("preprocessor_config.json", "processor_config.json")):
        raise UserError(f"{folder}: preprocessor_config.json is missing, the image processor; copy or download it too")
    with pretrained.plain_errors(name), pretrained.no_progress_bars():
        return _load(folder).to(device)


def _load(folder: Path) -> Scorer:
    options: dict[str, Any] = dict(local_files_only=True, trust_remote_code=False)
    config = AutoConfig.from_pretrained(folder, **options)
    tokenizer = AutoTokenizer.from_pretrained(folder, **options)
    processor = AutoImageProcessor.from_pretrained(folder, **options)
    # With a wrong id CLIP would pool at the first token, where all prompts look the same. With 2, the value in
    # old configurations, it pools at the highest id of the text instead. SigLIP pools at the last position.
    end = tokenizer.eos_token_id
    if config.model_type == "clip" and config.text_config.eos_token_id not in (2, end):
        raise UserError(f"{folder}: eos_token_id of config.json and tokenizer differ; set it to {end}")
    if len(tokenizer) > config.text_config.vocab_size:
        raise UserError(f"{folder}: the tokenizer has more tokens than the model; take both from the same one")
    preprocessing = Preprocessing.of(processor, config.vision_config.image_size)
    options |= dict(dtype=torch.float32, use_safetensors=True, output_loading_info=True)
    model, found = AutoModel.from_pretrained(folder, **options)
    if found["missing_keys"] or found["mismatched_keys"]:
        raise UserError(f"{folder}: the weights file lacks some of the model's weights; copy or download it again")
    return Scorer(model, tokenizer, preprocessing)


def _features(output: Tensor | ModelOutput) -> Tensor:
    """Unit-norm features; transformers 5 wraps them in an output object, transformers 4 returns them bare."""
    return F.normalize(getattr(output, "pooler_output", output), dim=-1)
