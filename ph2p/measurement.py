"""What a found prompt is worth: losses on fresh draws, pictures with fixed seeds, words, against the true caption."""

from dataclasses import dataclass, field
from typing import Any

import torch
from omegaconf import DictConfig
from torch import Tensor

from ph2p.batch import Batch
from ph2p.data import Draws
from ph2p.evaluation import Candidate, guidance_options, paint, readable, text_losses
from ph2p.generators import Generator
from ph2p.memory import peak_memory
from ph2p.metrics import cosine_similarity, regret, rouge, word_recall
from ph2p.objectives import DenoisingObjective
from ph2p.scorer import Scorer


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


@dataclass
class Measurement:
    """Measures the winners of image batches, all by the same draws and seeds."""

    generator: Generator
    scorer: Scorer
    cfg: DictConfig

    def __call__(
        self, batch: Batch, candidates: list[list[Candidate]], prompts: Tensor, curves: Tensor, seconds: float
    ) -> list[Inversion]:
        """Losses on fresh draws and pictures with fixed seeds, of the winners and of the true captions."""
        cfg, texts = self.cfg, [row[0].text for row in candidates]
        draws = batch.draws(cfg.seed, "evaluation", cfg.evaluation.draws, cfg.evaluation.timesteps)
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
        options = guidance_options(self.cfg.generator)
        pictures = paint(self.generator, repeated, seeds * len(texts), self.cfg.generator.steps, options)
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
