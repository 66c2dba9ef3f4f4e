"""Words that CLIP ranks highest for a picture: a start for other methods, and a rival that needs no denoiser.

Matching pursuit (Mallat and Zhang, 1993) over the allowed vocabulary, with a beam. Of a prompt whose text features t
leave of the picture's f the residual f - (f.t) t, the words nearest to the residual are tried; the text tower reads
each longer prompt, and those most like the picture go on. It asks the text tower alone: a scorer with other tokens
than the generator does as well.
"""

import torch
from torch import Tensor

from ph2p.models.scorer import Scorer
from ph2p.models.vocabulary import Vocabulary

TRIED = 32  # words that are read behind each prompt of the beam


def retrieve(scorer: Scorer, vocabulary: Vocabulary, features: Tensor, length: int, beams: int) -> Tensor:
    """The `beams` = R prompts (B, R, M) of M = `length` allowed words most like each picture, the best first.

    `features` (B, E) are the pictures', of unit norm, or a set's (`Batch.features`). Every prompt begins with what the
    vocabulary requires. A word occurs twice only where the vocabulary has fewer than M.
    Reads A texts once and R M `TRIED` a picture; no sample of the denoiser.
    """
    words = [vocabulary.decode([token]) for token in vocabulary.allowed_ids.tolist()]
    alone = scorer.word_features(words)  # (A, E)
    required = torch.searchsorted(vocabulary.allowed_ids, vocabulary.required_ids).tolist()
    found = [_pursue(scorer, words, alone, picture, (length, beams), required) for picture in features.to(alone)]
    return vocabulary.allowed_ids[torch.tensor(found, device=vocabulary.allowed_ids.device)]


def _pursue(
    scorer: Scorer, words: list[str], alone: Tensor, picture: Tensor, size: tuple[int, int], required: list[int]
) -> list[list[int]]:
    """The beam's prompts (R, M) for one picture (E,), as places in `words`; `size` is (M, R)."""
    length, beams = size
    beam, residuals = [required], picture[None]  # the residuals (R, E) of the beam's prompts
    if required:
        text = scorer.text_features([" ".join(words[k] for k in required)])  # (1, E)
        residuals = picture - (text @ picture)[:, None] * text
    for _ in range(length - len(required)):
        longer = _longer(beam, residuals @ alone.T, beams)
        texts = scorer.text_features([" ".join(words[k] for k in prompt) for prompt in longer])  # (K, E)
        similarity = texts @ picture  # (K,)
        best = similarity.topk(min(beams, len(longer))).indices
        beam = [longer[k] for k in best.tolist()]
        residuals = picture - similarity[best, None] * texts[best]
    return [beam[k % len(beam)] for k in range(beams)]


def _longer(beam: list[list[int]], scores: Tensor, beams: int) -> list[list[int]]:
    """The prompts of a beam (R) with one more word each, those that `scores` (R, A) rank highest; no two of the
    same words."""
    found: dict[frozenset[int] | tuple[int, ...], list[int]] = {}
    for prompt, row in zip(beam, scores, strict=True):
        left = row.clone()
        left[list(prompt)] = -torch.inf
        count = max(1, min(max(TRIED, beams), len(row) - len(set(prompt))))
        for k in left.topk(count).indices.tolist():
            found.setdefault(frozenset([*prompt, k]) if k not in prompt else (*prompt, k), [*prompt, k])
    return list(found.values())
