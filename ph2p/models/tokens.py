"""Which words may stand in a prompt: a rule on the written word alone, and the word lists that go with it."""

import re
import unicodedata
from collections.abc import Collection, Iterable
from dataclasses import dataclass
from functools import cache
from pathlib import Path

from ph2p.errors import UserError

NAMES = {"han": "CJK"}  # the word that Unicode's character names begin with, where it is not the script's own name
MARK = "mark"
COUNT = re.compile(r"[\s,;]+\d+(\.\d+)?$")  # frequency lists are often tables


@dataclass(frozen=True)
class TokenFilter:
    """Whether a word may stand in a prompt: whole, printable, of given scripts and of some length.

    A word is letters and the marks on them (Unicode categories L and M), no digit, sign or control character.

    Raises:
        UserError: Unicode has no such script, or no length is left.
    """

    scripts: tuple[str, ...] = ("latin",)  # every letter is of one of them; none: of any
    min_length: int = 2  # letters; the single ones are mostly pieces of other words
    max_length: int = 20
    frequent: Collection[str] | None = None  # only these, in any case; None: all words
    protected: Collection[str] = ()  # allowed whatever the rules and lists say

    def __post_init__(self) -> None:
        for script in self.scripts:
            if _prefix(script) not in _known():
                raise UserError(f"generator.tokens.scripts: Unicode has no {script!r}; name latin, greek, han, ...")
        if not 1 <= self.min_length <= self.max_length:
            raise UserError(
                f"generator.tokens.min_length={self.min_length}: give 1 or more, at most max_length={self.max_length}"
            )
        for name in ("frequent", "protected"):
            words = getattr(self, name)
            object.__setattr__(self, name, words if words is None else folded(words))

    def __call__(self, word: str) -> bool:
        """Whether the rules allow a word; `protected` and the vocabulary's own lists are not among them."""
        kinds = [kind for kind in map(_kind, word) if kind != MARK]
        if not self.min_length <= len(kinds) <= self.max_length or "" in kinds:
            return False
        if self.scripts and not set(kinds).issubset(map(_prefix, self.scripts)):
            return False
        return self.frequent is None or word.casefold() in self.frequent

    def protects(self, word: str) -> bool:
        return word.casefold() in self.protected


@cache
def _kind(character: str) -> str:
    """The script of a letter, as the first word of its name: Python knows no such property; MARK, or "" for others."""
    category = unicodedata.category(character)[0]
    if category == "L":
        return unicodedata.name(character, "").partition(" ")[0]
    return MARK if category == "M" else ""


def _prefix(script: str) -> str:
    return NAMES.get(script.lower(), script.upper())


@cache
def _known() -> frozenset[str]:
    return frozenset(_kind(chr(code)) for code in range(0x20000)) - {"", MARK}


def folded(words: Iterable[str]) -> frozenset[str]:
    """The words without regard to case."""
    return frozenset(word.casefold() for word in words)


def read_words(path: str | Path) -> list[str]:
    """The words of a list: one a line, a count after it is passed over, `#` starts a comment.

    Raises:
        UserError: the file is missing, unreadable or not UTF-8 text.
    """
    try:
        text = Path(path).expanduser().read_text(encoding="utf-8")
    except OSError as error:
        raise UserError(f"{path}: {error.strerror}; give a text file with one word a line") from error
    except UnicodeDecodeError as error:
        raise UserError(f"{path}: not UTF-8 text; save it as UTF-8 with one word a line") from error
    lines = (line.partition("#")[0].strip() for line in text.splitlines())
    return [COUNT.sub("", line) for line in lines if line]
