"""The CLIP or SigLIP model that scores pictures and prompts."""

from pathlib import Path
from typing import Any

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
    VisionTextDualEncoderModel,
)
from transformers.utils import ModelOutput

import ph2p.models.conv_tower  # noqa: F401  it makes itself known to transformers
from ph2p.errors import UserError
from ph2p.models import hub, pretrained
from ph2p.models.frozen import Frozen, context_length, frame_prompt, prompt_start, soft_prompt
from ph2p.models.microbatch import MicroBatch
from ph2p.models.plain import plain_errors
from ph2p.models.quiet import quiet

CONFIG = "config.json"
DUAL, CLIP_TEXT = "vision-text-dual-encoder", "clip_text_model"
MODELS = ("clip", "siglip", DUAL)  # `model_type` in config.json
ADVICE = "give the folder or hub id of a CLIP or SigLIP model of transformers"
AT_ONCE = 128  # pictures or texts that go through the model


class Scorer(Frozen):
    """A frozen CLIP or SigLIP model whose cosine similarities score pictures and prompts: features of unit norm.

    Also CLIP's text tower with any image tower of transformers, as a dual encoder: the embedded model's is one.
    Pictures are read as the model's own image processor reads a file of them: in 8 bits.
    """

    def __init__(
        self,
        model: CLIPModel | SiglipModel | VisionTextDualEncoderModel,
        tokenizer: PreTrainedTokenizerBase,
        processor: BaseImageProcessor,
    ) -> None:
        super().__init__()
        self.model, self.tokenizer, self.processor = model, tokenizer, processor
        self.microbatch = MicroBatch()
        self.context_length = context_length(tokenizer, model.config.text_config.max_position_embeddings)
        self._words: tuple[list[str], Tensor] | None = None
        self.freeze()

    @property
    def embeddings(self) -> Tensor:
        """The token table (V, D) of the text tower."""
        weight: Tensor = self.model.text_model.get_input_embeddings().weight
        return weight

    @torch.no_grad()
    def image_features(self, images: Tensor) -> Tensor:
        """Features (B, E) of images (B, 3, H, W) in [0, 1], of any size."""

        def some(part: Tensor) -> Tensor:
            pixels = pixels_of(self.processor, part)  # (b, 3, size, size)
            return _features(self.model.get_image_features(pixel_values=pixels.to(self.embeddings)))

        return self.microbatch.map("scored pictures", AT_ONCE, some, images)

    @torch.no_grad()
    def text_features(self, texts: list[str]) -> Tensor:
        """Features (B, E) of texts; what exceeds the context is cut off.

        All texts are padded to the context without a mask: SigLIP was trained so, and CLIP looks back only.
        """
        options = dict(padding="max_length", truncation=True, max_length=self.context_length)
        ids = self.tokenizer(texts, return_tensors="pt", **options).input_ids.to(self.embeddings.device)
        return self.microbatch.map(
            "scored texts", AT_ONCE, lambda some: _features(self.model.get_text_features(input_ids=some)), ids
        )

    def word_features(self, words: list[str]) -> Tensor:
        """Features (A, E) of texts that are asked for again and again: the words of a vocabulary, read only once."""
        if self._words is None or self._words[0] != words:
            self._words = words, self.text_features(words)
        return self._words[1]

    @torch.no_grad()
    def token_features(self, text: str) -> Tensor:
        """Features (M, W) of a text's tokens in their context, by the last layer; what exceeds it is cut off."""
        start = prompt_start(self.tokenizer)
        ids = self.tokenizer(text, add_special_tokens=False, verbose=False).input_ids[: self.context_length - start - 1]
        framed = frame_prompt(self.tokenizer, torch.tensor([ids], dtype=torch.long), self.context_length)  # (1, L)
        hidden: Tensor = self.model.text_model(input_ids=framed.to(self.embeddings.device)).last_hidden_state
        return hidden[0, start : start + len(ids)]

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
    if revision and not remote:
        raise UserError(f"scorer.revision={revision}: {folder} is no model on the hub; leave it out")
    file = hub.download_file(name, CONFIG, ADVICE, **options) if remote else folder / CONFIG
    kind = pretrained.read_json(file, ADVICE).get("model_type")
    if kind not in MODELS:  # before the weights of whatever it is are downloaded
        raise UserError(f"{name}: a model of type {kind}; {ADVICE}")
    if remote:
        with quiet():
            folder = hub.download_model(name, **options)
    pretrained.check_weights(folder)
    pretrained.check_tokenizer(folder)
    if not any((folder / file).exists() for file in ("preprocessor_config.json", "processor_config.json")):
        raise UserError(f"{folder}: preprocessor_config.json is missing, the image processor; copy or download it too")
    with plain_errors(name), quiet():
        return _load(folder).to(device)


def _load(folder: Path) -> Scorer:
    options: dict[str, Any] = dict(local_files_only=True, trust_remote_code=False)
    config = AutoConfig.from_pretrained(folder, **options)
    if config.model_type == DUAL and config.text_config.model_type != CLIP_TEXT:
        raise UserError(f"{folder}: its text tower is a {config.text_config.model_type}, not CLIP's; {ADVICE}")
    tokenizer = AutoTokenizer.from_pretrained(folder, **options)
    processor = AutoImageProcessor.from_pretrained(
        folder, backend="pil", **options
    )  # whether torchvision is there or not
    # With a wrong id CLIP would pool at the first token, where all prompts look the same. With 2, the value in
    # old configurations, it pools at the highest id of the text instead. SigLIP pools at the last position.
    end = tokenizer.eos_token_id
    if config.text_config.model_type == CLIP_TEXT and config.text_config.eos_token_id not in (2, end):
        raise UserError(f"{folder}: eos_token_id of config.json and tokenizer differ; set it to {end}")
    if len(tokenizer) > config.text_config.vocab_size:
        raise UserError(f"{folder}: the tokenizer has more tokens than the model; take both from the same one")
    side, made = config.vision_config.image_size, pixels_of(processor, torch.zeros(1, 3, 32, 48)).shape[1:]
    if made != (3, side, side):
        raise UserError(f"{folder}: its image processor does not make {side} x {side} pixels, which the model reads")
    options |= dict(dtype=torch.float32, use_safetensors=True, output_loading_info=True)
    model, found = AutoModel.from_pretrained(folder, **options)
    pretrained.check_filled(folder, found)
    return Scorer(model, tokenizer, processor)


def pixels_of(processor: BaseImageProcessor, images: Tensor) -> Tensor:
    """Pixels (B, 3, size, size) that an image processor makes of images (B, 3, H, W) in [0, 1], on the CPU."""
    levels = (255 * images.detach().float().cpu()).round().clamp(0, 255).byte()
    made = processor(list(levels), return_tensors="pt", input_data_format="channels_first")
    pixels: Tensor = made.pixel_values
    return pixels


def _features(output: Tensor | ModelOutput) -> Tensor:
    """Unit-norm features; transformers 5 wraps them in an output object, transformers 4 returns them bare."""
    return F.normalize(getattr(output, "pooler_output", output), dim=-1)
