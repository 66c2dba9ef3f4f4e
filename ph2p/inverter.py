"""One image batch from pictures to prompts: optimise, search, select, measure."""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import torch
from hydra.utils import instantiate
from torch import Tensor

from ph2p.config.budget import first_epochs, kept_starts, plan
from ph2p.config.schema import Config
from ph2p.config.validate import check_set_size
from ph2p.data import Target, TargetError
from ph2p.evaluation.backbones import Backbones
from ph2p.evaluation.measurement import Measurement
from ph2p.evaluation.result import InversionResult
from ph2p.inversion.batch import Batch
from ph2p.inversion.captioning import Captioner, caption_tokens, make_captioner
from ph2p.inversion.draws import restarted
from ph2p.inversion.fluency import make_fluency
from ph2p.inversion.halving import Halving, agreements, finishers
from ph2p.inversion.history import CandidateHistory
from ph2p.inversion.judge import Judge
from ph2p.inversion.meter import Meter
from ph2p.inversion.module import PromptInversion
from ph2p.inversion.moves import chosen_moves
from ph2p.inversion.objectives import Objective, make_objective
from ph2p.inversion.price import Price
from ph2p.inversion.projection import DelayedProjection
from ph2p.inversion.prompts import present
from ph2p.inversion.search import Search
from ph2p.inversion.selection import Candidate, Pool, Rule, distinct, make_rule, shortlist
from ph2p.inversion.session import BestSoFar, EachStep, Session, stoppable
from ph2p.inversion.starts import starting_tokens
from ph2p.inversion.steps import InversionData
from ph2p.inversion.units import units_of
from ph2p.inversion.validation import Validation, losses_on
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
    backbones: Backbones | None = None  # that judge what was found; None: those that the configuration names

    def __post_init__(self) -> None:
        method = self.cfg.method
        self.vocabulary = self.generator.vocabulary.choosing(method.require, method.forbid)  # of the prompts
        for make in (self._objective, self._rule, self._measurement, self._captioner, self._price):
            make()  # what does not fit is said now
        chosen_moves(method.search.moves if method.search else {})

    def __call__(
        self, targets: Sequence[Target], session: Session | None = None
    ) -> list[InversionResult | TargetError]:
        """Invert a batch of images; each result depends on its image and the configuration alone, up to rounding.

        A set of pictures (`ph2p.data.together`) is an image like the others; raises UserError for one of more pictures
        than there are draws. An image for which no prompt can be found has an error as its result, and the others are
        not concerned. The `session` says how the fit is run, hears of progress, keeps what an interrupted search goes
        on from, and stops. Selection and measurement begin anew after an interruption: they are short, and the same.
        """
        session = session or Session()
        for target in targets:
            check_set_size(self.cfg, len(target.shown) + len(target.avoided))
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

    def optimise(self, batch: Batch, session: Session) -> tuple[Pool, Tensor | None, Tensor]:
        """Run the method's optimiser: what it visited, its last prompts (B, M, D) and losses (B, epochs).

        Without one, what the method starts from, no continuous prompts and no losses. Restarts are rows of
        their own (`key`, `key#1`, ...), R of them in a row for each image.
        """
        method, meter = self.cfg.method, Meter(self.generator.counter)
        vocabulary = self.vocabulary.projecting(method.projection)
        keys = [restarted(key, r) for key in batch.keys for r in range(method.restarts)]
        captions = self._captions(batch)
        start = starting_tokens(vocabulary, self.scorer, method, self.cfg.seed, keys, batch.features, captions)
        if not (epochs := plan(method).epochs):
            return Pool.begun(start, len(batch.ids)), None, torch.zeros(len(batch.ids), 0)
        judge = self._judge(batch) if method.judge_draws else None
        objective = self._objective()
        module = PromptInversion(
            objective,
            vocabulary,
            start,
            instantiate(method.optimizer, _partial_=True),
            units_of(method.units, self.generator.vocabulary),  # whatever words are left out
            method.straight_through,
            self.generator.microbatch,
        )
        if judge:
            module.token_losses = judge(start[:, None])[:, 0]
        history = CandidateHistory(method.snap, judge is not None)
        projection = DelayedProjection(method.snap, judge, method.projection_scales)
        data = self._data(batch, objective, keys, start.shape[1])
        watch = EachStep(lambda: self._tell(batch, history, session), self._enough(batch, session))
        halving = Halving(projection, method.restarts, kept_starts(method), first_epochs(epochs))
        session.fit(module, data, epochs, [projection, history, meter, watch, halving])
        first = finishers(module.alive, method.restarts)
        batch.trails = history.trails(first, self.generator.vocabulary.words, method)
        batch.agreements = agreements(history.best(), self.vocabulary.decode, method.restarts)
        self._charge(batch, meter.total(), judge.samples if judge else [])
        prompts = module.prompt.detach()[first].to(self.generator.device)
        return history.pool(len(batch.ids), self.generator.device), prompts, history.curves(first)

    def _charge(self, batch: Batch, spent: Spent, judged: Sequence[int]) -> None:
        """Charge the batch with what was spent, and each image with what judging its rows (B R,) took of it."""
        batch.spend(spent - Spent(sum(judged)))
        for row, samples in enumerate(judged):
            batch.spend(Spent(samples), row // self.cfg.method.restarts)

    def _captions(self, batch: Batch) -> list[list[int]]:
        """The tokens of each row's caption, where the method starts from captions."""
        if (captioner := self._captioner()) is None:
            return []
        vocabulary, room = self.generator.vocabulary, self.generator.max_prompt_length
        found = captioner(batch.images, batch.features, self.cfg.method.restarts)
        return [caption_tokens(vocabulary, caption, room) for row in found for caption in row]

    def _captioner(self) -> Captioner | None:
        name, generator = self.cfg.method.captioner, self.generator
        return make_captioner(name, self.scorer, generator.vocabulary, generator.device) if name else None

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

        given = batch.keys, method, self.cfg.seed, self.vocabulary, self._price()
        search = Search(self.generator, batch.latents, *given)
        found, losses, gain = search(known.token_ids, rounds, save, state, enough)
        batch.spend(meter.total())
        batch.search_curves = losses.tolist()
        for trail, prompts in zip(batch.trails, found, strict=True):
            trail.rounds = [self.generator.vocabulary.words(present(prompt)) for prompt in prompts]
        return known.extended(found, losses, gain, int(pool.epochs[0, -1]))

    # --- selection -----------------------------------------------------------------------------------------------

    def select(
        self, batch: Batch, pool: Pool, session: Session
    ) -> tuple[dict[int, list[Candidate]], dict[int, TargetError]]:
        """Every image's candidates, the winner first: ranked by the method's rule, after new draws have scored them.

        Both are by the image's row: the candidates, and what is wrong with the images that have none.
        """
        method, rule, price = self.cfg.method, self._rule(), self._price()
        draws = batch.draws(self.cfg.seed, "validation", method.selection.draws, method.timesteps)
        found, failed = {}, {}
        for row in range(len(batch.ids)):
            meter, one = Meter(self.generator.counter), slice(row, row + 1)
            losses = losses_on(self.generator, batch.latents[one], draws[one])
            validation = Validation(losses, price)
            try:
                found[row] = rule(batch.features[row], self._candidates(batch, row, pool, validation))
            except TargetError as error:
                failed[row] = error
            batch.spend(meter.total(), row)
            session.report("choosing", row + 1, len(batch.ids))
        return found, failed

    def _rule(self) -> Rule:
        return make_rule(self.generator, self.scorer, self.cfg)

    def _price(self) -> Price:
        return Price(self.cfg.method.word_price, make_fluency(self.cfg.method, self.vocabulary))

    def _candidates(self, batch: Batch, row: int, pool: Pool, validation: Validation) -> list[Candidate]:
        """An image's candidates for the rule: its shortlist as the validation ranks it, or all that was visited where
        the rule needs no losses; raises TargetError if there is none."""
        method, vocabulary = self.cfg.method, self.vocabulary
        read = vocabulary.read_back if method.written else vocabulary.repair
        entries = pool.entries(row, validation.price, vocabulary)
        if method.selection.validates:
            some = shortlist(vocabulary, *entries, method.selection.shortlist, read, method.prompts)
        else:
            some = [replace(c, loss=math.nan) for c in distinct(vocabulary, read, *entries).values()]  # on no draws
        if not some:
            raise TargetError(f"{batch.ids[row]}: no candidate reads back as its tokens: give another seed")
        if not method.selection.validates:
            return some
        if not (scored := validation.ranked(some)):
            raise TargetError(
                f"{batch.ids[row]}: its loss is not finite whatever the prompt: "
                "give trainer.precision=32-true, or leave the image out"
            )
        return validation.reworded(scored, method.selection.rewordings, vocabulary, self._bounds(scored[0]))

    def _bounds(self, candidate: Candidate) -> tuple[int, int]:
        """The number of tokens that a rewording of a candidate may have."""
        search, longest = self.cfg.method.search, self.generator.max_prompt_length
        return (search.min_length, min(search.max_length, longest)) if search else (1, len(candidate.token_ids))

    # --- measurement ---------------------------------------------------------------------------------------------

    def measure(
        self,
        batch: Batch,
        candidates: dict[int, list[Candidate]],
        prompts: Tensor | None,
        curves: Tensor,
        session: Session,
    ) -> dict[int, InversionResult]:
        """What the winners are worth, by row; `prompts` (B, M, D) and `curves` (B, epochs) are those of all images."""
        rows = list(candidates)
        if not rows:
            return {}
        seconds = session.seconds() / len(batch.ids)
        some = batch.only(rows), list(candidates.values()), None if prompts is None else prompts[rows], curves[rows]
        results = self._measurement()(*some, seconds)
        session.report("measuring", 1, 1)
        return dict(zip(rows, results, strict=True))

    def _measurement(self) -> Measurement:
        return Measurement(self.generator, self.scorer, self.cfg, self.backbones)
