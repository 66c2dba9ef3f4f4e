"""One image batch from pictures to prompts: optimise, search, select, measure."""

import time
from collections.abc import Callable, Sequence
from copy import copy
from dataclasses import dataclass, field
from typing import Any

import lightning as L
import torch
from hydra.utils import instantiate
from lightning.pytorch.utilities.exceptions import SIGTERMException
from omegaconf import DictConfig
from torch import Tensor

from ph2p import stopping
from ph2p.callbacks import CandidateHistory, DelayedProjection, EpochProgress, SaveProgress
from ph2p.checkpoint import BatchCheckpoint
from ph2p.config import plan
from ph2p.data import Draws, InversionData, Target, TargetError, make_draws
from ph2p.evaluation import (
    Candidate,
    Pool,
    paint,
    rank_finalists,
    readable,
    shortlist,
    text_losses,
    validate_candidates,
)
from ph2p.generators import Generator
from ph2p.inversion import PromptInversion
from ph2p.logs import LogCurves, RunLog
from ph2p.memory import peak_memory
from ph2p.metrics import cosine_similarity, regret, rouge, word_recall
from ph2p.objectives import ClipObjective, DenoisingObjective, candidate_losses
from ph2p.scorer import Scorer
from ph2p.search import greedy_swaps
from ph2p.strategy import trainer_options

Report = Callable[[float, str], None]  # the finished share of a batch in [0, 1], and what is happening


@dataclass
class Inversion:
    """The prompt found for one image, what it is worth and what it cost.

    Losses are mean squared denoising errors on the evaluation draws. `regret`, `word_recall` and the caption's
    figures need ground truth and are None without. Where people described the picture, `loss_reference` is the
    lowest of their captions' losses, and the other figures of references compare the prompt with the nearest one in
    words: `reference_similarity` by CLIP, in [-1, 1], ROUGE-1 and ROUGE-L in [0, 1]. `notes` says what was cut or
    could not be measured. `loss_soft` is the continuous prompt's loss for methods
    that end with one. `forward_samples` and `backward_samples` count all that served to find the prompt,
    `evaluation_samples` the measurement and pictures afterwards; `seconds` is the image's share of its batch,
    `peak_memory` the process's largest so far in MiB, on a GPU or else of main memory.
    """

    image_id: str
    source: str
    method: str
    seed: int
    prompt: str
    token_ids: list[int]
    loss: float
    loss_empty: float
    clip_similarity: float
    forward_samples: int
    backward_samples: int
    evaluation_samples: int
    seconds: float
    peak_memory: int
    caption: str | None = None
    loss_caption: float | None = None
    regret: float | None = None
    word_recall: float | None = None
    clip_similarity_caption: float | None = None
    references: list[str] = field(default_factory=list)
    loss_reference: float | None = None
    reference_similarity: float | None = None
    reference_rouge1: float | None = None
    reference_rouge_l: float | None = None
    notes: list[str] = field(default_factory=list)
    loss_soft: float | None = None
    loss_curve: list[float] = field(default_factory=list)  # an entry an epoch
    search_curve: list[float] = field(default_factory=list)  # an entry a round, the start first; on its own draws
    candidates: list[Candidate] = field(default_factory=list)  # the winner first
    target: Tensor | None = None  # (3, H, W) in [0, 1]
    pictures: Tensor | None = None  # (renders, 3, H, W) in [0, 1], painted from the prompt
    caption_pictures: Tensor | None = None  # the same from the true caption


class Batch:
    """An image batch with its latents, encoded once, and what it has cost: samples an image, and time."""

    def __init__(
        self,
        targets: Sequence[Target],
        generator: Generator,
        scorer: Scorer,
        checkpoint: BatchCheckpoint | None = None,
    ) -> None:
        self.targets, self.ids = list(targets), [t.image_id for t in targets]
        self.images = torch.stack([t.image for t in targets]).to(generator.device)  # (B, 3, H, W)
        self.latents = generator.encode_images(self.images)  # (B, C, h, w)
        self.features = scorer.image_features(self.images)  # (B, E)
        self.forward, self.backward = [0] * len(targets), [0] * len(targets)
        self.search_curves: list[list[float]] = [[] for _ in targets]
        self.checkpoint = checkpoint
        self.started = time.perf_counter() - (checkpoint.about["seconds"] if checkpoint else 0)

    def seconds(self) -> float:
        """What the batch has taken, in an interrupted run too."""
        return time.perf_counter() - self.started

    def only(self, rows: list[int]) -> "Batch":
        """The same batch with fewer images, after some have failed."""
        some = copy(self)
        for name in ("targets", "ids", "forward", "backward", "search_curves"):
            setattr(some, name, [getattr(self, name)[row] for row in rows])
        some.images, some.latents, some.features = self.images[rows], self.latents[rows], self.features[rows]
        return some

    def spend(self, forward: int, backward: int = 0) -> None:
        """Count samples that every image has cost."""
        self.forward = [spent + forward for spent in self.forward]
        self.backward = [spent + backward for spent in self.backward]


