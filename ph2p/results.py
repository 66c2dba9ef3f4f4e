"""The results folder: what a run writes, so that whatever was finished survives and a next run goes on.

config.yaml                the resolved configuration
results/part-00000.jsonl   one line an image, flushed to the disk as soon as it is known
images/<slug>/*.png        the target and what the model paints
candidates/<slug>.json     loss curve and candidates
index.html                 the page (`report.py`)
"""

import errno
import json
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
from omegaconf import DictConfig, OmegaConf
from PIL import Image
from torch import Tensor

from ph2p.data import slug
from ph2p.errors import UserError

# Keys that change where, how fast or how prettily a run goes, but not what it finds.
FREE_KEYS = ("name", "output", "resume", "logger", "trainer.accelerator", "trainer.devices")
FREE_KEYS += ("data.batch_size", "data.count", "data.targets.count")


class ResultsFolder:
    """One run's folder; opening it again continues the run.

    Raises UserError when the folder cannot be written or holds results of another configuration.
    """

    def __init__(self, folder: Path, config: DictConfig):
        self.folder = folder
        with plain_disk_errors(folder):
            for part in ("results", "images", "candidates"):
                (folder / part).mkdir(parents=True, exist_ok=True)
            self._check_config(config)
            self._write_text(folder / "config.yaml", OmegaConf.to_yaml(config))

    def _check_config(self, config: DictConfig) -> None:
        """Refuse to mix two configurations in one folder, naming the first key that differs."""
        path = self.folder / "config.yaml"
        if config.resume == "force" or not path.exists() or not any((self.folder / "results").iterdir()):
            return
        before, now = (_flat(OmegaConf.to_container(c)) for c in (OmegaConf.load(path), config))
        for key in sorted(before.keys() | now.keys()):
            if key.startswith(FREE_KEYS) or before.get(key) == now.get(key):
                continue
            raise UserError(
                f"{self.folder}: holds results with {key}={before.get(key)}, not {now.get(key)}; "
                "choose another name=... or continue with resume=force"
            )

    def write_picture(self, image_id: str, name: str, image: Tensor) -> str:
        """Save a picture (3, H, W) in [0, 1] as PNG and return its path inside the folder."""
        path = self.folder / "images" / slug(image_id) / f"{name}.png"
        pixels = (image.clamp(0, 1) * 255).round().permute(1, 2, 0).cpu().numpy().astype(np.uint8)
        with plain_disk_errors(self.folder):
            path.parent.mkdir(exist_ok=True)
            Image.fromarray(pixels).save(path)
        return path.relative_to(self.folder).as_posix()

    def write_candidates(self, image_id: str, content: dict[str, Any]) -> str:
        path = self.folder / "candidates" / f"{slug(image_id)}.json"
        with plain_disk_errors(self.folder):
            self._write_text(path, json.dumps(content, ensure_ascii=False, indent=1))
        return path.relative_to(self.folder).as_posix()

    def append(self, record: dict[str, Any]) -> None:
        """Add an image's record; on return it is on the disk. It is written last, after what it names."""
        path = self.folder / "results" / "part-00000.jsonl"
        with plain_disk_errors(self.folder), path.open("ab+") as file:
            file.seek(0, os.SEEK_END)
            if file.tell() and _last_byte(file) != b"\n":  # a killed run left half a line
                file.write(b"\n")
            file.write(json.dumps(record, ensure_ascii=False).encode() + b"\n")
            file.flush()
            os.fsync(file.fileno())

    @staticmethod
    def _write_text(path: Path, text: str) -> None:
        """Write a file whole or not at all."""
        partial = path.with_name(path.name + ".partial")
        partial.write_text(text, encoding="utf-8")
        partial.replace(path)


def _last_byte(file) -> bytes:
    file.seek(-1, os.SEEK_END)
    return file.read(1)


def _flat(node: Any, prefix: str = "") -> dict[str, Any]:
    """Flatten nested dicts to {"a.b": value}."""
    if not isinstance(node, dict):
        return {prefix: node}
    return {k: v for name, child in node.items() for k, v in _flat(child, f"{prefix}.{name}".lstrip(".")).items()}


@contextmanager
def plain_disk_errors(folder: Path) -> Iterator[None]:
    """Turn what a disk refuses into one line that says what to do."""
    try:
        yield
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            raise UserError(
                f"{folder}: no space left; free some and give the same command again, it continues"
            ) from error
        reason = error.strerror or error
        raise UserError(f"{folder}: cannot be written ({reason}); choose another output=...") from error
