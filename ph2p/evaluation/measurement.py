"""What a found prompt is worth: losses on fresh draws, pictures with fixed seeds, words, against the true caption."""

from dataclasses import dataclass

import torch
from omegaconf import DictConfig
from torch import Tensor

from ph2p.evaluation.metrics import cosine_similarity, regret, rouge, word_recall
from ph2p.evaluation.result import InversionResult
from ph2p.evaluation.texts import readable, text_losses
from ph2p.inversion.batch import Batch
from ph2p.inversion.draws import Draws
from ph2p.inversion.objectives import DenoisingObjective
from ph2p.inversion.selection import Candidate
from ph2p.models.generators import Generator
from ph2p.models.microbatch import peak_memory
from ph2p.models.painting import guidance_options, paint
from ph2p.models.scorer import Scorer


@dataclass
class Measurement:
    """Measures the winners of image batches, all by the same draws and seeds."""

    generator: Generator
    scorer: Scorer
    cfg: DictConfig

    def __call__(
        self, batch: Batch, candidates: list[list[Candidate]], prompts: Tensor, curves: Tensor, seconds: float
    ) -> list[InversionResult]:
        """Losses on fresh draws and pictures with fixed seeds, of the winners and of the true captions."""
        cfg, texts = self.cfg, [row[0].text for row in candidates]
        draws = batch.draws(cfg.seed, "evaluation", cfg.evaluation.draws, cfg.evaluation.timesteps)
        losses = text_losses(self.generator, batch.latents, texts, draws)
        empty = text_losses(self.generator, batch.latents, [""] * len(texts), draws)
        pictures, similarity = self._paint(texts, batch.features)
        results = [
            InversionResult(
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
        options = guidance_options(self.cfg.generator)
        pictures = paint(self.generator, repeated, seeds * len(texts), self.cfg.generator.steps, options)
        painted = self.scorer.image_features(pictures).view(len(texts), count, -1)
        similarity = cosine_similarity(painted, features[:, None]).mean(1)
        return pictures.view(len(texts), count, *pictures.shape[1:]).cpu(), similarity.tolist()

    def _compare_with_captions(self, batch: Batch, results: list[InversionResult], draws: Draws) -> None:
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
            losses = text_losses(self.generator, batch.latents[rows], texts, draws[rows])
            prompt, *others = self.scorer.text_features([result.prompt, *target.references])
            result.references, result.loss_reference = list(target.references), min(losses, default=None)
            result.reference_similarity = float(cosine_similarity(prompt, torch.stack(others)).max())
            result.reference_rouge1, result.reference_rouge_l = rouge(result.prompt, target.references)
            result.evaluation_samples += len(texts) * self.cfg.evaluation.draws

    @torch.no_grad()
    def _measure_soft_prompts(self, batch: Batch, results: list[InversionResult], prompts: Tensor, draws: Draws) -> None:
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
