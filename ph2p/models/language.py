"""How much a text reads like language: what a model that gives words a probability says of it."""

import math
import re
from collections import Counter, defaultdict
from collections.abc import Iterable, Sequence
from functools import lru_cache
from typing import Protocol

START, END = "<s>", "</s>"
PIECE = re.compile(r"\w+|[^\w\s]")
# Words that only join others: they are neither right nor wrong about a picture.
FILLERS = frozenset(
    [
        *("a", "an", "the", "this", "that", "these", "those", "it", "its", "there", "is", "are", "be"),
        *("and", "or", "as", "of", "in", "on", "at", "to", "by", "for", "from", "with", "against"),
    ]
)


JOINING = FILLERS | {"background"}  # words that a rewording may put between others


class LanguageModel(Protocol):
    """Gives texts a probability, word after word. `chance`: nats of a word that any other could stand for."""

    chance: float

    def __call__(self, text: str) -> float:
        """The perplexity of a text, 1 or more; nan without a word."""
        ...

    def surprises(self, texts: Sequence[str], ended: bool = True) -> list[float]:
        """Minus the log probability of each text, in nats, 0 or more; of one that goes on where not `ended`."""
        ...


class TrigramModel:
    """A trigram model with Witten-Bell smoothing (Witten and Bell 1991), learnt from texts; no weights are needed.

    p(w | h) = (c(h w) + T(h) p(w | h')) / (c(h) + T(h)): c(h) how often the context h was seen, T(h) how many different
    words followed it, h' the context without its first word. Below the single word all words are equally likely, those
    that were never seen as one of them. Called with a text it gives its perplexity.
    """

    def __init__(self, texts: Iterable[str]) -> None:
        self.following: dict[tuple[str, ...], Counter[str]] = defaultdict(Counter)
        for text in texts:
            words = [START, START, *pieces(text), END]
            for place in range(2, len(words)):
                for order in range(3):
                    self.following[tuple(words[place - order : place])][words[place]] += 1
        self.words = frozenset(self.following[()])  # with the end of a text
        self._word = lru_cache(1 << 16)(lambda word, *before: -math.log(self.probability(word, before)))
        self.chance = math.log(len(self.words) + 1)

    def probability(self, word: str, context: Sequence[str] = ()) -> float:
        """p(word | context) in (0, 1), of which the last two words count; a word that was never seen is any other."""
        context = tuple(context)[-2:]
        shorter = self.probability(word, context[1:]) if context else 1 / (len(self.words) + 1)
        seen = self.following.get(context)
        if not seen:
            return shorter
        return (seen[word] + len(seen) * shorter) / (seen.total() + len(seen))

    def __call__(self, text: str) -> float:
        """exp of minus the mean log probability of the text's words and of its end; nan for a text without words."""
        count = len(pieces(text))
        return math.exp(self._surprise(text, True) / (count + 1)) if count else math.nan

    def surprises(self, texts: Sequence[str], ended: bool = True) -> list[float]:
        """Minus the log probability of each text's words, and of its end where it is `ended`."""
        return [self._surprise(text, ended) for text in texts]

    def _surprise(self, text: str, ended: bool) -> float:
        words = [START, START, *pieces(text), *([END] if ended else [])]
        return sum(self._word(words[k], words[k - 2], words[k - 1]) for k in range(2, len(words)))


def pieces(text: str) -> list[str]:
    """The words and signs of a text, in lower case."""
    return PIECE.findall(text.lower())
