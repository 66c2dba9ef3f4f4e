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
from ph2p.inversion.objectives import candidate_losses, finite_or_infinite
from ph2p.inversion.session import Session
from ph2p.inverter import Inverter


class Watch(Session):
    """Notes every prompt of the optimisation and of the search with the samples an image that it took to get there."""

    def __init__(self, inverter: Inverter, images: int) -> None:
        super().__init__()
        self.counter, self.images = inverter.generator.counter, images
        self.before = self.spent()
        self.visits: list[tuple[int, Tensor, Tensor]] = []  # samples, tokens (B, M), losses (B,): the lowest is best
        self.trace: dict[str, list[list[float]]] = {}
        self.rounds: list[int] = []

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
        for samples, tokens, losses in zip(notes.samples, history.token_ids, history.losses, strict=True):
            grouped = finite_or_infinite(losses).view(self.images, each)
            best = grouped.argmin(1)
            rows = torch.arange(self.images) * each + best
            self.visits.append((samples, tokens[rows], grouped.amin(1)))
        self.trace = {"samples": [[s] * self.images for s in notes.samples[1:]]} | {
            name: [values[::each] for values in rows] for name, rows in notes.values.items()
        }

    def save_search(self, state: dict[str, Tensor]) -> None:
        """Note the search's best prompts, where its state holds them as (B S, rounds, M) beside their losses."""
        prompts, losses = state.get("prompts"), state.get("losses")
        if prompts is None or losses is None or prompts.dim() != 3 or losses.shape != prompts.shape[:2]:
            return
        each = len(losses) // self.images
        last = losses[:, -1].view(self.images, each)
        rows = torch.arange(self.images, device=last.device) * each + last.argmin(1)
        if not self.rounds:  # the search has draws of its own: losses before it do not compare
            self.visits = [(s, t, torch.full_like(v, torch.inf)) for s, t, v in self._best()]
        self.rounds.append(self.samples())
        self.visits.append((self.rounds[-1], prompts[rows, -1].cpu(), last.amin(1).cpu()))

    def _best(self) -> list[tuple[int, Tensor, Tensor]]:
        """The visits with the best prompt so far in the place of each."""
        found: list[tuple[int, Tensor, Tensor]] = []
        for samples, tokens, losses in self.visits:
            if found and tokens.shape == found[-1][1].shape:
                better = (losses <= found[-1][2])[:, None]
                tokens = torch.where(better, tokens, found[-1][1])
                losses = torch.minimum(losses, found[-1][2])
            found.append((samples, tokens, losses))
        return found

    def curves(self, inverter: Inverter, targets: list[Target], results: list[InversionResult]) -> None:
        """Give each result its curve: the regret, on the evaluation's draws, of the best prompt so far."""
        if not self.visits:
            return
        cfg, batch = inverter.cfg, Batch(targets, inverter.generator, inverter.scorer)
        draws = batch.draws(cfg.seed, "evaluation", cfg.evaluation.draws, cfg.evaluation.timesteps)
        best = self._best()
        for row, result in enumerate(results):
            if result.loss_caption is None:
                continue
            one, known = slice(row, row + 1), {}
            for _, tokens, _ in best:
                ids = tuple(tokens[row].tolist())
                if ids not in known:
                    prompt = tokens[row].to(batch.latents.device)[None, None]
                    known[ids] = float(candidate_losses(inverter.generator, batch.latents[one], prompt, draws[one]))
            losses = [(samples, known[tuple(tokens[row].tolist())]) for samples, tokens, _ in best]
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
            self._note("gradient", prompt.grad.flatten(1).norm(dim=1))
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
