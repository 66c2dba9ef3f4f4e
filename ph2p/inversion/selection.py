"""The candidates of an image, and the rules that choose the winner. A new rule is a function and a line in `RULES`."""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from ph2p.config.schema import Config
from ph2p.errors import UserError
from ph2p.inversion.objectives import finite_or_infinite
from ph2p.inversion.price import Price
from ph2p.inversion.prompts import padded, present
from ph2p.models.generators import Generator
from ph2p.models.painting import guidance_options, paint
from ph2p.models.scorer import Scorer
from ph2p.models.vocabulary import Vocabulary


@dataclass(frozen=True)
class Candidate:
    """A hard prompt that was visited: its tokens (M,), its text, the epoch, its loss and CLIP similarity.

    `loss` is first the one met on the way, then, on the shortlist, the one on the validation draws; `gap_closed` the
    part of the loss without words that it takes away there, where that loss was needed, and is above 0.
    """

    token_ids: tuple[int, ...]
    text: str
    epoch: int
    loss: float
    clip_similarity: float | None = None
    gap_closed: float | None = None
    total: float = math.nan  # the loss and what the prompt pays, where they were compared


@dataclass(frozen=True)
class Pool:
    """The hard prompts that a batch has visited: padded (B, K, L), losses met on the way and epochs (B, K)."""

    token_ids: Tensor
    losses: Tensor
    epochs: Tensor
    gain: Tensor | None = None  # (B,), how much prompts gain over no words, where a search has found that

    @classmethod
    def begun(cls, start: Tensor, images: int) -> "Pool":
        """Of what a method starts from and leaves as it is: padded prompts (B R, L), R for each of the B images."""
        token_ids = start.view(images, -1, start.shape[1])
        losses = torch.full(token_ids.shape[:2], torch.inf, device=start.device)
        return cls(token_ids, losses, torch.zeros_like(losses, dtype=torch.long))

    def best(self, count: int) -> "Pool":
        """The `count` entries with the lowest losses of every image; its newest entry is always among them."""
        key = finite_or_infinite(self.losses)
        key[:, -1] = -torch.inf
        return self._lowest(key, count)

    def lowest(self, count: int) -> "Pool":
        """The `count` entries with the lowest losses of every image, and nothing else."""
        return self._lowest(finite_or_infinite(self.losses), count)

    def extended(self, token_ids: Tensor, losses: Tensor, gain: Tensor, epoch: int) -> "Pool":
        """With what a search found: padded prompts (B, 1 + rounds, L), losses (B, 1 + rounds) and gain (B,), from an
        epoch on."""
        epochs = epoch + torch.arange(losses.shape[1], device=losses.device).expand_as(losses)
        length = max(self.token_ids.shape[2], token_ids.shape[2])
        return Pool(
            torch.cat([padded(self.token_ids, length), padded(token_ids, length)], 1),
            torch.cat([self.losses, losses], 1),
            torch.cat([self.epochs, epochs], 1),
            gain,
        )

    def entries(self, row: int, price: Price, vocabulary: Vocabulary) -> tuple[Tensor, Tensor, list[int]]:
        """An image's prompts (K, L), what each is met with, its loss and what it pays (K,), and the epochs."""
        token_ids, losses = self.token_ids[row], self.losses[row]
        if self.gain is not None:
            losses = losses + self.gain[row] * price.of(token_ids, vocabulary, losses)
        return token_ids, losses, self.epochs[row].tolist()

    def _lowest(self, key: Tensor, count: int) -> "Pool":
        """The entries with the `count` lowest values of `key` (B, K) in every image."""
        index = key.topk(min(count, key.shape[1]), largest=False).indices  # (B, count)
        token_ids = self.token_ids.gather(1, index[..., None].expand(-1, -1, self.token_ids.shape[2]))
        return Pool(token_ids, self.losses.gather(1, index), self.epochs.gather(1, index))


