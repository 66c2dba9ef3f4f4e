"""The models that judge prompts and renderings beside the denoiser; each is passed in, so any other does as well."""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from ph2p.config.schema import EvaluationConfig
from ph2p.inversion.fluency import load_language
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
    )
