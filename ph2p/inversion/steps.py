"""The data module that feeds an inversion: one set of draws a step."""

from collections.abc import Iterator, Sequence

from lightning.pytorch import LightningDataModule
from torch import Tensor

from ph2p.inversion.draws import Draws, make_draws


class InversionData(LightningDataModule):
    """Feed an inversion: epoch e yields `steps` batches (latents, Draws for ("epoch", e, "step", s)).

    `latents` is (B, C, h, w), of sets of pictures (B, P, C, h, w), or what else the objective compares prompts with;
    `keys` name the B rows in their draws, `draws` is N, the number of them, `timesteps` the range [t_min, t_max) they
    come from, and `deviation` (M, D) that of the shifts of the prompt, if any.
    """

    def __init__(
        self,
        latents: Tensor,
        keys: Sequence[str],
        seed: int,
        draws: int,
        steps: int = 1,
        timesteps: tuple[int, int] = (500, 1000),
        deviation: Tensor | None = None,
    ) -> None:
        super().__init__()
        self.latents, self.keys = latents, list(keys)
        self.seed, self.draws, self.steps, self.timesteps = seed, draws, steps, timesteps
        self.deviation = deviation

    def train_dataloader(self) -> "_Steps":
        return _Steps(self)

    def batch(self, epoch: int, step: int) -> tuple[Tensor, Draws]:
        """Make the batch of one step, the same whenever and wherever it is asked for."""
        key = ("epoch", epoch, "step", step)
        shape = self.latents.shape[1:][-3:]
        draws = make_draws(self.seed, self.keys, key, self.draws, self.timesteps, shape, self.deviation)
        return self.latents, draws


class _Steps:
    """The steps of the trainer's current epoch.

    A plain iterable: there is nothing to shuffle, shard or prefetch, and Lightning advises more workers
    only for a `DataLoader`.
    """

    def __init__(self, data: InversionData) -> None:
        self.data = data

    def __len__(self) -> int:
        return self.data.steps

    def __iter__(self) -> Iterator[tuple[Tensor, Draws]]:
        # A generator: this runs at the first `next`, when a resumed trainer already knows where it stands.
        trainer = self.data.trainer
        done = trainer.fit_loop.epoch_loop.batch_progress.current.ready if trainer else 0
        for step in range(done, self.data.steps):
            yield self.data.batch(trainer.current_epoch if trainer else 0, step)

    def state_dict(self) -> dict[str, int]:
        """Tell Lightning that this loader resumes in mid-epoch; the trainer's own counters say where."""
        return {}

    def load_state_dict(self, state: dict[str, int]) -> None:
        """Take nothing: see `state_dict`."""
