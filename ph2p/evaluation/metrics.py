"""Scores of found prompts: pure functions, and a thin torchmetrics class around the one that runs over images."""

import math
import re
from collections.abc import Callable, Collection, Sequence

import numpy as np
import torch
from scipy.stats import bootstrap
from torch import Tensor
from torchmetrics import Metric
from torchmetrics.functional.text import rouge_score


def regret(loss: float, loss_caption: float, loss_empty: float) -> float:
    """Normalised regret of a prompt: 0 is as good as the true caption, 1 no better than no words at all.

    regret = (loss(prompt) - loss(caption)) / (loss(empty) - loss(caption)); negative when the prompt is the
    better of the two, nan when the caption is no better than no words.
    """
    if loss_empty == loss_caption:
        return math.nan
    return (loss - loss_caption) / (loss_empty - loss_caption)


def word_recall(prompt: str, words: Sequence[Collection[str]]) -> float:
    """Share of the ground-truth attributes, each a set of synonyms, that the prompt names: in [0, 1]."""
    said = set(re.findall(r"[^\W\d_]+", prompt.lower()))
    return sum(bool(said & set(synonyms)) for synonyms in words) / len(words)


def rouge(prompt: str, references: Sequence[str]) -> tuple[float, float]:
    """ROUGE-1 and ROUGE-L of a prompt (Lin 2004), F measures in [0, 1], each against its best reference.

    ROUGE-1 compares the words whatever their order, which found prompts hardly have; ROUGE-L their longest common
    subsequence. Words of any script count, in lower case.
    """
    scores = rouge_score(
        prompt,
        [list(references)],
        accumulate="best",
        rouge_keys=("rouge1", "rougeL"),
        normalizer=str.lower,
        tokenizer=lambda text: re.findall(r"\w+", text),
    )
    return float(scores["rouge1_fmeasure"]), float(scores["rougeL_fmeasure"])


def confidence_interval(
    values: Sequence[float], statistic: Callable = np.mean, level: float = 0.95, seed: int = 0
) -> tuple[float, float]:
    """Bootstrap interval of a statistic (Efron's percentile method, 5,000 resamples)."""
    if len(values) < 2 or np.ptp(values) == 0:
        return float(statistic(values)), float(statistic(values))
    result = bootstrap(
        (np.asarray(values),),
        statistic,
        confidence_level=level,
        n_resamples=5_000,
        method="percentile",
        rng=np.random.default_rng(seed),
    )
    return float(result.confidence_interval.low), float(result.confidence_interval.high)


def cosine_similarity(a: Tensor, b: Tensor) -> Tensor:
    """Cosine similarities (...) of features (..., E), in [-1, 1]."""
    return torch.nn.functional.cosine_similarity(a, b, dim=-1)


class ImageSimilarity(Metric):
    """Mean CLIP similarity of painted pictures and targets, both given as features (B, E)."""

    higher_is_better = True
    is_differentiable = False
    full_state_update = False

    def __init__(self) -> None:
        super().__init__()
        self.add_state("total", torch.tensor(0.0, dtype=torch.float64), dist_reduce_fx="sum")
        self.add_state("count", torch.tensor(0), dist_reduce_fx="sum")

    def update(self, painted: Tensor, target: Tensor) -> None:
        similarity = cosine_similarity(painted, target)
        self.total += similarity.double().sum()
        self.count += similarity.numel()

    def compute(self) -> Tensor:
        return self.total / self.count
