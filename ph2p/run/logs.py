"""What a run tells while it goes on: a table of curves in its folder, and the loggers of the configuration."""

import csv
import io
import logging
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from hydra.utils import instantiate
from lightning.pytorch.loggers import Logger

from ph2p.config.schema import Config
from ph2p.errors import UserError
from ph2p.evaluation.metrics import shown_in
from ph2p.evaluation.result import InversionResult
from ph2p.files import plain_disk_errors
from ph2p.run.loggers import Cell, show_configuration, show_picture, show_table

VALUES = ("loss", "candidate_loss", "gradient_norm", "evaluations", "search_loss")
HEADER = ",".join(("image_id", "epoch", *VALUES)).encode()
EXTRAS = ("tensorboard", "wandb")
COLUMNS = shown_in("column")
HEADS = ("image", "prompt", *(metric.name for metric in COLUMNS))


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
    """Every epoch's values of every image, appended to `table`; loggers show as many charts for any number of images.

    The table has a line an image and epoch: image_id, epoch and `VALUES`, empty where one is not known. The rounds
    of a search count as epochs after the last one. The table is only ever added to; an epoch that a kill made run
    twice stands in it twice, with the same values. Raises UserError when the table cannot be written.

    Loggers get the `settings`, each epoch's means over the images of its batch, of each finished image its pictures,
    prompt and metrics, and at the end a table of these. Processes that write into one place are told apart by the
    table's name, `epochs/loss/part-00000`.
    """

    def __init__(self, table: Path, loggers: Sequence[Logger] = (), settings: Mapping[str, Any] | None = None) -> None:
        self.table, self.loggers = table, list(loggers)
        self.rows: list[list[Cell]] = []  # of the finished images
        with plain_disk_errors(table.parent.parent):
            table.parent.mkdir(parents=True, exist_ok=True)
            before = table.read_bytes() if table.exists() else b""
            header, _, lines = before.partition(b"\n")
            if header != HEADER or not before.endswith(b"\n"):  # new, of an older version, or torn
                table.write_bytes(HEADER + b"\n" + lines[: lines.rfind(b"\n") + 1])
        self.lines = lines.count(b"\n")  # of the table, which goes on where an earlier run has stopped
        for logger in self.loggers:
            _ = logger.experiment  # what is wrong with it shows now
            show_configuration(logger, settings or {})

    def write(self, epoch: int, values: dict[str, dict[str, float]]) -> None:
        """Note {image id: {name: value}} of an epoch; values that are not finite count as not known."""
        values = {
            name: {key: value for key, value in row.items() if math.isfinite(value)} for name, row in values.items()
        }
        with plain_disk_errors(self.table.parent.parent):
            self._append([[name, epoch, *map(row.get, VALUES)] for name, row in values.items()])
        self.lines += len(values)
        known = {key: [row[key] for row in values.values() if key in row] for key in VALUES}
        means = {f"epochs/{key}/{self.table.stem}": sum(some) / len(some) for key, some in known.items() if some}
        for logger in self.loggers:
            logger.log_metrics(means, step=self.lines)

    def show(self, result: InversionResult, number: int) -> None:
        """Show a finished image, the run's `number`th: target and renderings side by side, prompt and metrics."""
        if not self.loggers:
            return
        assert result.target is not None and result.renderings is not None
        side_by_side = torch.cat([result.target.cpu(), *result.renderings.cpu()], -1)  # (3, H, W (1 + R))
        picture = (side_by_side.clamp(0, 1) * 255).round().permute(1, 2, 0).numpy().astype(np.uint8)
        metrics = {metric.key: result.metrics[metric.key] for metric in COLUMNS}
        self.rows.append([result.image_id, result.prompt, *metrics.values()])
        known = {f"images/{key}/{self.table.stem}": value for key, value in metrics.items() if value is not None}
        for logger in self.loggers:
            logger.log_metrics(known, step=number)
            caption = f"{result.image_id}: {result.prompt}"
            show_picture(logger, f"pictures/{self.table.stem}", picture, caption, number)

    def _append(self, rows: list[list[Any]]) -> None:
        text = io.StringIO()
        csv.writer(text, lineterminator="\n").writerows(rows)
        with self.table.open("ab") as file:
            file.write(text.getvalue().encode("utf-8", "backslashreplace"))

    def close(self) -> None:
        """Let the loggers write what they still hold; one that cannot costs its curves, not the run its end."""
        for logger in self.loggers:
            try:
                if self.rows:
                    show_table(logger, f"table/{self.table.stem}", HEADS, self.rows)
                logger.finalize("success")
                if finish := getattr(logger.experiment, "finish", None):  # of W&B, or a next job goes on in its run
                    finish()
            except Exception as error:
                logging.getLogger(__name__).warning("%s: not all curves were written: %s", type(logger).__name__, error)
