"""What raters are asked about each prompt."""

import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from ph2p.errors import UserError
from ph2p.files import printable, read_text

SCALES = (5, 7)


@dataclass(frozen=True)
class Question:
    """A question with a scale from 1, which means `low`, to `points`, which means `high`. Raises UserError."""

    key: str
    ask: str
    low: str
    high: str
    points: int = 5

    def __post_init__(self) -> None:
        if not re.fullmatch(r"[a-z][a-z0-9_]{0,39}", str(self.key)):
            raise UserError(f"question {printable(self.key)}: a key has letters a-z, digits and _ only")
        if not all(isinstance(text, str) and text.strip() for text in (self.ask, self.low, self.high)):
            raise UserError(f"question {self.key}: give texts for ask, low and high")
        if self.points not in SCALES:
            raise UserError(f"question {self.key}: points={printable(self.points)}; give 5 or 7")


QUESTIONS = {
    "readability": (
        "How readable is the prompt?",
        "a jumble of letters",
        "words a person would write",
    ),
    "relevance": (
        "How well does the prompt fit the picture?",
        "nothing in common",
        "all that matters in it",
    ),
    "usefulness": (
        "How useful is the prompt to someone who wants more pictures like this one?",
        "of no use",
        "I would start from it",
    ),
}


def choose(words: Sequence[str], points: int = 5) -> tuple[Question, ...]:
    """The questions that `words` name, all without any; a word that ends in .yaml is a file of questions.

    The file is a list of mappings with `key`, `ask`, `low`, `high` and, if it differs, `points`. Raises UserError.
    """
    chosen: list[Question] = []
    for word in words or list(QUESTIONS):
        if word.endswith((".yaml", ".yml")):
            chosen += _from_file(Path(word), points)
        elif word in QUESTIONS:
            chosen.append(Question(word, *QUESTIONS[word], points))
        else:
            raise UserError(f"--questions {printable(word)}: give {', '.join(QUESTIONS)} or a YAML file of your own")
    keys = [question.key for question in chosen]
    if len(set(keys)) < len(keys):
        raise UserError(f"--questions {' '.join(keys)}: give each question once")
    return tuple(chosen)


def _from_file(file: Path, points: int) -> list[Question]:
    try:
        rows = yaml.safe_load(read_text(file))
        return [_question({"points": points} | row) for row in rows]
    except (yaml.YAMLError, TypeError) as error:
        raise UserError(f"{printable(file)}: not a list of questions; each has key, ask, low, high, points") from error
    except UserError as error:
        raise error if str(file) in str(error) else UserError(f"{printable(file)}: {error}") from error


def _question(row: dict[str, Any]) -> Question:
    texts: dict[str, Any] = {name: printable(value) for name, value in row.items() if isinstance(value, str)}
    return Question(**(row | texts))
