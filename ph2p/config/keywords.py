"""Python's keyword arguments as words of the command line: `method="ph2p", prompt_length=8`."""

import difflib
import re
from collections.abc import Iterator, Mapping
from dataclasses import fields
from pathlib import Path
from typing import Any

from hydra.core.override_parser.types import Quote, QuotedString

from ph2p.config.method import MethodConfig
from ph2p.errors import UserError

GROUPS = ("generator", "scorer", "method", "trainer", "debug")
KEYS = (
    "evaluation",
    "batch_size",
    "seed",
)  # and data.fit, and those of the method; what only concerns a results folder is left out
METHOD = tuple(field.name for field in fields(MethodConfig) if field.name != "name")
PLAIN = re.compile(r"[\w./:@~-]+", re.ASCII)  # text that needs no quotes


def as_overrides(**options: Any) -> list[str]:
    """The command line's words for keyword arguments.

    `generator`, `scorer`, `method`, `trainer` and `debug` name an option; of the first two also a path or hub id, that
    is, anything with a slash. `device` is "cpu", "cuda", "cuda:1" or a torch.device. The keys of the method, such as
    `prompt_length`, and `batch_size`, `seed` and `fit` go by their own names; a dictionary gives several keys of a
    part: `evaluation={"renders": 1}`. Raises UserError for any other keyword.
    """
    return [word for key, value in options.items() for word in _words(key, value)]


def _words(key: str, value: Any) -> Iterator[str]:
    if key == "device":
        kind, _, index = str(value).partition(":")
        numbered = [f"trainer.devices=[{index}]"] if index and kind != "cpu" else []
        yield from (f"trainer.accelerator={kind}", *numbered)
    elif isinstance(value, Path) or (key in ("generator", "scorer") and "/" in str(value)):
        yield from (f"{key}=folder", f"{key}.path={_text(value)}")
    elif key == "fit":
        yield f"data.fit={value}"
    elif key in GROUPS or key in KEYS:
        yield from _flat(key, value)
    elif key in METHOD:
        yield from _flat(f"method.{key}", value)
    else:
        known = ("device", "fit", *GROUPS, *KEYS, *METHOD)
        near = "".join(f"; did you mean {name}?" for name in difflib.get_close_matches(key, known, 1))
        raise UserError(f"{key}: no such keyword{near or '; give device, ' + ', '.join(known[1:])}")


def _flat(key: str, value: Any) -> Iterator[str]:
    if isinstance(value, Mapping):
        for name, inner in value.items():
            yield from _flat(f"{key}.{name}", inner)
    else:
        yield f"{key}={_text(value)}"


def _text(value: Any) -> str:
    """A value in Hydra's grammar."""
    if value is None or isinstance(value, bool):
        return {None: "null", True: "true", False: "false"}[value]
    if isinstance(value, list | tuple):
        return f"[{','.join(map(_item, value))}]"
    text = str(value)
    return text if PLAIN.fullmatch(text) else QuotedString(text, Quote.single).with_quotes()


def _item(value: Any) -> str:
    """A value in a list: text is quoted, and so stays text, be it `true`, `1` or `${name}`."""
    if not isinstance(value, str):
        return _text(value)
    return QuotedString(value.replace("${", "\\${"), Quote.single).with_quotes()