Read = Callable[[Tensor], list[int] | None]  # a prompt's tokens (M,) as the tokeniser reads their text; None: none


def distinct(
    vocabulary: Vocabulary, read: Read, token_ids: Tensor, losses: Tensor, epochs: Sequence[int]
) -> dict[tuple[int, ...], Candidate]:
    """The distinct candidates by their tokens, in the order given, as `read` reads them; of equal ones the first.

    `token_ids` (K, L) padded, `losses` (K,).
    """
    found: dict[tuple[int, ...], Candidate] = {}
    for tokens, loss, epoch in zip(token_ids, losses.tolist(), epochs, strict=True):
        ids = read(present(tokens))
        if ids is not None and tuple(ids) not in found:
            found[tuple(ids)] = Candidate(tuple(ids), vocabulary.decode(ids), epoch, loss)
    return found


def shortlist(
    vocabulary: Vocabulary,
    token_ids: Tensor,
    losses: Tensor,
    epochs: Sequence[int],
    size: int,
    read: Read | None = None,
    prompts: int = 1,
) -> list[Candidate]:
    """Keep the `size` distinct candidates with the lowest losses whose text tokenises back to their tokens.

    `token_ids` (K, L) padded, `losses` (K,); of equal prompts the lowest loss counts. The last candidate, where the
    optimisation ended, is always kept. Tokens that read otherwise are replaced by what their text means to
    the tokeniser, or dropped where that is no allowed prompt; `read` may be another rule than this. Of several
    `prompts` that are wanted the best different ones (`different`) are kept too.
    """
    read = read or vocabulary.repair
    order = torch.argsort(finite_or_infinite(losses), stable=True)
    found = distinct(vocabulary, read, token_ids[order], losses[order], [epochs[k] for k in order.tolist()])
    last = found.pop(tuple(read(present(token_ids[-1])) or ()), None)
    best, places = list(found.values()), size - 1 if last else size
    others = different(best, prompts)[1:]
    kept = list(dict.fromkeys([*best[: max(1, places - len(others))], *others, *best]))[:places]
    return [*kept, last] if last else kept


def different(candidates: Sequence[Candidate], count: int) -> list[Candidate]:
    """The first candidate and up to `count` - 1 later ones, in their order: of each two of them the one with fewer
    different words shares at most half of these with the other."""
    found: list[Candidate] = []
    for candidate in candidates:
        words = _words(candidate)
        shared = ((words & other, min(len(words), len(other))) for other in map(_words, found))
        if len(found) < count and all(2 * len(both) <= fewer for both, fewer in shared):
            found.append(candidate)
    return found


def _words(candidate: Candidate) -> frozenset[str]:
    return frozenset(candidate.text.casefold().split())


# Ranks an image's candidates, given as `Validation.ranked` orders them, or, to a rule that needs no validation
# (`SelectionConfig.validates`), as they were visited: the winner first. `features` (E,) are the picture's, or a set's
# (`Batch.features`): a product with features of unit norm is the mean cosine similarity. A new rule
# is a class or function here or in a file of its own, and a line in `RULES`.
Rule = Callable[[Tensor, list[Candidate]], list[Candidate]]


class BestRendering:
    """The finalists by the CLIP similarity of picture and rendering, then the rest in their order.

    Finalists are the first ones whose loss, with what they pay, exceeds the best one's by at most `margin`. The
    similarity of prompt and picture says little about the rendering (arXiv 2408.06502), so the rendering is compared
    with the picture. All finalists are rendered with one seed; guidance takes two denoiser samples a step.
    """

    def __init__(self, generator: Generator, scorer: Scorer, cfg: Config) -> None:
        self.generator, self.scorer = generator, scorer
        self.choice, self.seed = cfg.method.selection, cfg.seed
        self.steps = cfg.generator.steps_at_most(self.choice.steps)
        self.guidance = guidance_options(cfg.generator)

    def __call__(self, features: Tensor, candidates: list[Candidate]) -> list[Candidate]:
        best = candidates[0].total
        bound = best + self.choice.margin * abs(best)  # below 0 where negatives weigh more than pictures
        some = [c for c in candidates[: self.choice.finalists] if c.total <= bound]
        texts = [candidate.text for candidate in some]
        renderings = paint(self.generator, texts, [self.seed] * len(texts), self.steps, self.guidance)
        similarity = (self.scorer.image_features(renderings) @ features).tolist()
        return _ranked(some, similarity) + candidates[len(some) :]


