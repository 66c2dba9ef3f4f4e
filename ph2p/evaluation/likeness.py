"""How like two texts or two pictures are, by whatever model embeds them: pure functions of its features."""

import math

from torch import Tensor
from torch.nn.functional import normalize


def diversity_of(features: Tensor) -> float | None:
    """One minus the mean cosine similarity of each two of R renderings' features (R, E); None of one alone."""
    count = len(features)
    if count < 2:
        return None
    unit = normalize(features.double(), dim=-1)
    similarity = unit @ unit.T  # (R, R)
    return 1 - float(similarity.sum() - similarity.trace()) / (count * (count - 1))


def nearest_similarity(one: Tensor, others: Tensor) -> float:
    """Cosine similarity of features (E,) to the nearest of several (K, E): in [-1, 1], nan for none."""
    similarity = normalize(others.double(), dim=-1) @ normalize(one.double(), dim=-1)  # (K,)
    return float(similarity.max()) if len(others) else math.nan


def bertscore(prompt: Tensor, reference: Tensor) -> tuple[float, float, float]:
    """BERTScore (arXiv 1904.09675, without idf and rescaling) of token features (M, E) and (S, E).

    precision is the mean over the prompt's tokens of the cosine similarity to the nearest of the reference's, recall
    the mean over the reference's to the nearest of the prompt's, F1 their harmonic mean; nan where a text has no token.
    """
    if not len(prompt) or not len(reference):
        return math.nan, math.nan, math.nan
    similarity = normalize(prompt.double(), dim=-1) @ normalize(reference.double(), dim=-1).T  # (M, S)
    precision, recall = float(similarity.amax(1).mean()), float(similarity.amax(0).mean())
    return precision, recall, 2 * precision * recall / (precision + recall) if precision + recall else 0.0
