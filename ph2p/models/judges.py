"""Frozen models that judge prompts and renderings: a language model, DINOv2, LPIPS. Each is loaded once a process."""

import math
from collections.abc import Callable, Sequence
from functools import lru_cache
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_model
from torch import Tensor
from torch.nn.functional import cross_entropy
from torch.nn.utils.rnn import pad_sequence
from transformers import AutoImageProcessor, AutoModel, AutoModelForCausalLM, AutoTokenizer

from ph2p.errors import UserError
from ph2p.models import hub, pretrained
from ph2p.models.frozen import Frozen
from ph2p.models.plain import plain_errors
from ph2p.models.quiet import quiet
from ph2p.models.scorer import pixels_of

KNOWN = 100_000  # texts whose surprise is kept
AT_ONCE = 32  # texts that a language model reads together
UNREAD = -100  # in the place of a token: the text has ended
OPTIONS: dict[str, Any] = dict(local_files_only=True, trust_remote_code=False)
INSTALL = 'pip install "ph2p[metrics]"'


class CausalLanguageModel(Frozen):
    """Perplexity and surprise of texts by a causal language model of transformers (`ph2p.models.language`)."""

    def __init__(self, model: Any, tokenizer: Any) -> None:
        super().__init__()
        self.model, self.tokenizer = model, tokenizer
        self.start = tokenizer.bos_token_id if tokenizer.bos_token_id is not None else tokenizer.eos_token_id
        self.chance = math.log(len(tokenizer))
        self.known: dict[str, float] = {}  # surprises: a rewording's beginnings come again and again
        self.freeze()

    @torch.no_grad()
    def forward(self, text: str) -> float:
        """exp of the mean negative log likelihood of the text's tokens, each given those before it; nan for no token.

        The first token follows the begin of text, or the end of another where the model has no begin; without either
        it is not counted. What exceeds the model's context is cut off.
        """
        count = len(self._read(text)) - 1
        return math.exp(self.surprises([text])[0] / count) if count > 0 else math.nan

    @torch.no_grad()
    def surprises(self, texts: Sequence[str], ended: bool = True) -> list[float]:
        """The sums of which `forward` takes the mean, 0 for no token; the end of a text is never counted."""
        new = [text for text in dict.fromkeys(texts) if text not in self.known]
        if len(self.known) > KNOWN:
            self.known, new = {}, list(dict.fromkeys(texts))
        self.known |= dict(zip(new, self._surprises(new), strict=True))
        return [self.known[text] for text in texts]

    def _surprises(self, texts: Sequence[str]) -> list[float]:
        found: list[float] = []
        for first in range(0, len(texts), AT_ONCE):
            rows = [torch.tensor(self._read(text), dtype=torch.long) for text in texts[first : first + AT_ONCE]]
            ids = pad_sequence(rows, batch_first=True, padding_value=UNREAD).to(self.model.device)  # (K, M)
            if ids.shape[1] < 2:
                found += [0.0] * len(rows)
                continue
            known = ids != UNREAD
            logits = self.model(input_ids=ids.clamp_min(0), attention_mask=known.long()).logits[:, :-1].float()
            losses = cross_entropy(logits.transpose(1, 2), ids[:, 1:], ignore_index=UNREAD, reduction="none")
            found += losses.sum(1).tolist()
        return found

    def _read(self, text: str) -> list[int]:
        """A text's tokens, the start before them, as many as the model reads."""
        ids = ([] if self.start is None else [self.start]) + self.tokenizer(text, add_special_tokens=False).input_ids
        return ids[: getattr(self.model.config, "max_position_embeddings", len(ids))]


def load_language_model(path: str, device: torch.device, key: str) -> CausalLanguageModel:
    """A causal language model of transformers, from a folder or the hub, that the configuration's `key` asks for.

    Raises UserError, which names the key, where it cannot be read.
    """
    return _load_language_model(_folder_of(path, key), device)


@lru_cache(2)
def _folder_of(path: str, key: str) -> Path:
    return fetched(path, key)


