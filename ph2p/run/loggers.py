"""What a logger of Lightning shows of a run beside its curves: configuration, pictures with their prompts, a table.

Lightning has no common call for these: W&B's logger has its own, TensorBoard's gives its writer. Another logger gets
the configuration and the curves.
"""

import json
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from lightning.pytorch.loggers import Logger, TensorBoardLogger, WandbLogger
from numpy.typing import NDArray

Cell = str | float | None


def show_configuration(logger: Logger, settings: Mapping[str, Any]) -> None:
    """The settings of the run; in TensorBoard as a text, whose own view is made for runs that end in one number."""
    if isinstance(logger, TensorBoardLogger):
        text = json.dumps(settings, indent=2, ensure_ascii=False, default=str)
        logger.experiment.add_text("configuration", "\n".join(f"    {line}" for line in text.splitlines()))
    else:
        logger.log_hyperparams(dict(settings))


def show_picture(logger: Logger, tag: str, picture: NDArray[np.uint8], caption: str, step: int) -> None:
    """A picture (H, W, 3) and the words below it."""
    if isinstance(logger, TensorBoardLogger):
        logger.experiment.add_image(tag, picture, step, dataformats="HWC")
        logger.experiment.add_text(f"{tag}/words", caption, step)
    elif isinstance(logger, WandbLogger):
        logger.log_image(tag, [picture], step=step, caption=[caption])


def show_table(logger: Logger, tag: str, columns: Sequence[str], rows: Sequence[Sequence[Cell]]) -> None:
    """A table; in TensorBoard in Markdown."""
    if isinstance(logger, TensorBoardLogger):
        lines = [columns, ["---"] * len(columns), *rows]
        text = "\n".join(f"| {' | '.join(map(_written, line))} |" for line in lines)
        logger.experiment.add_text(tag, text)
    elif isinstance(logger, WandbLogger):
        logger.log_table(tag, columns=list(columns), data=[list(row) for row in rows])


def _written(cell: Cell) -> str:
    text = f"{cell:.4g}" if isinstance(cell, float) else "" if cell is None else cell
    return " ".join(text.replace("|", "\\|").split())