class BestText:
    """PEZ's choice (arXiv 2302.03668, commit f22a1be): of all prompts visited the one most like the picture by CLIP.

    It takes no sample of the denoiser, and says little about what the model makes of the prompt.
    """

    def __init__(self, generator: Generator, scorer: Scorer, cfg: Config) -> None:
        self.scorer, self.count = scorer, cfg.method.selection.shortlist

    def __call__(self, features: Tensor, candidates: list[Candidate]) -> list[Candidate]:
        """The best candidates, as many as the shortlist holds."""
        similarity = (self.scorer.text_features([c.text for c in candidates]) @ features).tolist()
        order = sorted(range(len(candidates)), key=lambda k: (math.isnan(similarity[k]), -similarity[k]))
        return [candidates[k] for k in order[: self.count]]


class ReleasedChoice:
    """The choice of PH2P's released code (commit 7b05889): each prompt is rendered once, the best CLIP similarity wins.

    Guidance is 7.5 whatever the model's own, and each rendering has a seed of its own, where that code has none. It
    renders the last prompt of each of its 500 steps, in 50 denoising steps; here those are as many visited prompts as
    the shortlist holds, evenly apart and the last among them, in `method.selection.steps`.
    """

    guidance = 7.5

    def __init__(self, generator: Generator, scorer: Scorer, cfg: Config) -> None:
        self.generator, self.scorer, self.count = generator, scorer, cfg.method.selection.shortlist
        self.steps = cfg.generator.steps_at_most(cfg.method.selection.steps)
        self.seed = cfg.seed + 2000  # not one of the evaluation's

    def __call__(self, features: Tensor, candidates: list[Candidate]) -> list[Candidate]:
        some = candidates[::-1][:: math.ceil(len(candidates) / self.count)][::-1]
        seeds = [self.seed + k for k in range(len(some))]
        options = {"guidance_scale": self.guidance, "guidance_rescale": 0.0}
        renderings = paint(self.generator, [c.text for c in some], seeds, self.steps, options)
        return _ranked(some, (self.scorer.image_features(renderings) @ features).tolist())


def _ranked(candidates: Sequence[Candidate], similarity: Sequence[float]) -> list[Candidate]:
    """The candidates with their renderings' CLIP similarities, the highest first; what is no number comes last."""
    ranked = [replace(c, clip_similarity=value) for c, value in zip(candidates, similarity, strict=True)]
    return sorted(ranked, key=lambda c: (math.isnan(c.clip_similarity or 0), -(c.clip_similarity or 0)))


def lowest_loss(features: Tensor, candidates: list[Candidate]) -> list[Candidate]:
    """By validation loss alone: nothing is rendered, which leaves more of the budget for the search."""
    return candidates


# What `method.selection.rule` may be. What a rule needs of model and scorer is checked as it is made.
RULES: dict[str, Callable[[Generator, Scorer, Config], Rule]] = {
    "renderings": BestRendering,
    "loss": lambda generator, scorer, cfg: lowest_loss,
    "clip_text": BestText,
    "released": ReleasedChoice,
}


def make_rule(generator: Generator, scorer: Scorer, cfg: Config) -> Rule:
    """The rule that the configuration names; raises UserError for an unknown one and where it does not fit."""
    name = cfg.method.selection.rule
    if name not in RULES:
        raise UserError(f"method.selection.rule={name}: choose one of {', '.join(RULES)}")
    return RULES[name](generator, scorer, cfg)
