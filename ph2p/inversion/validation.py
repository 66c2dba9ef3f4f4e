"""What an image's candidates weigh on its validation draws: their losses, the price of their words, how they read."""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace

from torch import Tensor

from ph2p.inversion.draws import Draws
from ph2p.inversion.fluency import reworded
from ph2p.inversion.price import Price
from ph2p.inversion.prompts import prompt_losses, stacked
from ph2p.inversion.selection import Candidate
from ph2p.models.generators import Generator
from ph2p.models.vocabulary import Vocabulary

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

    What counts is loss + gain x price. The gain is what the lowest loss gains over no words.
    """

    losses: Losses
    price: Price = field(default_factory=Price)
    empty: float = math.nan  # the loss of no words, where it is needed
    gain: float = 0.0  # known once candidates are ranked; 0 too where it is not needed

    def ranked(self, candidates: Sequence[Candidate]) -> list[Candidate]:
        """The candidates with their losses, best first; those without a finite loss are left out.

        One prompt more is scored, no words, where the gain counts.
        """
        losses = self.losses([c.token_ids for c in candidates] + ([()] if self.price else []))
        self.empty = losses.pop() if self.price else math.nan
        gain = self.empty - min(losses)
        self.gain = max(0.0, gain) if math.isfinite(gain) else 0.0
        return self._best_first(self._with_losses(candidates, losses))

    def reworded(
        self, candidates: Sequence[Candidate], count: int, vocabulary: Vocabulary, longest: int
    ) -> list[Candidate]:
        """The candidates, the winner first, after at most `count` rewordings of it have competed with it, of at most
        `longest` tokens: the language model proposes them."""
        first = candidates[0]
        others = reworded(self.price.fluency, vocabulary, first.text, count, longest)
        if not others:
            return list(candidates)
        found = [
            replace(first, token_ids=tuple(ids), text=vocabulary.decode(ids), clip_similarity=None) for ids in others
        ]
        losses = self.losses([c.token_ids for c in found])
        best = self._best_first([first, *self._with_losses(found, losses)])[0]
        return [best, *(c for c in candidates if c.token_ids != best.token_ids)]

    def _with_losses(self, candidates: Sequence[Candidate], losses: Sequence[float]) -> list[Candidate]:
        """The candidates whose losses are finite, with them and, where no words were scored, the gap they close."""
        known = 0 < self.empty < math.inf
        return [
            replace(c, loss=loss, gap_closed=1 - loss / self.empty if known else None)
            for c, loss in zip(candidates, losses, strict=True)
            if math.isfinite(loss)
        ]

    def _best_first(self, candidates: Sequence[Candidate]) -> list[Candidate]:
        """By loss + gain x price."""
        prices = self.price([len(c.token_ids) for c in candidates], [c.text for c in candidates])
        totals = [c.loss + self.gain * price for c, price in zip(candidates, prices, strict=True)]
        return [candidates[k] for k in sorted(range(len(candidates)), key=totals.__getitem__)]
