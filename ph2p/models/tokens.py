"""Which words may stand in a prompt: a rule on the written word alone, and the word lists that go with it."""

import unicodedata
from collections.abc import Collection, Iterable
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import regex

from ph2p.errors import UserError
from ph2p.files import read_text

MARKS = regex.compile(r"\p{M}+")
COUNT = regex.compile(r"[\s,;]+\d+(\.\d+)?$")  # frequency lists are often tables
SHOWN = 3  # words that a message names


@dataclass(frozen=True)
class TokenFilter:
    """Whether a word may stand in a prompt: whole, printable, of given scripts and of some length.

    A word is letters and the marks on them (Unicode categories L and M), no digit, sign or control character.

    Raises:
        UserError: Unicode has no such script, or no length is left.
    """

    scripts: tuple[str, ...] = ("latin",)  # every letter is of one of them (Unicode's property Script); none: of any
    min_length: int = 2  # letters; the single ones are mostly pieces of other words
    max_length: int = 20
    frequent: Collection[str] | None = None  # only these, in any case; None: all words
    protected: Collection[str] = ()  # allowed whatever the rules and lists say

    def __post_init__(self) -> None:
        for script in self.scripts:
            try:
                regex.compile(rf"\p{{Script={script}}}")
            except regex.error as error:
                raise UserError(
                    f"generator.tokens.scripts: Unicode has no {script!r}; name latin, greek, han, ..."
                ) from error
        if not 1 <= self.min_length <= self.max_length:
            raise UserError(
                f"generator.tokens.min_length={self.min_length}: give 1 or more, at most max_length={self.max_length}"
            )
        for name in ("frequent", "protected"):
            words = getattr(self, name)
            object.__setattr__(self, name, words if words is None else folded(words))

    @cached_property
    def _letters(self) -> "regex.Pattern[str]":
        scripts = "".join(rf"\p{{Script={script}}}" for script in self.scripts)
        letter = rf"[\p{{L}}&&[{scripts}]]" if scripts else r"\p{L}"
        return regex.compile(rf"{letter}{{{self.min_length},{self.max_length}}}", regex.VERSION1)

    def __call__(self, word: str) -> bool:
        """Whether the rules allow a word; `protected` and the vocabulary's own lists are not among them."""
        if not self._letters.fullmatch(MARKS.sub("", word)):
            return False
        return self.frequent is None or word.casefold() in self.frequent

    def protects(self, word: str) -> bool:
        return word.casefold() in self.protected


def folded(words: Iterable[str]) -> frozenset[str]:
    """The words without regard to case."""
    return frozenset(word.casefold() for word in words)


def read_words(path: str | Path) -> list[str]:
    """The words of a list: one a line, a count after it is passed over, `#` starts a comment.

    Raises:
        UserError: the file is missing, unreadable or no text, or has words that can be no token of any vocabulary.
    """
    try:
        text = read_text(path)
    except UserError as error:
        raise UserError(f"{error}, one word a line") from error
    lines = (line.partition("#")[0].strip() for line in text.splitlines())
    words = [COUNT.sub("", line) for line in lines if line]
    if never := [word for word in words if not _possible(word)]:
        names = ", ".join(map(ascii if any(map(_hidden, never[0])) else repr, never[:SHOWN]))
        more = f" and {len(never) - SHOWN} more" if len(never) > SHOWN else ""
        raise UserError(f"{path}: {names}{more} can never be one word of a prompt; write one word a line, no spaces")
    return words


def _possible(word: str) -> bool:
    """A token's word has no space in it, and no character that cannot be seen."""
    return not any(character.isspace() or _hidden(character) for character in word)


def _hidden(character: str) -> bool:
    return unicodedata.category(character) in ("Cc", "Cf", "Cs", "Cn")