@lru_cache(2)
def _load_language_model(folder: Path, device: torch.device) -> CausalLanguageModel:
    pretrained.check_tokenizer(folder)
    with plain_errors(str(folder), "give a causal language model of transformers"), quiet():
        model = load_weights(AutoModelForCausalLM, folder)
        return CausalLanguageModel(model, AutoTokenizer.from_pretrained(folder, **OPTIONS)).to(device)


class PictureFeatures(Frozen):
    """Features of pictures by an image model of transformers: what it says of the whole picture, its first token."""

    def __init__(self, model: Any, processor: Any) -> None:
        super().__init__()
        self.model, self.processor = model, processor
        self.freeze()

    @torch.no_grad()
    def forward(self, images: Tensor) -> Tensor:
        """Features (B, E) of images (B, 3, H, W) in [0, 1]."""
        pixels = pixels_of(self.processor, images).to(self.model.device)
        features: Tensor = self.model(pixel_values=pixels).last_hidden_state[:, 0]
        return features


@lru_cache(1)
def load_dino(path: str, device: torch.device) -> PictureFeatures:
    """DINOv2 (arXiv 2304.07193), from a folder or the hub; raises UserError for another model."""
    folder, wanted = fetched(path, "evaluation.dinov2"), "give a DINOv2 model of transformers"
    kind = pretrained.read_json(folder / "config.json", wanted).get("model_type")
    if kind not in ("dinov2", "dinov2_with_registers"):
        raise UserError(f"evaluation.dinov2={path}: a model of type {kind}; {wanted}")
    with plain_errors(path, wanted), quiet():
        processor = AutoImageProcessor.from_pretrained(folder, backend="pil", **OPTIONS)
        return PictureFeatures(load_weights(AutoModel, folder), processor).to(device)


@lru_cache(1)
def load_lpips(path: str, device: torch.device) -> Callable[[Tensor, Tensor], Tensor]:
    """LPIPS (arXiv 1801.03924) on AlexNet as torchmetrics has it; all its weights are in one safetensors file.

    What it returns gives distances (B,) of images (B, 3, H, W) in [0, 1] to others. Raises UserError for other weights,
    and without torchvision, which has AlexNet's layers.
    """
    file = Path(path).expanduser()
    if not file.is_file():
        raise UserError(f"evaluation.lpips={path}: no such file; docs/data.md says how to make it")
    pretrained.check_safe(file)
    try:
        from torchmetrics.functional.image.lpips import _LPIPS

        net = _LPIPS(pretrained=False, net="alex", pnet_rand=True)  # nothing is downloaded
    except (ImportError, RuntimeError) as error:  # not there, or of another build of torch
        raise UserError(f"evaluation.lpips: it needs a torchvision that fits torch: {INSTALL}") from error
    try:
        load_model(net, file, strict=True)
    except (RuntimeError, SafetensorError) as error:
        raise UserError(
            f"evaluation.lpips={path}: other weights than LPIPS's; docs/data.md says how to make it"
        ) from error
    net = net.to(device)

    @torch.no_grad()
    def distance(images: Tensor, others: Tensor) -> Tensor:
        found: Tensor = net(images.to(device), others.to(device), normalize=True).flatten()
        return found

    return distance


def fetched(path: str, key: str) -> Path:
    """The folder of a model of transformers, from the hub where there is none; its weights are safetensors.

    Raises UserError that names the key.
    """
    folder = Path(path).expanduser()
    if not folder.is_dir():
        try:
            with quiet():
                folder = hub.download_model(path)
        except UserError as error:
            raise UserError(f"{key}={error}") from error
    pretrained.check_weights(folder)
    return folder


def load_weights(kind: Any, folder: Path) -> Any:
    """The model of a folder, by one of transformers' automatic classes, in float32."""
    model, found = kind.from_pretrained(
        folder, dtype=torch.float32, use_safetensors=True, output_loading_info=True, **OPTIONS
    )
    pretrained.check_filled(folder, found)
    return model
