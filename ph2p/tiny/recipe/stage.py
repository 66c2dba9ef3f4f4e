"""What the stages of the recipe share: one loss, one schedule, one loop that resumes."""

import shutil
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import lightning as L
import numpy as np
import torch
from lightning.pytorch.callbacks import ModelCheckpoint
from torch import Tensor, nn
from torch.utils.data import DataLoader

from ph2p.tiny.recipe.muon import Muon, split_parameters

STAGES = ("tokenizer", "vae", "clip", "judge", "unet", "clip_image", "report")


class Stage(L.LightningModule):
    """One stage of the recipe: a loss on a batch that depends on (seed, step) alone, one schedule.

    The rate rises over 200 steps, stays, and falls to nothing over the last fifth: until then a run of more steps is
    the same run, and its averaged weights can be measured at any time. Because a batch is a function of the step, a
    resumed stage sees exactly the batches that it would have seen.
    """

    name: str  # one of STAGES
    batch_size: int
    lr: float
    weight_decay: float = 0.01
    model: nn.Module

    def __init__(self, seed: int, steps: int):
        super().__init__()
        self.seed, self.steps = seed, steps

    def trained(self) -> nn.Module:
        return self.model

    def loss(self, rng: np.random.Generator, generator: torch.Generator) -> Tensor:
        raise NotImplementedError

    def training_step(self, batch: Tensor, batch_index: int) -> Tensor:
        key = [self.seed, STAGES.index(self.name), self.global_step]
        generator = torch.Generator(self.device).manual_seed(int(np.random.default_rng(key).integers(2**60)))
        loss = self.loss(np.random.default_rng(key), generator)
        self.log("loss", loss, prog_bar=True)
        return loss

    def configure_optimizers(self):
        optimizer = Muon(split_parameters(self.trained()), self.lr, self.weight_decay)
        schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, self.rate)
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": schedule, "interval": "step"}}

    def rate(self, step: int) -> float:
        """The learning rate before step number `step`, as a share of `lr`."""
        return min(1.0, (step + 1) / 200, (self.steps - step) / (0.2 * self.steps))


class StepLog(L.Callback):
    """Print step, loss and time left every 50 steps: one line each, readable in a terminal and in a log."""

    def on_train_start(self, trainer: L.Trainer, stage: Stage) -> None:
        self.started, self.first = time.time(), trainer.global_step

    def on_train_batch_end(self, trainer: L.Trainer, stage: Stage, *_) -> None:
        step = trainer.global_step
        if step % 50 == 0 or step == stage.steps:
            pace = (time.time() - self.started) / (step - self.first)
            left = pace * (stage.steps - step) / 60
            loss = float(trainer.callback_metrics["loss"])
            print(
                f"{stage.name} {step}/{stage.steps}  loss {loss:.4f}  {pace:.2f} s/step  {left:.1f} min left",
                flush=True,
            )


def fit(stage: Stage, work: Path, accelerator: str, precision: str = "bf16-mixed", save_every: int = 100) -> None:
    """Train a stage to its last step, from its own last checkpoint if there is one."""
    last = work / stage.name / "last.ckpt"
    trainer = L.Trainer(
        max_steps=stage.steps,
        accelerator=accelerator,
        devices=1,
        precision=precision,
        gradient_clip_val=1.0,
        logger=False,
        enable_progress_bar=False,
        callbacks=[
            ModelCheckpoint(
                last.parent, save_last=True, save_top_k=0, every_n_train_steps=save_every, enable_version_counter=False
            ),
            StepLog(),
        ],
        enable_model_summary=False,
    )
    steps = DataLoader(torch.arange(stage.steps), batch_size=1)  # the step itself is the batch's only key
    trainer.fit(stage, steps, ckpt_path=str(last) if last.exists() else None)
    trainer.save_checkpoint(last)  # so that a finished stage is not continued from its last multiple of 100


@contextmanager
def whole(folder: Path) -> Iterator[Path]:
    """Give a folder to write into that takes its name only when it is complete: a part is there whole or not at all."""
    partial = folder.with_name(folder.name + ".partial")
    shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir(parents=True)
    yield partial
    shutil.rmtree(folder, ignore_errors=True)
    partial.rename(folder)


def save_half(model: nn.Module, folder: Path) -> None:
    """Save in float16: half the repository's size, and the rounding is far below what any figure here shows."""
    with whole(folder) as partial:
        model.half().save_pretrained(partial)
