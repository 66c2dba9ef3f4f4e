"""Every key of the schema by its dotted name, with its type and its meaning."""

import inspect
import re
import types
from collections.abc import Iterator
from dataclasses import dataclass, fields, is_dataclass
from functools import cache
from pathlib import Path
from typing import Any, Union, get_args, get_origin, get_type_hints

from ph2p.config.schema import Config

WANTED = {int: "a whole number", float: "a number", bool: "true or false", str: "a text"}
APART = ("application", "experiment")  # no groups: settings of `ph2p apply`, and what benchmarks/evidence.py compares
LISTS = {int: "whole numbers, as in [1,2]", float: "numbers, as in [0.5,1]", str: "a list, as in [a,b]"}
COMMENT = re.compile(r"^\s*(\w+)\s*:.*?\s#\s*(.+)$", re.MULTILINE)  # of a line in Python or YAML: key: ... # meaning


@dataclass(frozen=True)
class Key:
    """A key of the schema: `type` without None, which `optional` stands for, and the comment behind it."""

    type: Any
    optional: bool
    meaning: str

    @property
    def wanted(self) -> str:
        """What to give, as an error says it."""
        origin = get_origin(self.type)
        if origin is list:
            what = LISTS[get_args(self.type)[0]]
        elif origin is dict or is_dataclass(self.type):
            what = "its keys one by one, as in method.optimizer.lr=0.1"
        else:
            what = WANTED.get(self.type, "another value")
        return f"give {what}{', or null' if self.optional else ''}"


@cache
def schema_keys() -> dict[str, Key]:
    """All keys of the schema, {"method.search.share": Key}, its groups and parts among them."""
    return dict(_keys_of(Config, ""))


def _keys_of(part: Any, prefix: str) -> Iterator[tuple[str, Key]]:
    hints, meanings = get_type_hints(part), comments(inspect.getsource(part))
    for one in fields(part):
        kinds = [kind for kind in get_args(hints[one.name]) if kind is not types.NoneType]
        optional = types.NoneType in get_args(hints[one.name])
        kind = Union[tuple(kinds)] if optional else hints[one.name]  # noqa: UP007 - of one kind it is that kind
        yield f"{prefix}{one.name}", Key(kind, optional, meanings.get(one.name, ""))
        if is_dataclass(kind):
            yield from _keys_of(kind, f"{prefix}{one.name}.")


def comments(text: str) -> dict[str, str]:
    """The comments behind keys, {key: meaning}, of a class's source or a YAML file."""
    return dict(COMMENT.findall(text))


def options(folder: Path) -> dict[str, list[str]]:
    """The groups of a folder of YAML files and the options of each, sorted."""
    groups = sorted(path for path in folder.iterdir() if path.is_dir() and path.name not in APART)
    return {group.name: sorted(path.stem for path in group.glob("*.yaml")) for group in groups}
