"""Choosing the winner among the candidates of an image, and measuring it on draws that nothing was chosen on."""

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor
from torch.nn.functional import cosine_similarity

from ph2p.inversion.draws import Draws
from ph2p.inversion.objectives import candidate_losses
from ph2p.models.generators import Generator
from ph2p.models.painting import paint
from ph2p.models.scorer import Scorer
from ph2p.models.vocabulary import Vocabulary


@dataclass(frozen=True)
class Candidate:
    """A hard prompt that was visited: its tokens (M,), its text, the epoch, its loss and CLIP similarity.

    `loss` is first the one met on the way, then, on the shortlist, the one on the validation draws.
    """

    token_ids: tuple[int, ...]
    text: str
    epoch: int
    loss: float
    clip_similarity: float | None = None


@dataclass(frozen=True)
class Pool:
    """The hard prompts that a batch has visited: tokens (B, K, M), losses met on the way and epochs (B, K)."""

    token_ids: Tensor
    losses: Tensor
    epochs: Tensor

    def best(self, count: int) -> "Pool":
        """The `count` entries with the lowest losses of every image; its newest entry is always among them."""
        key = self.losses.nan_to_num(torch.inf)
        key[:, -1] = -torch.inf
        index = key.topk(min(count, key.shape[1]), largest=False).indices  # (B, count)
        token_ids = self.token_ids.gather(1, index[..., None].expand(-1, -1, self.token_ids.shape[2]))
        return Pool(token_ids, self.losses.gather(1, index), self.epochs.gather(1, index))


def shortlist(
    vocabulary: Vocabulary, token_ids: Tensor, losses: Tensor, epochs: Sequence[int], size: int
) -> list[Candidate]:
    """Keep the `size` distinct candidates with the lowest losses whose text tokenises back to their tokens.

    `token_ids` (K, M), `losses` (K,); of equal prompts the lowest loss counts. The last candidate, where the
    optimisation ended, is always kept. Tokens that read otherwise are replaced by what their text means to
    the tokeniser, or dropped where that is no allowed prompt.
    """
    found: dict[tuple[int, ...], Candidate] = {}
    order = torch.argsort(losses.nan_to_num(torch.inf), stable=True).tolist()
    for k in order:
        ids = vocabulary.repair(token_ids[k])
        if ids is not None and tuple(ids) not in found:
            found[tuple(ids)] = Candidate(tuple(ids), vocabulary.decode(ids), epochs[k], float(losses[k]))
    last = found.pop(tuple(vocabulary.repair(token_ids[-1]) or ()), None)
    best = list(found.values())
    return [*best[: size - 1], last] if last else best[:size]


def validate_candidates(
    generator: Generator, latents: Tensor, candidates: list[Candidate], draws: Draws
) -> list[Candidate]:
    """Score one image's candidates on its validation draws, best first; K N forward samples.

    Those without a finite loss are left out.
    `latents` (1, C, h, w), `draws` of 1 x N.
    """
    ids = torch.tensor([[c.token_ids for c in candidates]], device=latents.device)  # (1, K, M)
    losses = candidate_losses(generator, latents, ids, draws)[0].tolist()
    scored = [replace(c, loss=loss) for c, loss in zip(candidates, losses, strict=True) if math.isfinite(loss)]
    return sorted(scored, key=lambda c: c.loss)


def rank_finalists(
    generator: Generator,
    scorer: Scorer,
    target_features: Tensor,
    finalists: list[list[Candidate]],
    steps: int,
    seed: int,
    guidance: dict[str, float],
) -> list[list[Candidate]]:
    """Paint every image's finalists with one seed and sort them by CLIP similarity to the target, best first.

    `target_features` (B, E). The similarity of prompt and picture says little about the painted picture
    (arXiv 2408.06502), so pictures are compared with pictures. Costs 2 x steps forward samples a finalist.
    """
    texts = [candidate.text for row in finalists for candidate in row]
    pictures = paint(generator, texts, [seed] * len(texts), steps, guidance)
    features = iter(scorer.image_features(pictures))
    ranked = []
    for row, target in zip(finalists, target_features, strict=True):
        scored = [replace(c, clip_similarity=float(cosine_similarity(next(features), target, dim=-1))) for c in row]
        ranked.append(sorted(scored, key=lambda c: (math.isnan(c.clip_similarity), -c.clip_similarity)))
    return ranked
