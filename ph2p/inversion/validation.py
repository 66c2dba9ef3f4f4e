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
        self, ranked: Sequence[Candidate], count: int, vocabulary: Vocabulary, bounds: tuple[int, int]
    ) -> list[Candidate]:
        """The ranked candidates, best first, among them at most `count` rewordings of the first one that the language
        model proposes, of so many tokens."""
        first, known = ranked[0], {c.token_ids for c in ranked}
        others = map(tuple, reworded(self.price.fluency, vocabulary, first.text, count, bounds))
        found = [replace(first, token_ids=ids, text=vocabulary.decode(ids)) for ids in others if ids not in known]
        if not found:
            return list(ranked)
        losses = self.losses([c.token_ids for c in found])
        return self._best_first([*ranked, *self._with_losses(found, losses)])

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
        priced = [replace(c, total=c.loss + self.gain * p) for c, p in zip(candidates, prices, strict=True)]
        return sorted(priced, key=lambda c: c.total)
