"""How prompts read: what a language model says of them, and how it would put their words."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache
from itertools import chain, islice, zip_longest
from typing import NamedTuple

import torch

from ph2p.config.method import MethodConfig
from ph2p.data.world import training_captions
from ph2p.models.judges import load_language_model
from ph2p.models.language import JOINING, LanguageModel, TrigramModel
from ph2p.models.vocabulary import Vocabulary

CAPTIONS = 2000  # of the embedded world, from which its trigram model is learnt
BEAM = 8  # beginnings that are kept as a rewording is built word by word
BONUSES = (0.7, 1.25)  # what a word of the text is worth to a rewording, in nats of one that comes by chance
JOINED = 6  # joining words at most, if it keeps all others


@dataclass(frozen=True)
class Fluency:
    """What a prompt pays for reading badly: `weight` a nat of surprise, as a part of what prompts gain."""

    weight: float
    model: LanguageModel
    joining: tuple[str, ...] = ()  # words that it may put between others

    def costs(self, texts: Sequence[str]) -> list[float]:
        """weight x -log p(text), of each text."""
        return [self.weight * surprise for surprise in self.model.surprises(texts)]

    def rewordings(self, text: str, longest: int = 1000) -> list[str]:
        """Other texts of at most `longest` words that read well, best first: some of a text's words, each at most as
        often as there, in any order, and words that join them.

        A beam search over beginnings looks for the least -log p - bonus x words kept, with one bonus after another: a
        small one leaves out what does not fit, a large one keeps nearly all.
        """
        kinds = [self._reworded(text.split(), bonus * self.model.chance, longest) for bonus in BONUSES]
        turns = chain.from_iterable(zip_longest(*kinds))
        return [other for other in dict.fromkeys(turns) if other and other != text]

    def _reworded(self, words: Sequence[str], bonus: float, longest: int) -> list[str]:
        """The texts, the best first, that a beam search with one bonus comes across."""
        beam, found = [Beginning((), tuple(sorted(words)), 0.0)], dict[str, float]()
        for _ in range(min(len(words) + JOINED, longest)):
            longer = sorted({longer for begun in beam for longer in begun.longer(self.joining, bonus)})
            texts = [" ".join(begun.said) for begun in longer]
            open_ones, ended = (self.model.surprises(texts, ended=ended) for ended in (False, True))
            whole = zip(texts, ended, longer, strict=True)
            found |= {text: surprise - begun.won for text, surprise, begun in whole if begun.won}
            ranked = sorted((s - begun.won, begun) for s, begun in zip(open_ones, longer, strict=True))
            beam = [begun for _, begun in ranked[:BEAM]]
        return sorted(found, key=found.__getitem__)


class Beginning(NamedTuple):
    """The beginning of a rewording: what it says, the words left to say, the bonus of those that it has kept."""

    said: tuple[str, ...]
    left: tuple[str, ...]
    won: float

    def longer(self, joining: Sequence[str], bonus: float) -> Iterator["Beginning"]:
        """With each word that is left, and with each joining one."""
        for word in sorted(set(self.left)):
            left = list(self.left)
            left.remove(word)
            yield Beginning((*self.said, word), tuple(left), self.won + bonus)
        for word in joining:
            if word not in self.left and word not in self.said[-1:]:
                yield Beginning((*self.said, word), self.left, self.won)


def reworded(
    fluency: Fluency | None, vocabulary: Vocabulary, text: str, count: int, bounds: tuple[int, int]
) -> list[list[int]]:
    """The tokens of at most `count` rewordings that are prompts of the vocabulary, their number within `bounds`."""
    if not fluency or not count:
        return []
    read = map(vocabulary.encode, fluency.rewordings(text, bounds[1]))
    fit = (ids for ids in read if bounds[0] <= len(ids) <= bounds[1] and vocabulary.repair(ids) == ids)
    return list(islice(fit, count))


def make_fluency(method: MethodConfig, vocabulary: Vocabulary) -> Fluency | None:
    """What `method.fluency` and `method.language_model` name; raises UserError for a model that cannot be loaded."""
    if not method.fluent or method.language_model is None:
        return None
    model = load_language(method.language_model, vocabulary.allowed_ids.device, "method.language_model")
    return Fluency(method.fluency, model, vocabulary.single(sorted(JOINING)))


def load_language(name: str, device: torch.device, key: str) -> LanguageModel:
    """The language model that a `key` of the configuration names; `world`: that of the drawn scenes' captions."""
    return _world() if name == "world" else load_language_model(name, device, key)


@lru_cache(1)
def _world() -> TrigramModel:
    return TrigramModel(training_captions(CAPTIONS))
