"""What a found prompt is worth: losses on fresh draws, renderings with fixed seeds, words, against the true caption."""

from dataclasses import dataclass
from statistics import fmean
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import cosine_similarity

from ph2p.config.schema import Config
from ph2p.evaluation.backbones import Backbones, make_backbones
from ph2p.evaluation.likeness import bertscore, diversity_of, nearest_similarity
from ph2p.evaluation.result import InversionResult, alternatives_of
from ph2p.evaluation.texts import readable, text_losses
from ph2p.evaluation.wording import reads_back
from ph2p.inversion.batch import Batch
from ph2p.inversion.draws import Draws
from ph2p.inversion.objectives import DenoisingObjective
from ph2p.inversion.selection import Candidate
from ph2p.models.generators import Generator
from ph2p.models.microbatch import peak_memory
from ph2p.models.painting import guidance_options, paint
from ph2p.models.scorer import Scorer

JUDGES = ("language_model", "dinov2", "lpips", "transfer")  # keys of the models that are asked for beside the scorer


@dataclass
class Measurement:
    """Measures the winners of image batches, all by the same draws and seeds.

    `backbones` judge texts and renderings; None: those that the configuration names.
    """

    generator: Generator
    scorer: Scorer
    cfg: Config
    backbones: Backbones | None = None

    def __post_init__(self) -> None:
        self.judges = self.backbones or make_backbones(self.cfg.evaluation, self.scorer, self.generator.device)
        if self.judges.painter:
            self.judges.painter.check_sampling({}, self.cfg.generator.guidance_rescale)

    def __call__(
        self,
        batch: Batch,
        candidates: list[list[Candidate]],
        prompts: Tensor | None,
        curves: Tensor,
        seconds: float,
    ) -> list[InversionResult]:
        """Losses on fresh draws and renderings with fixed seeds, of the winners and of the true captions.

        `candidates` lists each image's, the winner first; `prompts` (B, M, D) are the continuous prompts at the end,
        None where they are not known; `curves` (B, epochs) their losses; `seconds` is an image's part of the time.
        """
        cfg = self.cfg
        draws = batch.draws(cfg.seed, "evaluation", cfg.evaluation.draws, cfg.evaluation.timesteps, negatives=False)
        results = self._winners(batch, candidates, draws, seconds)
        for row, result in enumerate(results):
            result.loss_curve, result.search_curve = curves[row].tolist(), batch.search_curves[row]
            result.trail = batch.trails[row]
            result.agreement = batch.agreements[row]
            result.alternatives = alternatives_of(candidates[row], cfg.method.prompts)
            shown, avoided = batch.targets[row].shown, batch.targets[row].avoided
            result.together = [one.source for one in shown] if len(shown) > 1 else []
            result.negatives = [one.source for one in avoided]
        self._compare_with_captions(batch, results, draws)
        self._compare_with_references(batch, results, draws)
        self._judge(batch, results)
        self._transfer(batch, results)
        if prompts is not None:
            self._measure_soft_prompts(batch, results, prompts, draws)
        return results

    def measured_with(self) -> dict[str, Any]:
        """The settings that these values depend on: two records compare where they are equal."""
        cfg, guidance = self.cfg, guidance_options(self.cfg.generator)
        return {
            "draws": cfg.evaluation.draws,
            "timesteps": list(cfg.evaluation.timesteps),
            "renderings": cfg.evaluation.renders,
            "steps": cfg.generator.steps,
            **guidance,
            "scorer": cfg.scorer.path,
            **{key: path for key in JUDGES if (path := getattr(cfg.evaluation, key))},
        }

    def _winners(
        self, batch: Batch, candidates: list[list[Candidate]], draws: Draws, seconds: float
    ) -> list[InversionResult]:
        """Measure and render every image's winner, and no words at all beside it."""
        winners, before = [row[0] for row in candidates], self.generator.counter.forward
        texts = [winner.text for winner in winners]
        losses = text_losses(self.generator, batch.latents, texts, draws)
        empty = text_losses(self.generator, batch.latents, [""] * len(texts), draws)
        renderings, similarity, diversity = self._render(texts, batch.shown_features)
        spent = (self.generator.counter.forward - before) // len(texts)  # each image costs the same
        clip_text = (self.scorer.text_features(texts) * batch.shown_features).sum(-1).tolist()
        return [
            InversionResult(
                image_id=target.image_id,
                source=target.source,
                method=self.cfg.method.name,
                seed=self.cfg.seed,
                prompt=texts[row],
                token_ids=list(winners[row].token_ids),
                loss=losses[row],
                loss_empty=empty[row],
                clip_similarity=similarity[row],
                clip_text=clip_text[row],
                diversity=diversity[row],
                forward_samples=batch.forward[row],
                backward_samples=batch.backward[row],
                evaluation_samples=spent,
                seconds=seconds,
                peak_memory=peak_memory(),
                measured_with=self.measured_with(),
                microbatch=self.generator.microbatch.bounds(),
                content=target.key,
                cut_short=batch.cut_short,
                notes=[*target.notes, *self._split()],
                candidates=candidates[row],
                target=target.image,
                renderings=renderings[row],
            )
            for row, target in enumerate(batch.targets)
        ]

    def _split(self) -> list[str]:
        """A note where memory ran out: rows then went through in parts, which rounds differently."""
        bounds = self.generator.microbatch.bounds()
        if self.cfg.method.microbatch != "auto" or not bounds:
            return []
        parts = ", ".join(f"{kind} {rows}" for kind, rows in sorted(bounds.items()))
        return [f"memory ran out, so fewer rows went through at once ({parts}); this can change what is found"]

    def _render(self, texts: list[str], features: Tensor) -> tuple[Tensor, list[float], list[float | None]]:
        """Renderings (B, R, 3, H, W) of each text, their mean CLIP similarities (B) to `features` (B, E), those of the
        pictures or a mean of such, and, of each text, their diversity (B)."""
        count, renderings = self.cfg.evaluation.renders, self._paint(self.generator, texts)
        found = self.scorer.image_features(renderings).view(len(texts), count, -1)  # (B, R, E)
        similarity = (found * features[:, None]).sum(-1).mean(1)
        shape = (len(texts), count, *renderings.shape[1:])
        return renderings.view(shape).cpu(), similarity.tolist(), [diversity_of(some) for some in found]

    def _paint(self, generator: Generator, texts: list[str]) -> Tensor:
        """Renderings (B R, 3, H, W) of texts by one of the generators, each text by the R fixed seeds."""
        count = self.cfg.evaluation.renders
        seeds = [self.cfg.seed + 1000 + k for k in range(count)]  # not the seed that the finalists were rendered with
        repeated = [text for text in texts for _ in seeds]
        options = guidance_options(self.cfg.generator)
        return paint(generator, repeated, seeds * len(texts), self.cfg.generator.steps, options)

    def _compare_with_captions(self, batch: Batch, results: list[InversionResult], draws: Draws) -> None:
        """Fill in the values that need a true caption, for the images that have one."""
        read: dict[int, str] = {}
        for row, target in enumerate(batch.targets):
            if target.caption:
                text, note = readable(self.generator, target.caption)
                results[row].notes += [f"true caption {note}"] if note else []
                read |= {row: text} if text else {}
        if not read:
            return
        rows, captions = torch.tensor(list(read), device=batch.latents.device), list(read.values())
        before = self.generator.counter.forward
        losses = text_losses(self.generator, batch.latents[rows], captions, draws[rows])
        renderings, similarity, _ = self._render(captions, batch.shown_features[rows])
        spent = (self.generator.counter.forward - before) // len(captions)
        for k, row in enumerate(read):
            result, target = results[row], batch.targets[row]
            result.caption, result.words, result.loss_caption = target.caption, target.words or (), losses[k]
            result.clip_similarity_caption, result.caption_renderings = similarity[k], renderings[k]
            result.evaluation_samples += spent

    def _compare_with_references(self, batch: Batch, results: list[InversionResult], draws: Draws) -> None:
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
            before = self.generator.counter.forward
            losses = text_losses(self.generator, batch.latents[rows], texts, draws[rows])
            result.evaluation_samples += self.generator.counter.forward - before
            features = self.judges.sentences([result.prompt, *target.references])
            result.references, result.loss_reference = list(target.references), min(losses, default=None)
            result.reference_similarity = nearest_similarity(features[0], features[1:])

    def _judge(self, batch: Batch, results: list[InversionResult]) -> None:
        """Fill in what the backbones say of prompts and renderings; none of it costs a sample of the denoiser."""
        vocabulary, judges = self.generator.vocabulary, self.judges
        for target, result in zip(batch.targets, results, strict=True):
            result.reads_back = reads_back(result.token_ids, vocabulary.decode, vocabulary.encode)
            if target.caption:
                prompt, caption = judges.sentences([result.prompt, target.caption])
                result.caption_similarity = nearest_similarity(prompt, caption[None])
            if known := [*filter(None, [target.caption]), *target.references]:
                tokens = judges.tokens(result.prompt)
                result.bertscore = max(bertscore(tokens, judges.tokens(text))[2] for text in known)
            if judges.perplexity:
                result.perplexity = judges.perplexity(result.prompt)
            assert result.renderings is not None
            painted, shown = result.renderings, [one.image[None] for one in target.shown]  # (R, 3, H, W), (1, 3, H, W)
            if judges.pictures:
                ours = judges.pictures(painted)  # (R, E)
                similarity = [cosine_similarity(ours, judges.pictures(picture), dim=-1).mean() for picture in shown]
                result.dino_similarity = fmean(map(float, similarity))
            if judges.distance:
                distances = [judges.distance(painted, picture.expand_as(painted)).mean() for picture in shown]
                result.lpips = fmean(map(float, distances))

    def _transfer(self, batch: Batch, results: list[InversionResult]) -> None:
        """Have a second generator paint the prompts with the same seeds, each as much of it as that model reads.

        Costs `renders` pictures a prompt; `evaluation_samples` counts their samples too.
        """
        painter = self.judges.painter
        if painter is None:
            return
        for row, result in enumerate(results):
            text, _ = readable(painter, result.prompt)
            if text != result.prompt:
                result.notes.append(f"of the prompt the second generator reads {text!r}")
            if text:
                before = painter.counter.forward
                found = self.scorer.image_features(self._paint(painter, [text]))  # (R, E)
                result.transfer_similarity = float((found @ batch.shown_features[row]).mean())
                result.evaluation_samples += painter.counter.forward - before

    @torch.no_grad()
    def _measure_soft_prompts(
        self, batch: Batch, results: list[InversionResult], prompts: Tensor, draws: Draws
    ) -> None:
        """Where the method ends in a continuous prompt, measure that too: the bound that its tokens aim at."""
        method = self.cfg.method
        if method.snap or method.straight_through or method.optimizer is None:
            return
        objective = DenoisingObjective(self.generator)
        for row, result in enumerate(results):
            one, before = slice(row, row + 1), self.generator.counter.forward
            tokens = torch.tensor([result.token_ids], device=prompts.device)
            result.loss_soft = float(objective(prompts[one], tokens, batch.latents[one], draws[one]))
            result.evaluation_samples += self.generator.counter.forward - before
