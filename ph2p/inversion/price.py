"""What a prompt pays: for each of its words, and for reading badly."""

from collections.abc import Sequence
from dataclasses import dataclass

from torch import Tensor

from ph2p.inversion.fluency import Fluency
from ph2p.inversion.prompts import present
from ph2p.models.vocabulary import Vocabulary


@dataclass(frozen=True)
class Price:
    """The price of prompts, as a part of what prompts gain over no words: it means the same on all models.

    With a language model's -log p for the surprise, loss + gain x price is, up to a factor, the negative logarithm of
    a posterior: the loss says how well a prompt explains the picture, the language model how likely it was before.
    """

    word: float = 0.0  # of a token
    fluency: Fluency | None = None  # the weight of a nat of surprise, and the language model that is surprised

    def __bool__(self) -> bool:
        return self.word > 0 or self.fluency is not None

    def __call__(self, lengths: Sequence[int], texts: Sequence[str]) -> list[float]:
        """The prices of prompts of so many tokens that read so."""
        costs = self.fluency.costs(texts) if self.fluency else [0.0] * len(texts)
        return [self.word * length + cost for length, cost in zip(lengths, costs, strict=True)]

    def of(self, prompts: Tensor, vocabulary: Vocabulary, like: Tensor) -> Tensor:
        """The prices (K,) of one image's padded prompts (K, L), a tensor `like` another; equal ones are read once."""
        if not self:
            return like.new_zeros(len(prompts))
        tokens = [tuple(present(prompt).tolist()) for prompt in prompts]
        some = list(dict.fromkeys(tokens))
        prices = self([len(ids) for ids in some], [vocabulary.decode(ids) for ids in some])
        known = dict(zip(some, prices, strict=True))
        return like.new_tensor([known[ids] for ids in tokens])
