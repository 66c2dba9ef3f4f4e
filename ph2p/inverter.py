"""One image batch from pictures to prompts: optimise, search, select, measure."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from hydra.utils import instantiate
from torch import Tensor

from ph2p.config.budget import plan
from ph2p.config.schema import Config
from ph2p.data import Target, TargetError
from ph2p.evaluation.measurement import Measurement
from ph2p.evaluation.result import InversionResult
from ph2p.inversion.batch import Batch
from ph2p.inversion.draws import Draws
from ph2p.inversion.history import CandidateHistory
from ph2p.inversion.judge import Judge
from ph2p.inversion.meter import Meter
from ph2p.inversion.module import PromptInversion
from ph2p.inversion.moves import chosen_moves
from ph2p.inversion.objectives import Objective, make_objective
from ph2p.inversion.projection import DelayedProjection
from ph2p.inversion.prompts import present
from ph2p.inversion.search import Search
from ph2p.inversion.selection import Candidate, Pool, Rule, make_rule, shortlist, validate_candidates
from ph2p.inversion.session import BestSoFar, EachStep, Session, stoppable
from ph2p.inversion.starts import starting_tokens
from ph2p.inversion.steps import InversionData
from ph2p.models.counter import Spent
from ph2p.models.generators import Generator
from ph2p.models.scorer import Scorer


@dataclass
class Inverter:
    """A loaded model and a configuration: inverts image batches one after another.

    Raises UserError where objective, selection rule or the words that the method requires do not fit model and scorer.
    """

    generator: Generator
    scorer: Scorer
    cfg: Config

    def __post_init__(self) -> None:
        self._objective(), self._rule()  # what does not fit is said now
        method = self.cfg.method
        chosen_moves(method.search.moves if method.search else {})
        self.vocabulary = self.generator.vocabulary.choosing(method.require, method.forbid)  # of the prompts

    def __call__(
        self, targets: Sequence[Target], session: Session | None = None
    ) -> list[InversionResult | TargetError]:
        """Invert a batch of images; each result depends on its image and the configuration alone, up to rounding.

        An image for which no prompt can be found has an error as its result, and the others are not concerned. The
        `session` says how the fit is run, hears of progress, keeps what an interrupted search goes on from, and stops.
        Selection and measurement begin anew after an interruption: they are short, and the same each time.
        """
        session = session or Session()
        for stage, total in reversed(self._stages(len(targets)).items()):
            session.report(stage, 0, total)
        with stoppable(self.generator.denoiser, session):
            batch = Batch(targets, self.generator, self.scorer)
            pool, prompts, curves = self.optimise(batch, session)
            if self.cfg.method.search:
                pool = self.search(batch, pool, session)
            candidates, failed = self.select(batch, pool, session)
            measured = self.measure(batch, candidates, prompts, curves, session)
        return [failed[row] if row in failed else measured[row] for row in range(len(targets))]

    def _stages(self, images: int) -> dict[str, int]:
        """The stages of a batch, each with its number of steps, in their order."""
        steps = plan(self.cfg.method)
        stages = {"optimising": steps.epochs, "searching": steps.rounds, "choosing": images, "measuring": 1}
        return {stage: total for stage, total in stages.items() if total}

    def _enough(self, batch: Batch, session: Session) -> Callable[[], bool]:
        """Whether optimisation and search of a batch are to end, by session or clock; the batch keeps why."""
        limit = self.cfg.method.time_limit

        def enough() -> bool:
            if session.enough():
                batch.cut_short = batch.cut_short or "it was asked to finish early"
            elif limit is not None and session.seconds() >= 60 * limit:
                batch.cut_short = batch.cut_short or f"its time limit of {limit:g} min was reached"
            return bool(batch.cut_short)

        return enough

    def _best(self, batch: Batch, token_ids: Tensor, losses: Tensor) -> list[BestSoFar]:
        """What a session hears of padded prompts (B, L) and their losses (B,)."""
        texts = [self.vocabulary.decode(present(row)) for row in token_ids]
        return [BestSoFar(*known) for known in zip(batch.ids, texts, losses.tolist(), strict=True)]

    # --- optimisation --------------------------------------------------------------------------------------------

    def optimise(self, batch: Batch, session: Session) -> tuple[Pool, Tensor, Tensor]:
        """Run the method's optimiser: what it visited, its last prompts (B, M, D) and losses (B, epochs).

        Restarts are rows of their own (`key`, `key#1`, ...), R of them in a row for each image.
        """
        method, meter = self.cfg.method, Meter(self.generator.counter)
        vocabulary = self.vocabulary.projecting(method.projection)
        keys = [f"{key}#{r}" if r else key for key in batch.keys for r in range(method.restarts)]
        start = starting_tokens(vocabulary, self.scorer, method, self.cfg.seed, keys, batch.features)  # (B R, M)
        judge = self._judge(batch) if method.judge_draws else None
        objective = self._objective()
        module = PromptInversion(
            objective,
            vocabulary,
            start,
            instantiate(method.optimizer, _partial_=True) if method.optimizer else None,
            method.straight_through,
            self.generator.microbatch,
            judge(start[:, None])[:, 0] if judge else None,
        )
        epochs, history = plan(method).epochs, CandidateHistory(method.snap, judge is not None)
        if epochs:
            projection = DelayedProjection(method.snap, judge, method.projection_scales)
            data = self._data(batch, objective, keys, start.shape[1])
            watch = EachStep(lambda: self._tell(batch, history, session), self._enough(batch, session))
            session.fit(module, data, epochs, [projection, history, meter, watch])
        else:
            history.record_start(module)
        judged = judge.samples if judge else []
        batch.spend(meter.total() - Spent(sum(judged)))
        for row, samples in enumerate(judged):
            batch.spend(Spent(samples), row // method.restarts)
        first = torch.arange(len(batch.ids)) * method.restarts  # of each image's rows
        prompts = module.prompt.detach()[first].to(self.generator.device)
        return history.pool(len(batch.ids), self.generator.device), prompts, history.curves(first)

    def _tell(self, batch: Batch, history: CandidateHistory, session: Session) -> None:
        def best() -> list[BestSoFar]:
            pool = history.pool(len(batch.ids), self.generator.device).lowest(1)
            return self._best(batch, pool.token_ids[:, 0], pool.losses[:, 0])

        session.hear(best)

    def _objective(self) -> Objective:
        return make_objective(self.cfg.method.objective, self.generator, self.scorer)

    def _judge(self, batch: Batch) -> Judge:
        """The judge of the rows' hard prompts; an image's restarts are judged by the same draws."""
        method, image = self.cfg.method, batch.rows(self.cfg.method.restarts)
        draws = batch.draws(self.cfg.seed, "judge", method.judge_draws, method.timesteps)
        return Judge(self.generator, batch.latents[image], draws[image])

    def _data(self, batch: Batch, objective: Objective, keys: Sequence[str], length: int) -> InversionData:
        """The draws of each step, for rows of M = `length` tokens; smoothing is in units of the vocabulary's spread."""
        method, deviation = self.cfg.method, None
        if method.smoothing:
            deviation = method.smoothing * self.generator.vocabulary.deviation().expand(length, -1).cpu()  # (M, D)
        goals = objective.goals(batch.latents, batch.features)[batch.rows(method.restarts)]
        first, end = method.timesteps
        return InversionData(goals, keys, self.cfg.seed, method.draws, method.steps, (first, end), deviation)

    # --- search --------------------------------------------------------------------------------------------------

    def search(self, batch: Batch, pool: Pool, session: Session) -> Pool:
        """Refine the best candidates so far, word by word; returns those and what was found."""
        method, meter = self.cfg.method, Meter(self.generator.counter)
        assert method.search is not None
        known, rounds, state = pool.best(method.search.starts), plan(method).rounds, session.search_state()
        enough = self._enough(batch, session)
        if state:
            meter.load_state_dict(state)
        elif rounds and enough():
            return pool

        def save(progress: dict[str, Tensor]) -> None:
            session.save_search(progress | meter.state_dict())
            session.hear(lambda: self._best(batch, progress["prompts"][:, -1], progress["losses"][:, -1]))
            if done := progress["losses"].shape[1] - 1:
                session.report("searching", done, rounds)

        search = Search(self.generator, batch.latents, batch.keys, method, self.cfg.seed, self.vocabulary)
        found, losses = search(known.token_ids, rounds, save, state, enough)
        batch.spend(meter.total())
        batch.search_curves = losses.tolist()
        return known.extended(found, losses, int(pool.epochs[0, -1]))

    # --- selection -----------------------------------------------------------------------------------------------

    def select(
        self, batch: Batch, pool: Pool, session: Session
    ) -> tuple[dict[int, list[Candidate]], dict[int, TargetError]]:
        """Every image's candidates, the winner first: ranked by the method's rule, after new draws have scored them.

        Both are by the image's row: the candidates, and what is wrong with the images that have none.
        """
        method, rule = self.cfg.method, self._rule()
        draws = batch.draws(self.cfg.seed, "validation", method.selection.draws, method.timesteps)
        found, failed = {}, {}
        for row in range(len(batch.ids)):
            meter = Meter(self.generator.counter)
            try:
                found[row] = rule(batch.features[row], self._validated(batch, row, pool, draws))
            except TargetError as error:
                failed[row] = error
            batch.spend(meter.total(), row)
            session.report("choosing", row + 1, len(batch.ids))
        return found, failed

    def _rule(self) -> Rule:
        return make_rule(self.generator, self.scorer, self.cfg)

    def _validated(self, batch: Batch, row: int, pool: Pool, draws: Draws) -> list[Candidate]:
        """An image's shortlist with losses on the validation draws, best first; raises TargetError if there is none."""
        one = slice(row, row + 1)
        visited = pool.token_ids[row], pool.losses[row], pool.epochs[row].tolist()
        some = shortlist(self.vocabulary, *visited, self.cfg.method.selection.shortlist)
        if not some:
            raise TargetError(f"{batch.ids[row]}: no candidate reads back as its tokens: give another seed")
        scored = validate_candidates(self.generator, batch.latents[one], some, draws[one], self.cfg.method.word_price)
        if not scored:
            raise TargetError(
                f"{batch.ids[row]}: its loss is not finite whatever the prompt: "
                "give trainer.precision=32-true, or leave the image out"
            )
        return scored

    # --- measurement ---------------------------------------------------------------------------------------------

    def measure(
        self,
        batch: Batch,
        candidates: dict[int, list[Candidate]],
        prompts: Tensor,
        curves: Tensor,
        session: Session,
    ) -> dict[int, InversionResult]:
        """What the winners are worth, by row; `prompts` (B, M, D) and `curves` (B, epochs) are those of all images."""
        rows = list(candidates)
        if not rows:
            return {}
        measurement = Measurement(self.generator, self.scorer, self.cfg)
        seconds = session.seconds() / len(batch.ids)
        some = batch.only(rows), list(candidates.values()), prompts[rows], curves[rows]
        results = measurement(*some, seconds)
        session.report("measuring", 1, 1)
        return dict(zip(rows, results, strict=True))
