"""The unfinished image batch of a rank on disk: what is needed to go on as if nothing had happened."""

import io
import pickle
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch.plugins.io import TorchCheckpointIO
from torch import Tensor

from ph2p.config.settings import difference
from ph2p.errors import UserError
from ph2p.files import plain_disk_errors, write_whole

OURS = "ph2p"  # the key beside Lightning's own


class BatchCheckpoint(TorchCheckpointIO):
    """One file that is always whole: Lightning's state of the fit, and under "ph2p" what is around it.

    It holds what is trained and counted (prompt, state of the optimiser, candidates, position), so it is a few KB
    (within an epoch of `simplex` 8 bytes x prompts x places x allowed tokens), and is read with `weights_only`. It is
    there from a batch's beginning to its last record. `settings` are the keys of the configuration that decide the
    results.
    """

    def __init__(self, path: Path, settings: dict[str, Any]) -> None:
        self.path, self.settings = path, settings
        self.content: dict[str, Any] = {}

    def read(self, path: Path | None = None, force: bool = False) -> list[str]:
        """The image ids of the unfinished batch in `path`, by default our own; none if there is no such file.

        Raises UserError for a file that cannot be read or comes from another configuration; with `force` such a
        batch begins anew instead.
        """
        source = path or self.path
        if path is None and not source.exists():
            return []
        content = _load(source)
        if content is None:
            if force and path is None:
                return []
            raise UserError(f"{source}: cannot be read as a checkpoint; remove it, or give another")
        before = content[OURS]["settings"]
        if key := difference(before, self.settings):
            if force:
                return []
            change = f"{key}={before.get(key)}, not {self.settings.get(key)}"
            raise UserError(f"{source}: was made with {change}; go back, or begin anew with resume=force")
        self.content = content
        return list(self.about["images"])

    def begin(self, images: Mapping[str, str]) -> list[str]:
        """Open a batch of images, {id: content key}, unless it is the one that was read: then it is continued.

        Returns those of which another picture was read.
        """
        before = dict(self.about["images"]) if self.content else {}
        if list(before.items()) == list(images.items()):
            self._write()  # it may have been read from elsewhere
            return []
        self.content = {OURS: {"images": dict(images), "settings": self.settings, "seconds": 0.0, "search": None}}
        self._write()
        return [name for name, key in images.items() if before.get(name, key) != key]

    @property
    def about(self) -> dict[str, Any]:
        """Ours: images, settings, seconds spent so far, and the state of the search once it has begun."""
        return self.content[OURS]

    @property
    def fit_path(self) -> Path | None:
        """Where the fit goes on from; None at the beginning of a batch."""
        return self.path if "loops" in self.content else None

    def save_checkpoint(self, checkpoint: dict[str, Any], path: Any, storage_options: Any = None) -> None:
        """Lightning's call: keep the state of the fit beside ours."""
        self.content = {**checkpoint, OURS: self.about}
        self._write()

    def save_search(self, state: dict[str, Tensor], seconds: float) -> None:
        """Keep the state of the search after a round; `seconds` were spent on the batch so far."""
        self.about.update(search={name: value.cpu() for name, value in state.items()}, seconds=seconds)
        self._write()

    def finish(self) -> None:
        """Remove the file: every image of the batch has its record."""
        self.content = {}
        with plain_disk_errors(self.path.parent):
            self.path.unlink(missing_ok=True)

    def _write(self) -> None:
        buffer = io.BytesIO()
        torch.save(self.content, buffer)
        with plain_disk_errors(self.path.parent):
            self.path.parent.mkdir(exist_ok=True)
            write_whole(self.path, buffer.getvalue())


def _load(path: Path) -> dict[str, Any] | None:
    """What a checkpoint holds; None where it cannot be read, or was written by another version."""
    try:
        content = torch.load(path, map_location="cpu", weights_only=True)
        about = content[OURS]
        known = isinstance(about["images"], dict) and isinstance(about["settings"], dict)
        return content if known else None
    except (OSError, RuntimeError, EOFError, KeyError, TypeError, pickle.UnpicklingError):
        return None
