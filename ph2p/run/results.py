"""The results folder: what a run writes, so that whatever was finished survives and a next run goes on.

config.yaml                the resolved configuration, the last one's
settings/<digest>.json     the keys that decide what a run finds; a record names the ones that it was made with
results/part-*.jsonl       one line an image, a file for each rank, flushed to the disk as soon as it is known
checkpoints/part-*.ckpt    the batch that a rank is at; part-requeued-*: that a SLURM job is back in its queue
logs/part-*.csv            every epoch's values of every image (`logs.py`)
images/<slug>/*.png        the target and its renderings
candidates/<slug>.json     loss curves and candidates
captions/<path>.txt         with `sidecars`: the prompt of each picture, in the folders that the pictures lie in
prompts.csv                a line a picture: file, prompt, metrics (`report/`)
passed-over.txt            files that were not taken for pictures, and why; only where there are any
index.html                 the page (`report/`)
"""

import fcntl
import hashlib
import io
import json
import os
import time
from collections.abc import Collection, Sequence
from contextlib import suppress
from io import FileIO
from pathlib import Path
from typing import Any, cast

import numpy as np
import yaml
from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException
from PIL import Image
from torch import Tensor

from ph2p.config.schema import Config
from ph2p.config.settings import as_yaml, difference, read_settings, settings
from ph2p.data import slug
from ph2p.errors import UserError
from ph2p.files import as_json, plain_disk_errors, write_whole

LOCK_PATIENCE = 30  # seconds; a killed run's other processes take a moment to end
FOLDERS = ("results", "images", "candidates", "settings")


