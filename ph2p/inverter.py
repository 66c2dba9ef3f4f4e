"""One image batch from pictures to prompts: optimise, search, select, measure."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import lightning as L
import torch
from hydra.utils import instantiate
from lightning.pytorch.utilities.exceptions import SIGTERMException
from torch import Tensor

from ph2p.config.budget import plan
from ph2p.config.schema import Config
from ph2p.data import Target, TargetError
from ph2p.evaluation.measurement import Measurement
from ph2p.evaluation.result import InversionResult
from ph2p.inversion.batch import Batch
from ph2p.inversion.draws import Draws, make_draws
from ph2p.inversion.history import CandidateHistory
from ph2p.inversion.module import PromptInversion
from ph2p.inversion.objectives import ClipObjective, DenoisingObjective, candidate_losses
from ph2p.inversion.projection import DelayedProjection
from ph2p.inversion.search import greedy_swaps
from ph2p.inversion.selection import Candidate, Pool, rank_finalists, shortlist, validate_candidates
from ph2p.inversion.steps import InversionData
from ph2p.models.generators import Generator
from ph2p.models.painting import guidance_options
from ph2p.models.scorer import Scorer
from ph2p.run import stopping
from ph2p.run.checkpoint import BatchCheckpoint
from ph2p.run.logs import LogCurves, RunLog
from ph2p.run.ranks import trainer_options
from ph2p.run.session import EpochProgress, SaveProgress

Report = Callable[[float, str], None]  # the finished share of a batch in [0, 1], and what is happening


@dataclass
class Inverter:
    """A loaded model and a configuration: inverts image batches one after another."""

    generator: Generator
    scorer: Scorer
    cfg: Config
    log: RunLog | None = None

    def __call__(
        self,
        targets: Sequence[Target],
        report: Report = lambda share, what: None,
        checkpoint: BatchCheckpoint | None = None,
    ) -> list[InversionResult | TargetError]:
        """Invert a batch of images; each result depends on its image and the configuration alone.

        An image for which no prompt can be found has an error as its result, and the others are not concerned.
        A `checkpoint`, opened for these images, is written as the work goes on, and continued where it holds any.
        Selection and measurement are not in it: they are short, and the same each time.
        """
        batch = Batch(targets, self.generator, self.scorer, checkpoint)
        pool, prompts, curves = self.optimise(batch, report)
        if self.cfg.method.search:
            pool = self.search(batch, pool, report)
        report(0.9, "choosing")
        candidates, failed = self.select(batch, pool)
        seconds, rows = batch.seconds() / len(targets), list(candidates)
        report(0.95, "measuring")
        results: dict[int, InversionResult | TargetError] = {**failed}
        if rows:
            measure = Measurement(self.generator, self.scorer, self.cfg)
            some = batch.only(rows), list(candidates.values()), prompts[rows], curves[rows]
            results |= zip(rows, measure(*some, seconds), strict=True)
        return [results[row] for row in range(len(targets))]

    # --- optimisation --------------------------------------------------------------------------------------------

    def optimise(self, batch: Batch, report: Report) -> tuple[Pool, Tensor, Tensor]:
        """Run the method's optimiser: what it visited, its last prompts (B, M, D) and losses (B, epochs).

        Restarts are rows of their own (`image`, `image#1`, ...), R of them in a row for each image.
        """
        method, restarts = self.cfg.method, self.cfg.method.restarts
        rows = [f"{i}#{r}" if r else i for i in batch.ids for r in range(restarts)]
        judge = self._judge(batch) if method.judge_draws else None
        start = torch.stack([self._start(row) for row in rows])  # (B R, M)
        token_losses = judge(start[:, None])[:, 0] if judge else None  # (B R)
        objective = self._objective()
        factory = instantiate(method.optimizer, _partial_=True) if method.optimizer else None
        microbatch = self.generator.microbatch
        module = PromptInversion(
            objective, self.generator.vocabulary, start, factory, method.straight_through, microbatch, token_losses
        )
        epochs, history = plan(method).epochs, CandidateHistory(method.snap, judge is not None)
        if epochs:
            goals = batch.latents if objective.needs_denoiser else batch.features
            goals = goals.repeat_interleave(restarts, 0)
            window, deviation = tuple(method.timesteps), self._deviation(start.shape[1])
            data = InversionData(goals, rows, self.cfg.seed, method.draws, method.steps, window, deviation)
            share = 0.9 * (1 - method.search.share) if method.search else 0.9
            progress = EpochProgress(lambda done: report(share * done, "optimising"))
            logs = [LogCurves(self.log, rows, method.snap)] if self.log else []
            projection = DelayedProjection(method.snap, judge, method.projection_scales)
            self._fit(batch, module, data, epochs, [projection, history, *logs, progress])
            batch.spend((1 + epochs * len(method.projection_scales)) * method.judge_draws * restarts)
            spent = int(module.evaluations) * method.draws * restarts if objective.needs_denoiser else 0
            batch.spend(spent, spent)
        else:
            history.record_start(module)
        images = len(batch.ids)
        visited = torch.stack(history.token_ids, 1).view(images, -1, start.shape[1])  # (B, R K, M)
        losses = torch.stack(history.losses, 1)  # (B R, K)
        pool = Pool(
            visited.to(self.generator.device),
            losses.view(images, -1).to(self.generator.device),
            torch.arange(losses.shape[1], device=self.generator.device).repeat(images, restarts),
        )
        curves = torch.stack(history.curve, 1) if history.curve else losses[:, :0]
        return pool, module.prompt.detach()[::restarts].to(self.generator.device), curves[::restarts]

    def _judge(self, batch: Batch) -> Callable[[Tensor], Tensor]:
        """A function from hard prompts (B R, K, M) to their losses (B R, K) on draws that stay the same."""
        method, restarts = self.cfg.method, self.cfg.method.restarts
        image = torch.arange(len(batch.ids)).repeat_interleave(restarts)  # of each row
        draws = batch.draws(self.cfg.seed, "judge", method.judge_draws, method.timesteps)[image]
        return lambda prompts: candidate_losses(self.generator, batch.latents[image], prompts, draws)

    def _start(self, row: str) -> Tensor:
        """The starting tokens (M,) of a row: given words, or random ones keyed by seed and image."""
        vocabulary, method = self.generator.vocabulary, self.cfg.method
        if method.init != "random":
            return torch.tensor(vocabulary.encode(method.init), device=self.generator.device)
        key = make_draws(self.cfg.seed, [row], ("start",), 1, (0, 2**31), ()).timesteps
        return vocabulary.random(method.prompt_length, torch.Generator().manual_seed(int(key)))

    def _deviation(self, length: int) -> Tensor | None:
        """How far from zero the shifts (M, D) are that smooth the loss of M = `length` tokens; None: there are none."""
        vocabulary, smoothing = self.generator.vocabulary, self.cfg.method.smoothing
        if not smoothing:
            return None
        return smoothing * vocabulary.deviation().expand(length, -1).cpu()

    def _objective(self) -> DenoisingObjective | ClipObjective:
        if self.cfg.method.objective == "denoising":
            return DenoisingObjective(self.generator)
        return ClipObjective(self.scorer, self.generator.vocabulary)

    def _fit(
        self, batch: Batch, module: PromptInversion, data: InversionData, epochs: int, callbacks: list[L.Callback]
    ) -> None:
        options, checkpoint = trainer_options(self.cfg.trainer), batch.checkpoint
        if checkpoint:
            callbacks = [*callbacks[:-1], SaveProgress(checkpoint, batch.seconds), callbacks[-1]]
            options["plugins"] = [*options["plugins"], checkpoint]
        trainer = L.Trainer(
            **options,
            max_epochs=epochs,
            callbacks=callbacks,
            logger=False,  # a logger is of the whole run, an image batch is a fit: see `logs.py`
            enable_checkpointing=False,
            enable_progress_bar=False,
            enable_model_summary=False,
        )
        try:
            trainer.fit(module, data, ckpt_path=checkpoint.fit_path if checkpoint else None, weights_only=True)
        except SIGTERMException:  # Lightning has seen the signal between two of our looks, and would exit with 0
            stopping.check()
            raise

    # --- search --------------------------------------------------------------------------------------------------

    def search(self, batch: Batch, pool: Pool, report: Report) -> Pool:
        """Refine the best candidates by token swaps; returns those and what was found, on the search's draws."""
        method, search = self.cfg.method, self.cfg.method.search
        draws = batch.draws(self.cfg.seed, "search", search.draws, method.timesteps)
        known = pool.best(method.selection.shortlist)
        scores = candidate_losses(self.generator, batch.latents, known.token_ids, draws)  # (B, K)
        batch.spend(scores.shape[1] * search.draws)
        best = Pool(known.token_ids, scores, known.epochs)
        starts = scores.topk(min(search.starts, scores.shape[1]), largest=False).indices  # (B, S)
        begin = best.token_ids.gather(1, starts[..., None].expand(-1, -1, best.token_ids.shape[2]))
        image = torch.arange(len(batch.ids), device=begin.device).repeat_interleave(starts.shape[1])
        rounds = plan(method).rounds
        found, losses = greedy_swaps(
            self.generator,
            batch.latents[image],
            begin.flatten(0, 1),
            draws[image],
            rounds,
            search.swaps,
            lambda done: report(0.9 * (1 - search.share * (1 - done)), "searching"),
            self._note_round(batch, int(pool.epochs[0, -1])),
            batch.checkpoint.about["search"] if batch.checkpoint else None,
        )
        gradients = starts.shape[1] * rounds * search.draws
        batch.spend(starts.shape[1] * search.draws + gradients * (1 + search.swaps), gradients)
        batch.search_curves = losses.view(len(batch.ids), -1, rounds + 1).amin(1).tolist()
        later = pool.epochs[0, -1] + torch.arange(rounds + 1, device=begin.device)
        return Pool(
            torch.cat([best.token_ids, found.view(len(batch.ids), -1, found.shape[2])], 1),
            torch.cat([scores, losses.view(len(batch.ids), -1)], 1),
            torch.cat([best.epochs, later.repeat(len(batch.ids), starts.shape[1])], 1),
        )

    def _note_round(self, batch: Batch, epochs: int) -> Callable[[dict[str, Tensor]], None]:
        """What is done with the state of a search: save it, and log its best losses as of epochs after the fit's."""

        def note(state: dict[str, Tensor]) -> None:
            losses = state["losses"]  # (B S, 1 + rounds so far)
            if self.log:
                best = losses[:, -1].view(len(batch.ids), -1).amin(1).tolist()
                figures = {i: {"search_loss": loss} for i, loss in zip(batch.ids, best, strict=True)}
                self.log.write(epochs + losses.shape[1] - 1, figures)
            if batch.checkpoint:
                batch.checkpoint.save_search(state, batch.seconds())

        return note

    # --- selection -----------------------------------------------------------------------------------------------

    def select(self, batch: Batch, pool: Pool) -> tuple[dict[int, list[Candidate]], dict[int, TargetError]]:
        """Every image's candidates, the winner first: the finalists by CLIP similarity, the rest by loss.

        Both are by the image's row: the candidates, and what is wrong with the images that have none.
        """
        choice, scored, failed = self.cfg.method.selection, {}, {}
        draws = batch.draws(self.cfg.seed, "validation", choice.draws, self.cfg.method.timesteps)
        for row in range(len(batch.ids)):
            try:
                scored[row] = self._validated(batch, row, pool, draws)
            except TargetError as error:
                failed[row] = error
        if not scored:
            return {}, failed
        finalists = []
        for row, some in scored.items():
            bound = some[0].loss * (1 + choice.margin)
            finalists.append([c for c in some[: choice.finalists] if c.loss <= bound] or some[:1])
            batch.forward[row] += 2 * len(finalists[-1]) * choice.steps
        features, guidance = batch.features[list(scored)], guidance_options(self.cfg.generator)
        ranked = rank_finalists(self.generator, self.scorer, features, finalists, choice.steps, self.cfg.seed, guidance)
        return {row: best + scored[row][len(best) :] for row, best in zip(scored, ranked, strict=True)}, failed

    def _validated(self, batch: Batch, row: int, pool: Pool, draws: Draws) -> list[Candidate]:
        """An image's shortlist with losses on the validation draws, best first; raises TargetError if there is none."""
        choice, one = self.cfg.method.selection, slice(row, row + 1)
        visited = pool.token_ids[row], pool.losses[row], pool.epochs[row].tolist()
        some = shortlist(self.generator.vocabulary, *visited, choice.shortlist)
        if not some:
            raise TargetError(f"{batch.ids[row]}: no candidate reads back as its tokens: give another seed")
        batch.forward[row] += len(some) * choice.draws
        scored = validate_candidates(self.generator, batch.latents[one], some, draws[one])
        if not scored:
            raise TargetError(
                f"{batch.ids[row]}: its loss is not finite whatever the prompt: "
                "give trainer.precision=32-true, or leave the image out"
            )
        return scored
