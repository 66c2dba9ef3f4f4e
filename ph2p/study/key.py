"""The key of a study: which run an item of the page is from. Who rates never sees it."""

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from ph2p.errors import UserError
from ph2p.evaluation.formatting import finite
from ph2p.files import printable, read_text
from ph2p.study.questions import Question

SUFFIX = ".key.json"


@dataclass(frozen=True)
class Item:
    """A prompt of a picture, and the runs that found it, each with its metrics."""

    picture: str
    prompt: str
    runs: Mapping[str, Mapping[str, float | None]]


@dataclass(frozen=True)
class Key:
    """All that a page hides. `checks`: the answer that each attention check asks for."""

    study: str
    seed: int
    questions: tuple[Question, ...]
    runs: Mapping[str, str]
    pictures: Mapping[str, str]
    items: Mapping[str, Item]
    checks: Mapping[str, int]

    def as_dict(self) -> dict[str, Any]:
        return asdict(self)


def key_file(page: Path) -> Path:
    """Where the key of a page lies: beside it."""
    return page.with_name(f"{page.stem}{SUFFIX}")


def read_key(file: Path) -> Key:
    """Read a key that `ph2p study build` has written. Raises UserError."""
    text = read_text(file)
    try:
        content = json.loads(text)
        items = {name: _item(row) for name, row in content["items"].items()}
        key = Key(
            study=str(content["study"]),
            seed=int(content["seed"]),
            questions=tuple(Question(**row) for row in content["questions"]),
            runs={str(label): str(folder) for label, folder in content["runs"].items()},
            pictures={str(name): str(image) for name, image in content["pictures"].items()},
            items=items,
            checks={str(name): int(answer) for name, answer in content["checks"].items()},
        )
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError, UserError) as error:
        raise UserError(f"{printable(file)}: not the key of a study; give what `ph2p study build` wrote") from error
    whole = all(item.picture in key.pictures and set(item.runs) <= set(key.runs) for item in key.items.values())
    if not (whole and key.items and key.questions):
        raise UserError(f"{printable(file)}: a part of this key is missing; build the study anew")
    return key


def _item(row: Mapping[str, Any]) -> Item:
    runs = {
        str(label): {str(name): finite(value) for name, value in values.items()}
        for label, values in row["runs"].items()
    }
    return Item(str(row["picture"]), str(row["prompt"]), runs)
