"""Curves of a run while it goes on: a table in its folder, and the loggers of the configuration."""

import csv
import io
import logging
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from hydra.utils import instantiate
from lightning.pytorch.loggers import Logger

from ph2p.config.schema import Config
from ph2p.errors import UserError
from ph2p.files import plain_disk_errors

VALUES = ("loss", "candidate_loss", "gradient_norm", "evaluations", "search_loss")
HEADER = ",".join(("image_id", "epoch", *VALUES)).encode()
EXTRAS = ("tensorboard", "wandb")


def make_loggers(cfg: Config) -> list[Logger]:
    """The loggers that the configuration names; raises UserError where their package is missing."""
    if not cfg.logger:
        return []
    try:
        return [instantiate(cfg.logger, _convert_="all")]
    except Exception as error:  # Hydra wraps what a constructor raises
        if not isinstance(error.__cause__, ModuleNotFoundError):
            raise
        target = cfg.logger["_target_"]
        extra = next((name for name in EXTRAS if name in target.lower()), None)
        if extra is None:
            raise
        raise UserError(f"logger={extra}: {extra} is not installed: pip install 'ph2p[{extra}]'") from error


class RunLog:
    """Every epoch's values of every image, appended to `table` and given to the loggers.

    The table has a line an image and epoch: image_id, epoch and `VALUES`, empty where one is not known. The rounds
    of a search count as epochs after the last one. The table is only ever added to; an epoch that a kill made run
    twice stands in it twice, with the same values. Loggers get keys as `loss/cat.png` with the epoch as step.
    Raises UserError when the table cannot be written.
    """

    def __init__(self, table: Path, loggers: Sequence[Logger] = ()) -> None:
        self.table, self.loggers = table, list(loggers)
        with plain_disk_errors(table.parent.parent):
            table.parent.mkdir(parents=True, exist_ok=True)
            before = table.read_bytes() if table.exists() else b""
            header, _, lines = before.partition(b"\n")
            if header != HEADER or not before.endswith(b"\n"):  # new, of an older version, or torn
                table.write_bytes(HEADER + b"\n" + lines[: lines.rfind(b"\n") + 1])
        for logger in self.loggers:
            _ = logger.experiment  # what is wrong with it shows now

    def write(self, epoch: int, values: dict[str, dict[str, float]]) -> None:
        """Note {image id: {name: value}} of an epoch; values that are not finite count as not known."""
        values = {
            name: {key: value for key, value in row.items() if math.isfinite(value)} for name, row in values.items()
        }
        with plain_disk_errors(self.table.parent.parent):
            self._append([[name, epoch, *map(row.get, VALUES)] for name, row in values.items()])
        flat = {f"{key}/{name}": value for name, row in values.items() for key, value in row.items()}
        for logger in self.loggers:
            logger.log_metrics(flat, step=epoch)

    def _append(self, rows: list[list[Any]]) -> None:
        text = io.StringIO()
        csv.writer(text, lineterminator="\n").writerows(rows)
        with self.table.open("ab") as file:
            file.write(text.getvalue().encode("utf-8", "backslashreplace"))

    def close(self) -> None:
        """Let the loggers write what they still hold; one that cannot costs its curves, not the run its end."""
        for logger in self.loggers:
            try:
                logger.finalize("success")
                if finish := getattr(logger.experiment, "finish", None):  # of W&B, or a next job goes on in its run
                    finish()
            except Exception as error:
                logging.getLogger(__name__).warning("%s: not all curves were written: %s", type(logger).__name__, error)
