"""Follow an inversion from outside: what its prompts were on the way, what they had cost, and how good they were."""

from typing import Any

import lightning as L
import torch
from torch import Tensor

from ph2p.data import Target
from ph2p.evaluation.metrics import regret
from ph2p.evaluation.result import InversionResult
from ph2p.inversion.batch import Batch
from ph2p.inversion.history import CandidateHistory
from ph2p.inversion.objectives import finite_or_infinite
from ph2p.inversion.prompts import present, prompt_losses, stacked
from ph2p.inversion.session import Session
from ph2p.inverter import Inverter


class Watch(Session):
    """Notes every prompt of the optimisation and of the search with the samples an image that it took to get there."""

    def __init__(self, inverter: Inverter, images: int) -> None:
        super().__init__()
        self.counter, self.images = inverter.generator.counter, images
        self.before = self.spent()
        self.visits: list[tuple[int, Tensor]] = []  # samples, and the best prompts so far (B, M)
        self.trace: dict[str, list[list[float]]] = {}

    def spent(self) -> int:
        now = self.counter.read()
        return now.forward + now.backward

    def samples(self) -> int:
        """What an image has cost so far."""
        return round((self.spent() - self.before) / self.images)

    def fit(self, module: Any, data: Any, epochs: int, callbacks: Any) -> None:
        notes = Notes(self)
        super().fit(module, data, epochs, [notes, *callbacks, After(notes)])
        history = next(one for one in callbacks if isinstance(one, CandidateHistory))
        each = len(history.token_ids[0]) // self.images  # restarts
        best, lowest = None, torch.full((self.images,), torch.inf)
        for samples, tokens, losses in zip(notes.samples, history.token_ids, history.losses, strict=True):
            grouped = finite_or_infinite(losses).view(self.images, each)
            found = tokens[torch.arange(self.images) * each + grouped.argmin(1)]
            better = grouped.amin(1) <= lowest
            best = found if best is None else torch.where(better[:, None], found, best)
            lowest = torch.minimum(lowest, grouped.amin(1))
            self.visits.append((samples, best))
        self.trace = {"samples": [[s] * self.images for s in notes.samples[1:]]} | {
            name: [values[::each] for values in rows] for name, rows in notes.values.items()
        }

    def save_search(self, state: dict[str, Tensor]) -> None:
        """Note where the search stands: a round keeps the prompt it began with unless it finds a better one."""
        self.visits.append((self.samples(), state["prompts"][:, -1].cpu()))

    def curves(self, inverter: Inverter, targets: list[Target], results: list[InversionResult]) -> None:
        """Give each result its curve: the regret, on the evaluation's draws, of the best prompt so far."""
        if not self.visits:
            return
        cfg, batch = inverter.cfg, Batch(targets, inverter.generator, inverter.scorer)
        draws = batch.draws(cfg.seed, "evaluation", cfg.evaluation.draws, cfg.evaluation.timesteps)
        for row, result in enumerate(results):
            if result.loss_caption is None:
                continue
            prompts = [(samples, present(tokens[row])) for samples, tokens in self.visits]
            different = {tuple(ids.tolist()): ids for _, ids in prompts}
            padded, one = stacked(list(different.values())).to(batch.latents.device), slice(row, row + 1)
            found = prompt_losses(inverter.generator, batch.latents[one], padded[None], draws[one])[0].tolist()
            known = dict(zip(different, found, strict=True))
            losses = [(samples, known[tuple(ids.tolist())]) for samples, ids in prompts]
            losses.append((result.forward_samples + result.backward_samples, result.loss))
            curve = [(s, regret(loss, result.loss_caption, result.loss_empty)) for s, loss in losses]
            result.regret_curve = curve


class Notes(L.Callback):
    """At the end of each epoch, before anything is projected: losses, gradient, distance to the vocabulary."""

    def __init__(self, watch: Watch) -> None:
        self.watch = watch
        self.samples: list[int] = []
        self.values: dict[str, list[list[float]]] = {
            name: [] for name in ("soft", "hard", "gradient", "distance", "changed")
        }

    def on_train_start(self, trainer: L.Trainer, module: Any) -> None:
        self.samples.append(self.watch.samples())
        self.tokens = module.token_ids.clone()

    def on_train_epoch_end(self, trainer: L.Trainer, module: Any) -> None:
        with torch.no_grad():
            prompt = module.prompt
            nearest = module.vocabulary.embed(module.vocabulary.nearest(prompt))
            self._note("distance", (prompt - nearest).norm(dim=-1).mean(1))
            self._note("gradient", module.coordinates.grad.flatten(1).norm(dim=1))
            self._note("soft", module.losses)

    def after(self, module: Any) -> None:
        """And after the projection."""
        self.samples.append(self.watch.samples())
        self._note("hard", module.token_losses)
        self._note("changed", (module.token_ids != self.tokens).sum(1))
        self.tokens = module.token_ids.clone()

    def _note(self, name: str, values: Tensor) -> None:
        self.values[name].append([float(value) for value in values])


class After(L.Callback):
    """The same epoch's end, after all other callbacks."""

    def __init__(self, notes: Notes) -> None:
        self.notes = notes

    def on_train_epoch_end(self, trainer: L.Trainer, module: Any) -> None:
        self.notes.after(module)
