"""The words of a command line, `key=value` each: whether somebody reads the key, and text as it stands.

Hydra reads values by a grammar of its own, in which a path with a comma, a bracket or a space is no text, and takes a
key that is misspelt for a new one where a `+` stands before it. So the words are looked at first: what is wrong with
a key is said with what may have been meant, and the value of a key that holds text is never read by that grammar.
"""

import difflib
import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import Override
from hydra.errors import HydraException

from ph2p.config.keys import schema_keys
from ph2p.config.validate import check_trainer_key
from ph2p.errors import UserError

MOVED = {"data.batch_size": "batch_size", "data.shard": "shard"}
CONSTRUCTORS = ("logger", "method.optimizer")  # their further keys go to a constructor, which refuses what it lacks
SEARCHPATH = "hydra.searchpath"  # further folders of YAML files
SWEEPS = re.compile(r"(choice|range|interval|glob|shuffle|sort)\(.*\)")


@dataclass(frozen=True)
class Word:
    """`+key=value`, taken apart; `value` is None where there is no `=`."""

    sign: str  # "", "+", "++" or "~", Hydra's for keys that are new or go
    key: str
    value: str | None

    @classmethod
    def of(cls, text: str) -> "Word":
        head, equals, value = text.partition("=")
        key = head.lstrip("+~")
        return cls(head[: len(head) - len(key)], key.strip(), value if equals else None)

    def __str__(self) -> str:
        return f"{self.sign}{self.key}" + ("" if self.value is None else f"={self.value}")


def group_words(words: Sequence[str], groups: dict[str, list[str]]) -> tuple[str, ...]:
    """The words that choose a group's option, each checked; raises UserError for an option that there is not."""
    chosen: dict[str, str] = {}
    for word in map(Word.of, words):
        if word.sign == "~":
            raise UserError(f"{word}: a key cannot be taken away; give another value or option")
        if word.key in groups or word.key == SEARCHPATH:
            chosen[word.key] = f"{word.key}={word.value}"
            if not any(Word.of(other).key == SEARCHPATH for other in words):
                _check_option(word, groups[word.key])
    return tuple(chosen.values())


def _check_option(word: Word, known: list[str]) -> None:
    if word.value in known:
        return
    if word.value is None:
        raise UserError(f"{word}: has no value; give {word.key}={known[0]} or another of {', '.join(known)}")
    guess = difflib.get_close_matches(word.value, known, 1)
    meant = f"did you mean {guess[0]}? There are" if guess else "choose one of"
    raise UserError(f"{word}: {word.key} has no such option; {meant} {', '.join(known)}")


