"""Image-to-text models of transformers, which caption pictures."""

from functools import lru_cache
from typing import Any

import torch
from torch import Tensor
from transformers import AutoImageProcessor, AutoModelForImageTextToText, AutoTokenizer

from ph2p.errors import UserError
from ph2p.models import pretrained
from ph2p.models.frozen import Frozen
from ph2p.models.judges import OPTIONS, fetched, load_weights
from ph2p.models.plain import plain_errors
from ph2p.models.quiet import quiet
from ph2p.models.scorer import pixels_of

KINDS = ("blip", "git", "vision-encoder-decoder")  # `model_type`: they are given a picture and nothing else
WANTED = f"give an image-to-text model of transformers ({', '.join(KINDS)})"
MOST_TOKENS = 40  # of a caption


class ImageCaptioner(Frozen):
    """Captions by beam search, one picture at a time: a caption does not depend on the other pictures."""

    def __init__(self, model: Any, processor: Any, tokenizer: Any) -> None:
        super().__init__()
        self.model, self.processor, self.tokenizer = model, processor, tokenizer
        self.freeze()

    @torch.no_grad()
    def forward(self, images: Tensor, count: int) -> list[list[str]]:
        """The `count` best captions of as many beams for each of the images (B, 3, H, W) in [0, 1]."""
        return [self._captions(image, count) for image in images.split(1)]

    def _captions(self, image: Tensor, count: int) -> list[str]:
        pixels = pixels_of(self.processor, image).to(self.model.device)  # (1, 3, size, size)
        how = dict(do_sample=False, num_beams=count, num_return_sequences=count, max_new_tokens=MOST_TOKENS)
        with quiet():
            ids = self.model.generate(pixel_values=pixels, **how)
        return [" ".join(text.split()) for text in self.tokenizer.batch_decode(ids, skip_special_tokens=True)]


@lru_cache(1)
def load_captioner(path: str, device: torch.device) -> ImageCaptioner:
    """An image-to-text model, from a folder or the hub; raises UserError for another kind, or what cannot be read."""
    folder = fetched(path, "method.captioner")
    kind = pretrained.read_json(folder / "config.json", WANTED).get("model_type")
    if kind not in KINDS:
        raise UserError(f"method.captioner={path}: a model of type {kind}; {WANTED}")
    pretrained.check_tokenizer(folder)
    with plain_errors(path, WANTED), quiet():
        processor = AutoImageProcessor.from_pretrained(folder, backend="pil", **OPTIONS)
        tokenizer = AutoTokenizer.from_pretrained(folder, **OPTIONS)
        return ImageCaptioner(load_weights(AutoModelForImageTextToText, folder), processor, tokenizer).to(device)
