"""A sweep: words that give several values for some keys become the words of one run each."""

import re
from collections.abc import Iterator, Sequence
from itertools import product

from hydra.errors import HydraException

from ph2p.config.compose import grammar_of
from ph2p.config.words import SWEEPS, Grammar, Word, group_words, parse
from ph2p.errors import UserError


def jobs(words: Sequence[str]) -> list[list[str]]:
    """The words of every run: `seed=0,1 method=ph2p,pez` are four, each with the folder name of its own.

    What is swept is added to the name, `-seed=0`, unless the name says it already (`name='s-${seed}'`).
    Raises UserError for a key that nobody reads.
    """
    split = list(map(Word.of, words))
    first = [str(_first(word)) for word in split]
    grammar = grammar_of(first)
    for text in first:
        if not grammar.chooses(text):
            grammar.read(text)
    several = {k: some for k, word in enumerate(split) if len(some := _alternatives(word, grammar)) > 1}
    labels = {k: _labels(some) for k, some in several.items()}
    made = []
    for picked in product(*(range(len(some)) for some in several.values())):
        places = dict(zip(several, picked, strict=True))
        one = [
            Word(word.sign, word.key, several[k][places[k]] if k in places else word.value)
            for k, word in enumerate(split)
        ]
        group_words(list(map(str, one)), grammar.groups)  # a wrong option stops the sweep before its first run
        made.append(_named(one, {one[k].key: labels[k][at] for k, at in places.items()}, grammar.values["name"]))
    return made


def _alternatives(word: Word, grammar: Grammar) -> list[str]:
    """The values that a word gives."""
    if word.value is None:
        return []
    if grammar.is_text(word) and not SWEEPS.fullmatch(word.value):
        return list(_cut(word.value))
    return _expanded(word)


def _expanded(word: Word) -> list[str]:
    """The values that a word gives by Hydra's grammar, `range(3)` among them."""
    try:
        override = parse(f"{word.key}={word.value}")
        return list(override.sweep_string_iterator()) if override.is_sweep_override() else [word.value or ""]
    except HydraException as error:
        raise UserError(f"{word}: cannot be read as the values of a sweep; give {word.key}=a,b") from error


def _first(word: Word) -> Word:
    """A word with the first of its values, for what is the same with all of them."""
    if word.value is None:
        return word
    some = _expanded(word) if SWEEPS.fullmatch(word.value) else list(_cut(word.value))
    return Word(word.sign, word.key, some[0] if some else "")


def _cut(text: str) -> Iterator[str]:
    """Cut at the commas that stand in no quotes and no brackets."""
    depth, quote, start = 0, "", 0
    for k, letter in enumerate(text):
        if quote:
            quote = "" if letter == quote else quote
        elif letter in "'\"":
            quote = letter
        elif letter in "([{":
            depth += 1
        elif letter in ")]}":
            depth -= 1
        elif letter == "," and depth == 0:
            yield text[start:k]
            start = k + 1
    yield text[start:]


def _labels(values: list[str]) -> list[str]:
    """What a folder's name says of each value: its end in letters that suit, or a number where two are alike."""
    labels = [re.sub(r"[^A-Za-z0-9._+-]+", "_", value)[-40:] for value in values]
    return labels if len(set(labels)) == len(values) else [str(number) for number in range(len(values))]


def _named(words: list[Word], swept: dict[str, str], usual: str) -> list[str]:
    """The words of a run, with a name that says what was swept; `usual` is the name where no word gives one."""
    given = [word.value for word in words if word.key == "name" and word.value]
    name = given[-1].strip("'\"") if given else usual
    told = {key: label for key, label in swept.items() if key not in ("name", "output") and not _says(name, key)}
    if not told:
        return list(map(str, words))
    name += "".join(f"-{key}={label}" for key, label in told.items())
    return [*(str(word) for word in words if word.key != "name"), f"name={name}"]


def _says(name: str, key: str) -> bool:
    """Whether a name holds `${key}`, or `${key.name}` of a group."""
    return re.search(r"\$\{" + re.escape(key) + r"(\.name)?\}", name) is not None
