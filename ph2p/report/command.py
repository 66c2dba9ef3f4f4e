"""The command line that inverts one picture of a results folder again, with the settings of its record."""

import json
import shlex
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from omegaconf import OmegaConf

from ph2p.config.compose import compose_config, config_dir, load_config
from ph2p.config.keys import options
from ph2p.config.settings import settings
from ph2p.config.words import CONSTRUCTORS, flatten
from ph2p.errors import UserError
from ph2p.report.records import Record, mapping, parsed, read_if_there

FOLDER = "ph2p.data.FolderTargets"
GROUPS = ("data", "generator", "scorer", "method")
CHANGES = ("generator.steps", "data.count")  # free for a run that goes on, yet part of what a picture's record shows


@dataclass
class Commands:
    """Writes the commands of a results folder's pictures, from its config.yaml and settings."""

    folder: Path
    config: Mapping[str, Any]
    known: dict[str, list[str] | None] = field(default_factory=dict)  # the words of each record's settings

    def __call__(self, record: Record) -> str:
        """The command of one picture, quoted for a shell; empty where no words make its settings."""
        digest = str(record.get("settings") or "")
        if digest not in self.known:
            self.known[digest] = self._words(digest)
        words = self.known[digest]
        if words is None:
            return ""
        source = str(record.get("source") or "")
        path = [f"data.path={source}"] if self._reads_files else []
        if self._reads_files and not source:
            return ""
        return shlex.join(["ph2p", *words, *path, f"name={self.config.get('name')}-again"])

    @property
    def _reads_files(self) -> bool:
        """Whether a picture can be given by itself; otherwise the command names the data set."""
        return bool(mapping(self.config.get("data")).get("_target_") == FOLDER)

    def _words(self, digest: str) -> list[str] | None:
        """Words that make the settings of this digest, which is checked; None where none are found."""
        if not {"data", "method", "seed"} <= self.config.keys() or not digest.isalnum():
            return None
        known = parsed(read_if_there(self.folder / "settings" / f"{digest}.json"))
        if not known:
            return None
        wanted = {key: value for key, value in known.items() if not self._reads_files or key == "data.fit"
                  or not key.startswith("data.")}  # fmt: skip
        with suppress(UserError, ValueError, TypeError):
            words = self._written(wanted)
            path = ["data.path=."] if self._reads_files else []
            made = settings(load_config([*words, *path]))
            if all(made.get(key) == value for key, value in wanted.items()):
                return words
        return None

    def _written(self, wanted: Mapping[str, Any]) -> list[str]:
        """Words for the groups' options, and for each key that these leave at another value."""
        chosen = [f"{group}={self._option(group)}" for group in GROUPS]
        composed = OmegaConf.to_container(compose_config(chosen), resolve=True)
        base = flatten({str(key): value for key, value in mapping(composed).items()})
        flat = flatten(dict(self.config))
        extra = {key: flat[key] for key in CHANGES if key in flat and not (self._reads_files and key[:5] == "data.")}
        words = [_word(key, value, base) for key, value in sorted({**wanted, **extra}.items())
                 if key not in base or base[key] != value]  # fmt: skip
        return chosen + words

    def _option(self, group: str) -> str:
        """The option of a group that the configuration was probably made from."""
        if group == "data" and self._reads_files:
            return "folder"
        name = str(mapping(self.config.get(group)).get("name"))
        return (
            name
            if name in options(config_dir())[group]
            else {"method": "ph2p_plus", "data": "captioned"}.get(group, "folder")
        )


def _word(key: str, value: object, base: Mapping[str, Any]) -> str:
    sign = "+" if key not in base and key.startswith(CONSTRUCTORS) else ""
    return f"{sign}{key}={value}" if isinstance(value, str) else f"{sign}{key}={json.dumps(value, ensure_ascii=False)}"