class ResultsFolder:
    """One run's folder, in which this process alone writes the records of `part`; opening it again continues the run.

    A part is a rank's images. The `first` rank writes what all have in common. Raises UserError when the folder
    cannot be written, holds results of another configuration unless that is to be so (`force`, or the
    configuration's `resume`), or when another process is writing this part.
    """

    def __init__(
        self, folder: Path, config: Config, part: str = "part-00000", first: bool = True, force: bool = False
    ) -> None:
        self.folder = folder
        self.part = folder / "results" / f"{part}.jsonl"
        self.checkpoint = folder / "checkpoints" / f"{part}.ckpt"
        self.log = folder / "logs" / f"{part}.csv"
        self._ranks = part.rpartition("-")[0]  # what the parts of this shard's ranks begin with
        self.requeue_mark = folder / "checkpoints" / f"{self._ranks}-requeued"
        self.settings = settings(config)
        content = as_json(self.settings, indent=1)
        self.digest = hashlib.sha256(content).hexdigest()[:16]
        self._known = {self.digest: self.settings}
        with plain_disk_errors(folder):
            self._is_new = first and not folder.exists()
            self._file = self._open()
            try:
                self._repair()
                if not (force or config.resume == "force"):
                    self._check_config()
                if first:
                    write_whole(folder / "config.yaml", as_yaml(config).encode())
                if not self._settings_file(self.digest).exists():
                    write_whole(self._settings_file(self.digest), content)
            except BaseException:
                self._file.close()
                raise

    def _settings_file(self, digest: str) -> Path:
        return self.folder / "settings" / f"{digest}.json"

    def _check_config(self) -> None:
        """Refuse to mix two configurations in one folder, naming the first key that differs."""
        path = self.folder / "config.yaml"
        files = (*(self.folder / "results").iterdir(), *self.folder.glob("checkpoints/*.ckpt"))
        if not path.exists() or not any(map(_size, files)):
            return
        before, now = read_settings(path), self.settings
        if key := difference(before, now):
            raise UserError(
                f"{self.folder}: holds results with {key}={before.get(key)}, not {now.get(key)}; "
                "choose another name=... or do them anew with resume=force"
            )

    def _open(self) -> FileIO:
        """Our part, locked against other processes as long as this one lives, where the file system can lock."""
        deadline = time.monotonic() + LOCK_PATIENCE
        while True:
            for name in FOLDERS:
                (self.folder / name).mkdir(parents=True, exist_ok=True)
            file = self.part.open("ab+", buffering=0)
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
                if self.part.exists() and os.path.samestat(os.fstat(file.fileno()), self.part.stat()):
                    return file
            except BlockingIOError as error:
                if time.monotonic() > deadline:
                    raise UserError(
                        f"{self.part}: another run is writing it; wait for its end, or give name=..."
                    ) from error
                time.sleep(0.2)
            except OSError:
                return file
            file.close()

    def _repair(self) -> None:
        """Complete or remove a last line that a kill or a power failure has torn."""
        self._file.seek(0)
        content = self._file.read()
        whole = content.rfind(b"\n") + 1
        if whole == len(content):
            return
        try:
            json.loads(content[whole:])
            self._file.write(b"\n")  # in append mode: at the end
        except ValueError:
            self._file.truncate(whole)

    def change_since(self, record: dict[str, Any]) -> str | None:
        """The first key in which a record's settings differ from ours, as "key=1, not 2"; None: they are ours."""
        digest = str(record.get("settings", self.digest))
        if digest not in self._known:
            with suppress(OSError, ValueError):
                self._known[digest] = json.loads(self._settings_file(digest).read_bytes())
        if digest not in self._known:
            return "settings that are not known"
        before = self._known[digest]
        key = difference(before, self.settings)
        return f"{key}={before.get(key)}, not {self.settings.get(key)}" if key else None

    def write_picture(self, image_id: str, name: str, image: Tensor) -> str:
        """Save a picture (3, H, W) in [0, 1] as PNG and return its path inside the folder."""
        path = self.folder / "images" / slug(image_id) / f"{name}.png"
        pixels = (image.clamp(0, 1) * 255).round().permute(1, 2, 0).cpu().numpy().astype(np.uint8)
        png = io.BytesIO()
        Image.fromarray(pixels).save(png, "PNG")
        with plain_disk_errors(self.folder):
            path.parent.mkdir(exist_ok=True)
            write_whole(path, png.getvalue())
        return path.relative_to(self.folder).as_posix()

    def write_candidates(self, image_id: str, content: dict[str, Any]) -> str:
        path = self.folder / "candidates" / f"{slug(image_id)}.json"
        with plain_disk_errors(self.folder):
            write_whole(path, as_json(content, indent=1))
        return path.relative_to(self.folder).as_posix()

    def append(self, record: dict[str, Any]) -> None:
        """Add an image's record; on return it is on the disk. It is written last, after what it names."""
        with plain_disk_errors(self.folder):
            line, start = as_json(record) + b"\n", self._file.seek(0, os.SEEK_END)
            try:
                while line:
                    line = line[self._file.write(line) :]
            except OSError:  # a full disk may have taken the half of it
                self._file.truncate(start)
                raise
            os.fsync(self._file.fileno())

    def remove_checkpoints(self) -> None:
        """Remove what killed and requeued ranks have left; only once every image of the shard is finished.

        For then no rank of it saves any more, nor stops before its end, which is when the mark of who has requeued
        the job keeps the others from doing it again. Other shards may still be running.
        """
        ranks = f"{self._ranks}-{'[0-9]' * 5}"
        with plain_disk_errors(self.folder):
            # the second: killed while it wrote
            for pattern in (f"{ranks}.ckpt", f".{ranks}.ckpt.*", f"{self.requeue_mark.name}-*"):
                for path in self.checkpoint.parent.glob(pattern):
                    path.unlink(missing_ok=True)

    def prune(self, image_id: str, files: Collection[str]) -> None:
        """Remove the pictures of an image that its record no longer names."""
        with plain_disk_errors(self.folder):
            for path in (self.folder / "images" / slug(image_id)).glob("*.png"):
                if path.relative_to(self.folder).as_posix() not in files:
                    path.unlink(missing_ok=True)

    def write_passed_over(self, lines: Sequence[str]) -> Path:
        """Write down what was not taken for a picture, a line each."""
        path = self.folder / "passed-over.txt"
        with plain_disk_errors(self.folder):
            if lines:
                write_whole(path, "".join(f"{line}\n" for line in lines).encode("utf-8", "backslashreplace"))
            else:
                path.unlink(missing_ok=True)
        return path

    def close(self) -> None:
        """Let another process write this part; a folder that we made and wrote no record in goes again."""
        if not self._file.closed and not _size(self.part) and not _size(self.checkpoint):
            if self._is_new:
                self._discard()
            elif not self.log.exists():  # it ended before its work began: the first rank finds nothing of it
                with suppress(OSError):
                    self.part.unlink()
        self._file.close()

    def _discard(self) -> None:
        with suppress(OSError):
            self.part.unlink()
            self.log.unlink(missing_ok=True)
            for name in ("results", "images", "candidates", "logs", "checkpoints"):
                if (self.folder / name).exists():
                    (self.folder / name).rmdir()  # not where another rank has come in
            ours = (self.folder / name for name in ("config.yaml", "passed-over.txt"))
            for path in (*ours, *self.folder.glob("settings/*.json")):
                path.unlink(missing_ok=True)
            (self.folder / "settings").rmdir()
            self.folder.rmdir()


def read_config(path: Path, overrides: Sequence[str] = ()) -> Config:
    """The configuration in a folder's config.yaml, changed by words such as "evaluation.draws=8".

    Raises UserError where it cannot be read, and for words that do not fit.
    """
    read_settings(path)  # raises for what is no configuration
    try:
        parts = OmegaConf.structured(Config), OmegaConf.load(path), OmegaConf.from_dotlist(list(overrides))
        return cast(Config, OmegaConf.to_object(OmegaConf.merge(*parts)))
    except (yaml.YAMLError, OmegaConfBaseException) as error:
        reason = next(iter(str(error).splitlines()), "")
        raise UserError(f"{' '.join(overrides) or path}: {reason}; see the keys in {path}") from error


def _size(file: Path) -> int:
    """Bytes; 0 where another rank has just removed it."""
    try:
        return file.stat().st_size
    except FileNotFoundError:
        return 0
