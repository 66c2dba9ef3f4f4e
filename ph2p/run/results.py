"""The results folder: what a run writes, so that whatever was finished survives and a next run goes on.

config.yaml                the resolved configuration
results/part-*.jsonl       one line an image, a file for each rank, flushed to the disk as soon as it is known
checkpoints/part-*.ckpt    the batch that a rank is at; part-requeued-*: that a SLURM job is back in its queue
logs/part-*.csv            every epoch's figures of every image (`logs.py`)
images/<slug>/*.png        the target and what the model paints
candidates/<slug>.json     loss curves and candidates
index.html                 the page (`report.py`)
"""

import fcntl
import io
import json
import os
import time
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image
from torch import Tensor

from ph2p.config.schema import Config
from ph2p.config.settings import as_yaml, difference, read_settings, settings
from ph2p.data import slug
from ph2p.errors import UserError
from ph2p.files import as_json, plain_disk_errors, write_whole

LOCK_PATIENCE = 30  # seconds; a killed run's other processes take a moment to end


class ResultsFolder:
    """One run's folder, in which this process alone writes the records of `part`; opening it again continues the run.

    A part is a rank's share of the images. Raises UserError when the folder cannot be written, holds results of
    another configuration, or when another process is writing this part.
    """

    def __init__(self, folder: Path, config: Config, part: str = "part-00000"):
        self.folder = folder
        self.part = folder / "results" / f"{part}.jsonl"
        self.checkpoint = folder / "checkpoints" / f"{part}.ckpt"
        self.log = folder / "logs" / f"{part}.csv"
        self._ranks = part.rpartition("-")[0]  # what the parts of this shard's ranks begin with
        self.requeue_mark = folder / "checkpoints" / f"{self._ranks}-requeued"
        with plain_disk_errors(folder):
            for name in ("results", "images", "candidates"):
                (folder / name).mkdir(parents=True, exist_ok=True)
            self._check_config(config)
            write_whole(folder / "config.yaml", as_yaml(config).encode())
            self._file = self.part.open("ab+", buffering=0)
            self._lock()
            self._mend()

    def _check_config(self, config: Config) -> None:
        """Refuse to mix two configurations in one folder, naming the first key that differs."""
        path = self.folder / "config.yaml"
        found = [*(self.folder / "results").iterdir(), *self.folder.glob("checkpoints/*.ckpt")]
        if config.resume == "force" or not path.exists() or not any(file.stat().st_size for file in found):
            return
        before, now = read_settings(path), settings(config)
        if key := difference(before, now):
            raise UserError(
                f"{self.folder}: holds results with {key}={before.get(key)}, not {now.get(key)}; "
                "choose another name=... or continue with resume=force"
            )

    def _lock(self) -> None:
        """Keep other processes from this part as long as this one lives, where the file system can lock."""
        deadline = time.monotonic() + LOCK_PATIENCE
        while True:
            try:
                fcntl.flock(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB)
                return
            except BlockingIOError as error:
                if time.monotonic() > deadline:
                    raise UserError(
                        f"{self.part}: another run is writing it; wait for its end, or give name=..."
                    ) from error
                time.sleep(0.2)
            except OSError:
                return

    def _mend(self) -> None:
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

    def close(self) -> None:
        """Let another process write this part."""
        self._file.close()
