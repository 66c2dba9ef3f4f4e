"""What the words of a prompt are: true ones, and readable ones. Plain text in, numbers out; no model is needed."""

import math
import re
from collections.abc import Callable, Collection, Sequence

from ph2p.errors import UserError
from ph2p.models.language import FILLERS

WORD = re.compile(r"[^\W\d_]+")
# Words that fit any picture: in "a photo with a brown background" it is "brown" that is right or wrong.
ANY_PICTURE = frozenset(
    (
        "background",
        "backdrop",
        "picture",
        "image",
        "photo",
        "drawing",
        "painting",
        "sketch",
        "illustration",
        "rendering",
    )
)
SHORT = FILLERS | {"i", "me", "my", "we", "us", "he", "go", "no", "so", "up", "do", "if", "am", "ox"}  # yet words
Attributes = Sequence[Collection[str]]  # for each true attribute the set of words that name it


def words_of(text: str) -> list[str]:
    """The words of a text in lower case: runs of letters of any script."""
    return WORD.findall(text.lower())


def word_recall(prompt: str, attributes: Attributes) -> float:
    """Part of the true attributes that the prompt names: in [0, 1]."""
    said = set(words_of(prompt))
    return sum(bool(said & set(synonyms)) for synonyms in attributes) / len(attributes)


def word_precision(prompt: str, attributes: Attributes) -> float:
    """Part of the prompt's words that name a true attribute: in [0, 1], nan for a prompt without words.

    Each occurrence counts. Words that only join others (`FILLERS`) and words that fit any picture (`ANY_PICTURE`) count
    neither way, unless they name one.
    """
    true = {word for synonyms in attributes for word in synonyms}
    said = [word for word in words_of(prompt) if word in true or word not in FILLERS | ANY_PICTURE]
    return sum(word in true for word in said) / len(said) if said else math.nan


def word_f1(prompt: str, attributes: Attributes) -> float:
    """Harmonic mean of precision and recall: in [0, 1]; 0 for a prompt without words."""
    recall, precision = word_recall(prompt, attributes), word_precision(prompt, attributes)
    return 2 * precision * recall / (precision + recall) if recall > 0 else 0.0


def whole_words(prompt: str) -> float:
    """Part of the prompt's pieces, split at spaces, that look like words of a dictionary; nan for none.

    Letters alone (an apostrophe or hyphen within), all small, all capital or with a capital first; of Latin letters
    three or more, or a known short word, with a vowel and no five consonants in a row. Other scripts' letters do.
    """
    pieces = prompt.split()
    return sum(map(_is_whole, pieces)) / len(pieces) if pieces else math.nan


def _is_whole(piece: str) -> bool:
    piece = piece.strip(".,;:!?")
    if not re.fullmatch(r"[^\W\d_]+(['-][^\W\d_]+)*", piece):
        return False
    if not piece.isascii():
        return True
    if piece not in (piece.lower(), piece.upper(), piece.capitalize()):
        return False
    low = piece.lower()
    spoken = re.search("[aeiouy]", low) and not re.search("[^aeiouy'-]{5}", low)
    return low in SHORT or (len(low) > 2 and bool(spoken))


def repeats(prompt: str) -> float:
    """Part of the prompt's words that it has said before; nan for none."""
    said = words_of(prompt)
    return 1 - len(set(said)) / len(said) if said else math.nan


def fillers(prompt: str) -> float:
    """Part of the prompt's words that only join others; nan for none."""
    said = words_of(prompt)
    return sum(word in FILLERS for word in said) / len(said) if said else math.nan


def reads_back(
    token_ids: Sequence[int], decode: Callable[[Sequence[int]], str], encode: Callable[[str], Sequence[int]]
) -> float:
    """Part of a prompt's tokens whose own text is read as just this token; nan for none.

    A piece of a word, or a word that is written otherwise, is another token to whoever types it.
    """
    return (
        sum(_is_read(token, decode([token]), encode) for token in token_ids) / len(token_ids) if token_ids else math.nan
    )


def _is_read(token: int, text: str, encode: Callable[[str], Sequence[int]]) -> bool:
    try:
        return list(encode(text)) == [token]
    except UserError:  # no text at all, or letters that the vocabulary lacks
        return False