@dataclass
class Inverter:
    """A loaded model and a configuration: inverts image batches one after another."""

    generator: Generator
    scorer: Scorer
    cfg: DictConfig
    log: RunLog | None = None

    def __call__(
        self,
        targets: Sequence[Target],
        report: Report = lambda share, what: None,
        checkpoint: BatchCheckpoint | None = None,
    ) -> list[Inversion | TargetError]:
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
        results: dict[int, Inversion | TargetError] = {**failed}
        if rows:
            some = batch.only(rows), list(candidates.values()), prompts[rows], curves[rows]
            results |= zip(rows, self.measure(*some, seconds), strict=True)
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
            data = InversionData(goals, rows, self.cfg.seed, method.draws, method.steps, tuple(method.timesteps))
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
        latents = batch.latents.repeat_interleave(restarts, 0)
        ids = [image_id for image_id in batch.ids for _ in range(restarts)]
        draws = self._draws(ids, "judge", method.judge_draws, method.timesteps)
        return lambda prompts: candidate_losses(self.generator, latents, prompts, draws)

    def _start(self, row: str) -> Tensor:
        """The starting tokens (M,) of a row: given words, or random ones keyed by seed and image."""
        vocabulary, method = self.generator.vocabulary, self.cfg.method
        if method.init != "random":
            return torch.tensor(vocabulary.encode(method.init), device=self.generator.device)
        key = make_draws(self.cfg.seed, [row], ("start",), 1, (0, 2**31), ()).timesteps
        return vocabulary.random(method.prompt_length, torch.Generator().manual_seed(int(key)))

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
        draws = self._draws(batch.ids, "search", search.draws, method.timesteps)
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

    def _draws(self, ids: list[str], purpose: str, count: int, timesteps: Sequence[int]) -> Draws:
        shape = self.generator.latent_shape
        draws = make_draws(self.cfg.seed, ids, (purpose,), count, tuple(timesteps), shape)
        return draws.to(self.generator.device)

    # --- selection -----------------------------------------------------------------------------------------------

    def select(self, batch: Batch, pool: Pool) -> tuple[dict[int, list[Candidate]], dict[int, TargetError]]:
        """Every image's candidates, the winner first: the finalists by CLIP similarity, the rest by loss.

        Both are by the image's row: the candidates, and what is wrong with the images that have none.
        """
        choice, scored, failed = self.cfg.method.selection, {}, {}
        draws = self._draws(batch.ids, "validation", choice.draws, self.cfg.method.timesteps)
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
        features, guidance = batch.features[list(scored)], self._guidance()
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

    def _guidance(self) -> dict[str, float]:
        generator = self.cfg.generator
        return {"guidance_scale": generator.guidance_scale, "guidance_rescale": generator.guidance_rescale}

    # --- measurement ---------------------------------------------------------------------------------------------

    def measure(
        self, batch: Batch, candidates: list[list[Candidate]], prompts: Tensor, curves: Tensor, seconds: float
    ) -> list[Inversion]:
        """Losses on fresh draws and pictures with fixed seeds, of the winners and of the true captions."""
        cfg, texts = self.cfg, [row[0].text for row in candidates]
        draws = self._draws(batch.ids, "evaluation", cfg.evaluation.draws, cfg.evaluation.timesteps)
        losses = text_losses(self.generator, batch.latents, texts, draws)
        empty = text_losses(self.generator, batch.latents, [""] * len(texts), draws)
        pictures, similarity = self._paint(texts, batch.features)
        results = [
            Inversion(
                image_id=target.image_id,
                source=target.source,
                method=cfg.method.name,
                seed=cfg.seed,
                prompt=texts[row],
                token_ids=list(candidates[row][0].token_ids),
                loss=losses[row],
                loss_empty=empty[row],
                clip_similarity=similarity[row],
                forward_samples=batch.forward[row],
                backward_samples=batch.backward[row],
                evaluation_samples=2 * cfg.evaluation.draws + 2 * cfg.evaluation.renders * cfg.generator.steps,
                seconds=seconds,
                peak_memory=peak_memory(),
                loss_curve=curves[row].tolist(),
                search_curve=batch.search_curves[row],
                candidates=candidates[row],
                target=target.image,
                pictures=pictures[row],
            )
            for row, target in enumerate(batch.targets)
        ]
        self._compare_with_captions(batch, results, draws)
        self._compare_with_references(batch, results, draws)
        self._measure_soft_prompts(batch, results, prompts, draws)
        return results

    def _paint(self, texts: list[str], features: Tensor) -> tuple[Tensor, list[float]]:
        """Pictures (B, renders, 3, H, W) of each text and their mean CLIP similarities (B) to `features` (B, E)."""
        count = self.cfg.evaluation.renders
        seeds = [self.cfg.seed + 1000 + k for k in range(count)]  # not the seed that the finalists were painted with
        repeated = [text for text in texts for _ in seeds]
        pictures = paint(self.generator, repeated, seeds * len(texts), self.cfg.generator.steps, self._guidance())
        painted = self.scorer.image_features(pictures).view(len(texts), count, -1)
        similarity = cosine_similarity(painted, features[:, None]).mean(1)
        return pictures.view(len(texts), count, *pictures.shape[1:]).cpu(), similarity.tolist()

    def _compare_with_captions(self, batch: Batch, results: list[Inversion], draws: Draws) -> None:
        """Fill in the figures that need a true caption, for the images that have one."""
        read = {}
        for row, target in enumerate(batch.targets):
            if target.caption:
                read[row], note = readable(self.generator, target.caption)
                results[row].notes += [f"true caption {note}"] if note else []
        known = [row for row, text in read.items() if text]
        if not known:
            return
        captions = [read[row] for row in known]
        rows = torch.tensor(known, device=batch.latents.device)
        losses = text_losses(self.generator, batch.latents[rows], captions, draws[rows])
        pictures, similarity = self._paint(captions, batch.features[rows])
        for k, row in enumerate(known):
            result, words = results[row], batch.targets[row].words
            result.caption, result.loss_caption = batch.targets[row].caption, losses[k]
            result.regret = regret(result.loss, losses[k], result.loss_empty)
            result.word_recall = word_recall(result.prompt, words) if words else None
            result.clip_similarity_caption, result.caption_pictures = similarity[k], pictures[k]
            result.evaluation_samples += self.cfg.evaluation.draws + len(pictures[k]) * 2 * self.cfg.generator.steps

    def _compare_with_references(self, batch: Batch, results: list[Inversion], draws: Draws) -> None:
        """Fill in what people's captions tell, for the images that have any."""
        for row, target in enumerate(batch.targets):
            if not target.references:
                continue
            result, texts = results[row], []
            for number, reference in enumerate(target.references, 1):
                text, note = readable(self.generator, reference)
                texts += [text] if text else []
                result.notes += [f"reference {number} {note}"] if note else []
            rows = torch.full((len(texts),), row, device=batch.latents.device)
            losses = text_losses(self.generator, batch.latents[rows], texts, draws[rows])
            prompt, *others = self.scorer.text_features([result.prompt, *target.references])
            result.references, result.loss_reference = list(target.references), min(losses, default=None)
            result.reference_similarity = float(cosine_similarity(prompt, torch.stack(others)).max())
            result.reference_rouge1, result.reference_rouge_l = rouge(result.prompt, target.references)
            result.evaluation_samples += len(texts) * self.cfg.evaluation.draws

    @torch.no_grad()
    def _measure_soft_prompts(self, batch: Batch, results: list[Inversion], prompts: Tensor, draws: Draws) -> None:
        """Where the method ends in a continuous prompt, measure that too: the bound that its tokens aim at."""
        method = self.cfg.method
        if method.snap or method.straight_through or method.optimizer is None:
            return
        objective = DenoisingObjective(self.generator)
        for row, result in enumerate(results):
            one = slice(row, row + 1)
            tokens = torch.tensor([result.token_ids], device=prompts.device)
            result.loss_soft = float(objective(prompts[one], tokens, batch.latents[one], draws[one]))
            result.evaluation_samples += self.cfg.evaluation.draws


def as_record(result: Inversion) -> dict[str, Any]:
    """The result as one line of `results/part-*.jsonl`: everything but tensors, curve and candidates."""
    left_out = ("loss_curve", "search_curve", "candidates", "target", "pictures", "caption_pictures")
    return {"status": "ok", "error": None} | {k: v for k, v in vars(result).items() if k not in left_out}
