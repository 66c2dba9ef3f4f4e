"""What an image's candidates weigh on its validation draws: their losses, the price of their words, how they read."""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

from torch import Tensor

from ph2p.inversion.draws import Draws
from ph2p.inversion.fluency import Fluency
from ph2p.inversion.prompts import prompt_losses, stacked
from ph2p.inversion.selection import Candidate
from ph2p.models.generators import Generator
from ph2p.models.vocabulary import Vocabulary

EQUAL = 0.05  # of the gain: prompts whose losses are this near are equally good, and the more fluent one wins
Losses = Callable[[Sequence[Sequence[int]]], list[float]]


def losses_on(generator: Generator, latents: Tensor, draws: Draws) -> Losses:
    """The losses of one image's prompts on its draws, N forward samples each; `latents` (1, C, h, w), `draws` 1 x N."""

    def losses(prompts: Sequence[Sequence[int]]) -> list[float]:
        token_ids = stacked(prompts)[None].to(latents.device)  # (1, K, L)
        return prompt_losses(generator, latents, token_ids, draws)[0].tolist()

    return losses


@dataclass
class Validation:
    """Ranks one image's candidates; `losses` gives those of prompts on draws that chose nothing before.

    The gain is what the lowest loss gains over no words. A token costs `word_price` times the gain. Where there is a
    `fluency`, candidates that are equally good, within `EQUAL` times the gain, are ranked by their costs and the gain
    times `Fluency.costs`.
    """

    losses: Losses
    word_price: float = 0.0
    fluency: Fluency | None = None
    empty: float = math.nan  # the loss of no words, where it is needed
    gain: float = 0.0  # known once candidates are ranked; 0 too where it is not needed

    def ranked(self, candidates: Sequence[Candidate]) -> list[Candidate]:
        """The candidates with their losses, best first; those without a finite loss are left out.

        One prompt more is scored, no words, where the gain counts.
        """
        relative = self.word_price > 0 or self.fluency is not None
        losses = self.losses([c.token_ids for c in candidates] + ([()] if relative else []))
        self.empty = losses.pop() if relative else math.nan
        gain = self.empty - min(losses)
        self.gain = max(0.0, gain) if math.isfinite(gain) else 0.0
        scored = sorted(self._with_losses(candidates, losses), key=self._price)
        if not self.fluency or not scored:
            return scored
        equal = [c for c in scored if self._price(c) <= self._price(scored[0]) + EQUAL * self.gain]
        return self._fluent_first(equal) + scored[len(equal) :]

    def ordered(self, candidates: Sequence[Candidate], count: int, vocabulary: Vocabulary) -> list[Candidate]:
        """The candidates, the winner first, after at most `count` orders of its words have competed with it.

        The language model proposes them (`Fluency.orders`), and of those that are equally good the best by loss and
        fluency wins. An order that the vocabulary reads as other tokens is left out.
        """
        first, tokens = candidates[0], sorted(candidates[0].token_ids)
        texts = self.fluency.orders(first.text, count) if self.fluency else []
        read = [(text, tuple(vocabulary.encode(text))) for text in texts]
        found = [
            replace(first, token_ids=ids, text=text, clip_similarity=None)
            for text, ids in read
            if sorted(ids) == tokens and vocabulary.repair(ids) == list(ids)
        ]
        if not found:
            return list(candidates)
        losses = self.losses([c.token_ids for c in found])
        scored = self._with_losses(found, losses)
        best = self._fluent_first([first, *(c for c in scored if c.loss <= first.loss + EQUAL * self.gain)])[0]
        return [best, *(c for c in candidates if c.token_ids != best.token_ids)]

    def _with_losses(self, candidates: Sequence[Candidate], losses: Sequence[float]) -> list[Candidate]:
        """The candidates whose losses are finite, with them and, where no words were scored, the gap they close."""
        known = 0 < self.empty < math.inf
        return [
            replace(c, loss=loss, gap_closed=1 - loss / self.empty if known else None)
            for c, loss in zip(candidates, losses, strict=True)
            if math.isfinite(loss)
        ]

    def _price(self, candidate: Candidate) -> float:
        """Loss + price x length."""
        return candidate.loss + self.word_price * self.gain * len(candidate.token_ids)

    def _fluent_first(self, candidates: list[Candidate]) -> list[Candidate]:
        assert self.fluency is not None
        costs = self.fluency.costs([c.text for c in candidates])
        total = [self._price(c) + self.gain * cost for c, cost in zip(candidates, costs, strict=True)]
        return [candidates[k] for k in sorted(range(len(candidates)), key=total.__getitem__)]
