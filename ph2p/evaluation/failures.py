"""Signs that a prompt has failed, a plain sentence each; they stand in the record, in the terminal and on the page.

To add one, write a function and give it a line in `SIGNS`. Bounds are of the kind that shows what nobody would trust,
not of the kind that sorts good from better.
"""

from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass

from ph2p.evaluation.metrics import Measured, gap_closed
from ph2p.evaluation.wording import whole_words, words_of
from ph2p.models.language import FILLERS

REPEATED = 3  # times one word in a prompt
JUNK = 0.5  # part of a prompt's pieces that are no words
# Cosine of CLIP's image features: pictures that have nothing in common come to about 0.5, by the embedded scorer too.
UNLIKE = 0.5
# Such a similarity to the picture with such a diversity of the renderings. Plain shapes with all their attributes named
# leave the embedded model little to choose, and come down to a diversity of 0.003 without being overfitted.
LIKE, ALIKE = 0.9, 0.002


@dataclass(frozen=True)
class Sign:
    """One sign: its short name, what it means and its bound, and the sentence about a result that has it, or None."""

    name: str
    about: str
    find: Callable[[Measured], str | None]


def warnings_of(result: Measured) -> list[str]:
    """What a reader should know before trusting a prompt, a plain sentence each."""
    return [sentence for sign in SIGNS if (sentence := sign.find(result))]


def _no_better_than_nothing(result: Measured) -> str | None:
    if gap_closed(result.loss, result.loss_empty, result.loss_caption) > 0:
        return None
    return f"no better than no words: loss {result.loss:.4f}, of an empty prompt {result.loss_empty:.4f}"


def _not_aligned(result: Measured) -> str | None:
    if not result.clip_similarity < UNLIKE:
        return None
    return f"renderings do not show the picture: CLIP similarity {result.clip_similarity:.2f}"


def _all_alike(result: Measured) -> str | None:
    spread, near = result.diversity, result.clip_similarity
    if spread is None or not (spread < ALIKE and near > LIKE):
        return None
    return (
        f"renderings are nearly one picture: diversity {spread:.3f}, CLIP similarity {near:.2f}; it may be overfitted"
    )


def _junk(result: Measured) -> str | None:
    words = words_of(result.prompt)
    if not any(len(word) > 2 or not word.isascii() for word in words):
        return "holds no real word"
    junk = 1 - whole_words(result.prompt)
    return f"mostly junk: {junk:.0%} of its pieces look like no word" if junk > JUNK else None


def _repeated(result: Measured) -> str | None:
    times = Counter(word for word in words_of(result.prompt) if word not in FILLERS)  # a sentence has several articles
    repeated = [f"“{word}” {count} times" for word, count in times.items() if count >= REPEATED]
    return f"repeats itself: {', '.join(repeated)}" if repeated else None


def _cut_short(result: Measured) -> str | None:
    return f"cut short: {result.cut_short}" if result.cut_short else None


SIGNS = (
    Sign("no better than no words", "the gap closed is at or below 0", _no_better_than_nothing),
    Sign("not aligned", f"the CLIP similarity of renderings and picture is below {UNLIKE}", _not_aligned),
    Sign(
        "overfitted",
        f"the renderings have a diversity below {ALIKE} and a CLIP similarity to the picture above {LIKE}: the prompt "
        "may name this one picture and nothing of its kind",
        _all_alike,
    ),
    Sign("junk", f"more than {JUNK:.0%} of the prompt’s pieces look like no word, or it holds none", _junk),  # noqa: RUF001
    Sign("repeats itself", f"one word stands {REPEATED} times or more", _repeated),
    Sign("cut short", "optimisation or search ended before their plan", _cut_short),
)