@dataclass(frozen=True)
class Grammar:
    """What words may say where the groups are chosen: `values` are the keys of the configuration as they make it."""

    values: dict[str, Any]  # {"a.b": value}, the parts {"a": ...} among them
    groups: dict[str, list[str]]
    chosen: tuple[str, ...]  # the words that choose

    def chooses(self, text: str) -> bool:
        """Whether a word chooses an option of a group."""
        return Word.of(text).key in (*self.groups, SEARCHPATH)

    def read(self, text: str) -> tuple[str, Any]:
        """The key and the value of a word; raises UserError, one line, for a key that nobody reads."""
        word = Word.of(text)
        self._check_key(word)
        if word.value is None:
            raise UserError(f"{word}: has no value; give {word.key}=...")
        if self.is_text(word) and not _is_quoted(word):
            if not word.value and (word.key in schema_keys() or word.key.startswith("data.")):
                raise UserError(f"{word}: has no value; give one (a shell variable that is not set?)")
            return word.key, word.value
        try:
            override = parse(f"{word.key}={word.value}")
        except HydraException as error:
            raise UserError(f"{word}: cannot be read as a value; quote text ('...'), close brackets") from error
        if override.is_sweep_override():
            raise UserError(f"{word}: gives several values; add -m for a run with each, or give a list, [a,b]")
        if isinstance(override.value(), dict) and self.values.get(word.key, 0) is None:
            raise UserError(f"{word}: give such keys in a file of configs/method/, not here")
        return word.key, override.value()

    def is_text(self, word: Word) -> bool:
        """Whether a key's value is text as it stands, whatever it looks like; null stays null."""
        known, default = schema_keys().get(word.key), self.values.get(word.key, 0)
        if word.value == "null":
            return False
        if known is not None:
            return known.type is str
        return isinstance(default, str) or (default is None and not _is_plain(word))

    def _check_key(self, word: Word) -> None:
        """Raise UserError for a key that has no effect."""
        key = word.key
        part, _, rest = key.rpartition(".")
        if key in MOVED:
            raise UserError(f"{word}: give {MOVED[key]}={word.value}; it is a key of the run, not of the data set")
        if key in self.values:
            return
        if part in CONSTRUCTORS and "+" in word.sign and "_target_" in (self.values.get(part) or {}):
            return
        if part == "trainer" and rest:
            check_trainer_key(rest)
        if key in schema_keys():  # but the method leaves its part out
            part = next(some for some in _parents(key) if self.values.get(some, 0) is None)
            raise UserError(f"{key}: {part} is null here; give its keys in a file of configs/method/")
        raise UserError(f"{word}: no key {key}{self._guess(key, word.value)}")

    def _guess(self, key: str, value: str | None) -> str:
        """What may have been meant by a key that there is not."""
        part = key.rpartition(".")[0]
        inside = self.values.get(part) if part else None
        near = self._nearest(key)
        says = f"; did you mean {near[0]}?" if near else ""
        if isinstance(inside, dict) and "_target_" in inside:
            says += f"; {part} has {', '.join(name for name in inside if name != '_target_')}"
            if part in CONSTRUCTORS:
                says += f" (+{key}={value} hands one more to its constructor)"
        return says or "; --help lists the keys"

    def _nearest(self, key: str) -> list[str]:
        """Keys like this one: in the same part, of the same name elsewhere, or spelt alike; or the option it is."""
        part, _, last = key.rpartition(".")
        known = [some for some in (*self.groups, *self.values, *schema_keys()) if not key.startswith(f"{some}.")]
        known = [some for some in known if not some.endswith("_target_")]
        leaves = {some.rpartition(".")[2]: some for some in reversed(known)}
        beside = [leaf for leaf in leaves if f"{part}.{leaf}" in known]
        return (
            [f"{part}.{leaf}" for leaf in difflib.get_close_matches(last, beside, 1)]
            or [leaves[leaf] for leaf in difflib.get_close_matches(last, leaves, 1, 1 if part in self.values else 0.7)]
            or difflib.get_close_matches(key, known, 1, 0.8)
            or [f"{group}={key}" for group, found in self.groups.items() if key in found]
        )


def _parents(key: str) -> list[str]:
    parts = key.split(".")
    return [".".join(parts[:k]) for k in range(1, len(parts))]


def _is_plain(word: Word) -> bool:
    """Whether Hydra's grammar reads the value, and as one."""
    try:
        return not parse(f"{word.key}={word.value}").is_sweep_override()
    except HydraException:
        return False


def _is_quoted(word: Word) -> bool:
    """Whether the value is text in quotes."""
    value = word.value or ""
    return value[:1] in ("'", '"') and value[-1:] == value[:1] and _is_plain(word)


def parse(word: str) -> Override:
    """A word by Hydra's grammar; raises HydraException."""
    return OverridesParser.create().parse_override(word)


def flatten(node: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    """{"a.b": value} of nested dicts, the inner ones too, as {"a": {...}}."""
    flat: dict[str, Any] = {}
    for name, value in node.items():
        flat[f"{prefix}{name}"] = value
        if isinstance(value, dict):
            flat |= flatten(value, f"{prefix}{name}.")
    return flat
