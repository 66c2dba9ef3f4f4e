"""How prompts read: what a language model says of them, and the orders of their words that it likes."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache
from itertools import chain, zip_longest

import torch

from ph2p.config.method import MethodConfig
from ph2p.data.world import training_captions
from ph2p.models.judges import load_language_model
from ph2p.models.language import LanguageModel, TrigramModel

CAPTIONS = 2000  # of the embedded world, from which its trigram model is learnt
BEAM = 8  # beginnings that are kept as an order is built word by word


@dataclass(frozen=True)
class Fluency:
    """What a prompt pays for reading badly: `weight` a nat of surprise a word, as a part of what prompts gain."""

    weight: float
    model: LanguageModel

    def costs(self, texts: Sequence[str]) -> list[float]:
        """weight x -log p(text) / number of words, of each text."""
        surprises = self.model.surprises(texts)
        return [self.weight * s / max(1, len(text.split())) for text, s in zip(texts, surprises, strict=True)]

    def orders(self, text: str, count: int) -> list[str]:
        """At most `count` other orders of a text's words that the language model likes better, the best first.

        Half of them are built from nothing by beam search, half differ from the text by one move: a word goes to
        another place, or two change places. The first read best, the second change least of what the model reads.
        """
        (now,) = self.model.surprises([text])
        kinds = [self._best(found, now) for found in (self._built(text.split()), set(_moved(text.split())))]
        turns = chain.from_iterable(zip_longest(*kinds))
        return list(dict.fromkeys(order for order in turns if order))[:count]

    def _best(self, texts: set[str], now: float) -> list[str]:
        """Those that surprise less than `now`, the least surprising first."""
        ordered = sorted(texts)  # of equal ones the first by its letters, whatever the set's own order
        surprises = self.model.surprises(ordered)
        better = [(s, order) for s, order in zip(surprises, ordered, strict=True) if s < now]
        return [order for _, order in sorted(better)]

    def _built(self, words: Sequence[str]) -> set[str]:
        """The `BEAM` orders that a beam search over beginnings ends with."""
        beam: list[tuple[str, ...]] = [()]
        for _ in words:
            longer = {(*begun, word) for begun in beam for word in _left(words, begun)}
            ordered = sorted(longer)
            surprises = self.model.surprises([" ".join(begun) for begun in ordered], ended=False)
            ranked = sorted(zip(surprises, ordered, strict=True))
            beam = [begun for _, begun in ranked[:BEAM]]
        return {" ".join(order) for order in beam}


def _left(words: Sequence[str], begun: Sequence[str]) -> list[str]:
    """The words that a beginning has not used."""
    left = list(words)
    for word in begun:
        left.remove(word)
    return left


def _moved(words: Sequence[str]) -> Iterator[str]:
    """Every order that one move makes."""
    for i in range(len(words)):
        for j in range(len(words)):
            rest = [*words[:i], *words[i + 1 :]]
            yield " ".join([*rest[:j], words[i], *rest[j:]])
            swapped = list(words)
            swapped[i], swapped[j] = swapped[j], swapped[i]
            yield " ".join(swapped)


def make_fluency(method: MethodConfig, device: torch.device) -> Fluency | None:
    """What `method.fluency` and `method.language_model` name; raises UserError for a model that cannot be loaded."""
    if not method.fluency or not method.language_model:
        return None
    return Fluency(method.fluency, load_language(method.language_model, device, "method.language_model"))


def load_language(name: str, device: torch.device, key: str) -> LanguageModel:
    """The language model that a `key` of the configuration names; `world`: that of the drawn scenes' captions."""
    return _world() if name == "world" else load_language_model(name, device, key)


@lru_cache(1)
def _world() -> TrigramModel:
    return TrigramModel(training_captions(CAPTIONS))
