"""The models that judge prompts and renderings beside the denoiser; each is passed in, so any other does as well."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import lru_cache

import torch
from torch import Tensor

from ph2p.config.schema import EvaluationConfig
from ph2p.errors import UserError
from ph2p.inversion.fluency import load_language
from ph2p.models.generators import Generator, LoadOptions, find, load_generator
from ph2p.models.judges import load_dino, load_lpips
from ph2p.models.scorer import Scorer

Perplexity = Callable[[str], float]


@dataclass(frozen=True)
class Backbones:
    """What embeds texts and pictures, and what knows language; None: not asked for."""

    sentences: Callable[[list[str]], Tensor]  # features (K, E) of K texts
    tokens: Callable[[str], Tensor]  # features (M, E) of a text's tokens, one each
    perplexity: Perplexity | None = None  # of a text, 1 or more
    pictures: Callable[[Tensor], Tensor] | None = None  # features (K, E) of pictures (K, 3, H, W) in [0, 1]
    distance: Callable[[Tensor, Tensor], Tensor] | None = None  # (K,) of pictures and pictures, 0 for the same
    painter: Generator | None = None  # a second model, that paints what was found with the first


def make_backbones(cfg: EvaluationConfig, scorer: Scorer, device: torch.device) -> Backbones:
    """The backbones that the configuration names; texts are embedded by the scorer's text tower.

    Raises UserError for a model that cannot be loaded, and where a package is missing.
    """
    return Backbones(
        scorer.text_features,
        scorer.token_features,
        load_language(cfg.language_model, device, "evaluation.language_model") if cfg.language_model else None,
        load_dino(cfg.dinov2, device) if cfg.dinov2 else None,
        load_lpips(cfg.lpips, device) if cfg.lpips else None,
        load_painter(cfg.transfer, device) if cfg.transfer else None,
    )


def check_transfer(cfg: EvaluationConfig) -> None:
    """Look for the second generator before any model is loaded; raises UserError where there is no such pipeline."""
    if cfg.transfer:
        with _transfer(cfg.transfer):
            find(cfg.transfer, LoadOptions())


@lru_cache(1)
def load_painter(path: str, device: torch.device) -> Generator:
    """The second generator, in float32; raises UserError that names the key where it cannot be read."""
    with _transfer(path):
        return load_generator(path, device=device)


@contextmanager
def _transfer(path: str) -> Iterator[None]:
    """Have a UserError about the second generator name its key."""
    try:
        yield
    except UserError as error:
        raise UserError(f"evaluation.transfer={path}: {str(error).removeprefix(f'{path}: ')}") from error
