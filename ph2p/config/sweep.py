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
    made = []
    for chosen in product(*several.values()):
        values = dict(zip(several, chosen, strict=True))
        one = [Word(word.sign, word.key, values.get(k, word.value)) for k, word in enumerate(split)]
        group_words(list(map(str, one)), grammar.groups)  # a wrong option stops the sweep before its first run
        made.append(_named(one, [one[k] for k in several], grammar.values["name"]))
    return made


def _alternatives(word: Word, grammar: Grammar) -> list[str]:
    """The values that a word gives."""
    if word.value is None:
        return []
    if grammar.is_text(word) and not SWEEPS.fullmatch(word.value):
        return list(_cut(word.value))
    try:
        override = parse(f"{word.key}={word.value}")
        return list(override.sweep_string_iterator()) if override.is_sweep_override() else [word.value]
    except HydraException as error:
        raise UserError(f"{word}: cannot be read as the values of a sweep; give {word.key}=a,b") from error


def _first(word: Word) -> Word:
    """A word with the first of its values, for what is the same with all of them."""
    value = word.value
    if value is not None and SWEEPS.fullmatch(value):
        value = next(iter(parse(f"{word.key}={value}").sweep_string_iterator()), value)
    return Word(word.sign, word.key, None if value is None else next(_cut(value)))


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


def _named(words: list[Word], swept: list[Word], usual: str) -> list[str]:
    """The words of a run, with a name that says what was swept; `usual` is the name where no word gives one."""
    given = [word.value for word in words if word.key == "name" and word.value]
    name = given[-1].strip("'\"") if given else usual
    told = [word for word in swept if word.key not in ("name", "output") and not _says(name, word.key)]
    if not told:
        return list(map(str, words))
    name += "".join(f"-{word.key}={re.sub(r'[^A-Za-z0-9._+-]+', '_', word.value or '')}" for word in told)
    return [*(str(word) for word in words if word.key != "name"), f"name={name}"]


def _says(name: str, key: str) -> bool:
    """Whether a name holds `${key}`, or `${key.name}` of a group."""
    return re.search(r"\$\{" + re.escape(key) + r"(\.name)?\}", name) is not None
