"""What a found prompt is worth and what it cost: one table of metrics, and the pure functions that compute them.

To add a metric, write a function and give it a line in `TABLE`: results, records, page, terminal and benchmarks read
the table. Nothing here imports torch, so that a results folder can be shown at once.
"""

import math
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from operator import attrgetter
from typing import Literal, Protocol

from ph2p.evaluation.formatting import Show, count, decimal, duration, finite, loss, percent, signed
from ph2p.evaluation.wording import fillers, repeats, whole_words, word_f1, word_precision, word_recall

Place = Literal["card", "column", "total", "benchmark"]  # a picture's card, the terminal, the page's head, compare.py


class Measured(Protocol):
    """What was measured for one image: the fields of `InversionResult` that metrics are computed from."""

    prompt: str
    loss: float
    loss_empty: float
    loss_caption: float | None
    words: tuple[frozenset[str], ...]
    references: list[str]
    clip_similarity: float
    clip_similarity_caption: float | None
    clip_text: float | None
    diversity: float | None
    caption_similarity: float | None
    bertscore: float | None
    perplexity: float | None
    reads_back: float | None
    dino_similarity: float | None
    lpips: float | None
    agreement: float | None
    transfer_similarity: float | None
    regret_curve: list[tuple[int, float]]
    forward_samples: int
    backward_samples: int
    cut_short: str


# --- the functions ------------------------------------------------------------------------------------------------


def regret(loss: float, loss_caption: float, loss_empty: float) -> float:
    """Normalised regret of a prompt: 0 is as good as the true caption, 1 no better than no words at all.

    regret = (loss(prompt) - loss(caption)) / (loss(empty) - loss(caption)); negative when the prompt is the
    better of the two, nan when the caption is no better than no words.
    """
    if loss_empty == loss_caption:
        return math.nan
    return (loss - loss_caption) / (loss_empty - loss_caption)


def gap_closed(loss: float, loss_empty: float, loss_caption: float | None = None) -> float:
    """How far a prompt comes from no words towards the true caption: at or below 0 it is no better than no words.

    gap = (loss(empty) - loss(prompt)) / (loss(empty) - loss(caption)): 1 is as good as the caption. Without a caption,
    or with one that is itself no better than no words, gap = (loss(empty) - loss(prompt)) / loss(empty), below 1.
    nan where there is no loss to close.
    """
    whole = loss_empty if loss_caption is None or not loss_caption < loss_empty else loss_empty - loss_caption
    return (loss_empty - loss) / whole if whole > 0 else math.nan


def samples_to(goal: float, curve: Sequence[tuple[int, float]]) -> float | None:
    """Denoiser samples after which a method's best prompt so far had at most this regret; None if it never had.

    `curve` lists (samples, regret of the best prompt so far). A prompt is the best by the draws the method looks at, so
    its regret on others may rise again: what counts is from where on it stays at or below the goal.
    """
    reached = None
    for samples, value in sorted(curve):
        if not value <= goal:
            reached = None
        elif reached is None:
            reached = float(samples)
    return reached


def rouge(prompt: str, references: Sequence[str]) -> tuple[float, float]:
    """ROUGE-1 and ROUGE-L of a prompt (Lin 2004), F measures in [0, 1], each against its best reference.

    ROUGE-1 compares the words whatever their order, which found prompts hardly have; ROUGE-L their longest common
    subsequence. Words of any script count, in lower case.
    """
    from torchmetrics.functional.text import rouge_score  # brings torch, which only measuring needs

    scores = rouge_score(
        prompt,
        [list(references)],
        accumulate="best",
        rouge_keys=("rouge1", "rougeL"),
        normalizer=str.lower,
        tokenizer=lambda text: re.findall(r"\w+", text),
    )
    return float(scores["rouge1_fmeasure"]), float(scores["rougeL_fmeasure"])


def clip_ratio(similarity: float, similarity_caption: float | None) -> float | None:
    """CLIP similarity of a prompt's renderings over that of the true caption's: 1 is as good as the caption."""
    return similarity / similarity_caption if similarity_caption else None


# --- the table ----------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Metric:
    """One metric: how it is computed, what is better, where and how it is shown.

    `compute` takes the measured result and returns None where the metric is not known. `over` says how several
    images become one value; `beside` names what is shown next to it: (label, key of a record), the first known.
    `bands` are the bounds of good and of fair.
    """

    key: str
    name: str
    unit: str
    better: Literal["lower", "higher", ""]
    compute: Callable[[Measured], float | None]
    show: Show
    about: str
    places: tuple[Place, ...]
    over: Literal["mean", "median", "sum"] = "mean"
    beside: tuple[tuple[str, str], ...] = ()
    bands: tuple[float, float] | None = None

    def grade(self, value: float | None) -> str:
        """Where a value lies by the metric's bands: good, fair or poor; empty without value or bands."""
        if value is None or self.bands is None:
            return ""
        sign = -1 if self.better == "higher" else 1
        good, fair = (sign * bound for bound in self.bands)
        return "good" if sign * value <= good else "fair" if sign * value <= fair else "poor"


def _known(key: str) -> Callable[[Measured], float | None]:
    """A metric that the measurement itself gives, as the field `key` of the result."""
    return attrgetter(key)


TABLE = (
    Metric("loss", "loss", "squared error", "lower", _known("loss"), loss,
           "How well the frozen model predicts the noise in the noised target when it is given the prompt.",
           ("card", "column"), beside=(("caption", "loss_caption"), ("best reference", "loss_reference"))),
    Metric("gap_closed", "gap closed", "", "higher",
           lambda r: gap_closed(r.loss, r.loss_empty, r.loss_caption), percent,
           "How much of the gap between no words and the true caption the prompt closes; without a caption, of the "
           "loss without words. At or below 0 the prompt is no better than no words. A true sentence can be there too, "
           "where this model reads its words otherwise: the loss asks what predicts the noise, not what is true.",
           ("card", "column", "total", "benchmark"), "median", (("empty prompt", "loss_empty"),)),
    Metric("regret", "regret", "", "lower",
           lambda r: None if r.loss_caption is None else regret(r.loss, r.loss_caption, r.loss_empty), signed,
           "(loss − loss of the true caption) / (loss of the empty prompt − loss of the true caption): "  # noqa: RUF001
           "0 is as good as the true caption, 1 no better than nothing. Below 0 it predicts the noise better than the "
           "true caption, which says nothing against the caption: another wording suits this model more.",
           ("card", "column", "total", "benchmark"), "median", bands=(0.05, 0.5)),
    Metric("loss_soft", "soft prompt’s loss", "squared error", "lower", _known("loss_soft"), loss,  # noqa: RUF001
           "Loss of the continuous prompt that the method ends with: the bound its tokens aim at.", ("card",)),
    Metric("word_recall", "words found", "", "higher", lambda r: word_recall(r.prompt, r.words) if r.words else None,
           percent, "Part of the picture’s true attributes that the prompt names; synonyms count.",  # noqa: RUF001
           ("card", "total", "benchmark")),
    Metric("word_precision", "words right", "", "higher",
           lambda r: word_precision(r.prompt, r.words) if r.words else None, percent,
           "Part of the prompt’s words that name a true attribute; words such as “the” or “background” "  # noqa: RUF001
           "count neither way.",
           ("card",)),
    Metric("word_f1", "words F1", "F measure", "higher", lambda r: word_f1(r.prompt, r.words) if r.words else None,
           decimal, "Harmonic mean of words found and words right.", ("benchmark",)),
    Metric("clip_similarity", "CLIP", "cosine", "higher", _known("clip_similarity"), decimal,
           "Cosine between the CLIP features of the target and of the renderings of the prompt, mean over renderings.",
           ("card", "column", "total"), beside=(("caption", "clip_similarity_caption"),)),
    Metric("clip_ratio", "CLIP over caption's", "", "higher",
           lambda r: clip_ratio(r.clip_similarity, r.clip_similarity_caption), decimal,
           "CLIP similarity over that of the true caption’s renderings.", ("benchmark",)),  # noqa: RUF001
    Metric("clip_text", "CLIP to the words", "cosine", "higher", _known("clip_text"), decimal,
           "Cosine between the CLIP features of the target and of the prompt itself; it says little about renderings.",
           ("card",)),
    Metric("diversity", "diversity", "1 − cosine", "", _known("diversity"), decimal,  # noqa: RUF001
           "One minus the mean CLIP similarity of each two renderings: how much the prompt leaves open.", ("card",)),
    Metric("dino_similarity", "DINOv2", "cosine", "higher", _known("dino_similarity"), decimal,
           "Cosine between the DINOv2 features of the target and of the renderings, mean over renderings.", ("card",)),
    Metric("lpips", "LPIPS", "distance", "lower", _known("lpips"), decimal,
           "Perceptual distance of the target to the renderings, mean over renderings.", ("card",)),
    Metric("transfer_similarity", "CLIP elsewhere", "cosine", "higher", _known("transfer_similarity"), decimal,
           "Cosine between the CLIP features of the target and of what a second generator paints by the same prompt "
           "and seeds, mean over renderings.", ("card", "column", "total"), beside=(("here", "clip_similarity"),)),
    Metric("caption_similarity", "likeness to the caption", "cosine", "higher", _known("caption_similarity"), decimal,
           "Cosine between the text features of the prompt and of the true caption.", ("card",)),
    Metric("bertscore", "BERTScore", "F measure", "higher", _known("bertscore"), decimal,
           "Tokens of prompt and nearest caption, each matched with the most similar one of the other.", ("card",)),
    Metric("reference_similarity", "CLIP text", "cosine", "higher", _known("reference_similarity"), decimal,
           "Cosine between the CLIP text features of the prompt and of the nearest thing that people wrote.",
           ("card", "column", "total")),
    Metric("reference_rouge1", "ROUGE-1", "F measure", "higher",
           lambda r: rouge(r.prompt, r.references)[0] if r.references else None, decimal,
           "Words that the prompt has in common with the nearest thing that people wrote.", ("card", "total")),
    Metric("reference_rouge_l", "ROUGE-L", "F measure", "higher",
           lambda r: rouge(r.prompt, r.references)[1] if r.references else None, decimal,
           "The same, words in the same order.", ("card",)),
    Metric("prompt_words", "length", "words", "", lambda r: float(len(r.prompt.split())), count,
           "Words of the prompt.", ("card",)),
    Metric("whole_words", "whole words", "", "higher", lambda r: whole_words(r.prompt), percent,
           "Part of the prompt’s words that look like those of a dictionary.", ("card",)),  # noqa: RUF001
    Metric("reads_back", "tokens that read back", "", "higher", _known("reads_back"), percent,
           "Part of the prompt’s tokens that somebody who types their text gets again.", ()),  # noqa: RUF001
    Metric("perplexity", "perplexity", "", "lower", _known("perplexity"), count,
           "How surprised a language model is by the prompt’s words: 1 for what it knows by heart.",  # noqa: RUF001
           ("card",), "median"),
    Metric("repeats", "repeats", "", "lower", lambda r: repeats(r.prompt), percent,
           "Part of the prompt’s words that it has said before.", ()),  # noqa: RUF001
    Metric("fillers", "fillers", "", "lower", lambda r: fillers(r.prompt), percent,
           "Part of the prompt’s words that only join others, as articles do.", ()),  # noqa: RUF001
    Metric("agreement", "starts agree", "", "higher", _known("agreement"), percent,
           "Part of their words that the best prompts of two starts have in common, mean over all pairs of starts. "
           "Where it is low, what was found hangs on luck.", ("card", "total")),
    Metric("samples_to_tenth", "samples to regret 0.1", "denoiser samples", "lower",
           lambda r: samples_to(0.1, r.regret_curve), count,
           "After so many samples the best prompt so far was within a tenth of the true caption.", (), "median"),
    Metric("samples_to_zero", "samples to regret 0", "denoiser samples", "lower",
           lambda r: samples_to(0.0, r.regret_curve), count,
           "After so many samples the best prompt so far was as good as the true caption.", (), "median"),
    Metric("samples", "samples", "denoiser samples", "lower", lambda r: r.forward_samples + r.backward_samples, count,
           "Noisy latents that went through the denoiser to find the prompt, forward and backward.",
           ("card", "column", "total", "benchmark"), "sum", (("backward", "backward_samples"),)),
    Metric("evaluation_samples", "to measure it", "denoiser samples", "", _known("evaluation_samples"), count,
           "Noisy latents that went through the denoiser to measure and render what was found.", ("card",), "sum"),
    Metric("seconds", "time", "", "lower", _known("seconds"), duration,
           "An image’s part of its batch’s time.", ("card", "column", "total", "benchmark"), "sum"),  # noqa: RUF001
    Metric("peak_memory", "peak memory", "MiB", "lower", _known("peak_memory"), count,
           "The most memory that the process has taken so far.", ("card",)),
)  # fmt: skip
METRICS = {metric.key: metric for metric in TABLE}


def metrics_of(result: Measured) -> dict[str, float | None]:
    """Every metric of the table for one image; None where one is not known or not finite."""
    return {metric.key: finite(metric.compute(result)) for metric in TABLE}


def value_of(result: Measured, key: str) -> float | None:
    """One metric of the table for one image."""
    return finite(METRICS[key].compute(result))


def shown_in(place: Place) -> list[Metric]:
    """The metrics that are shown in a place, in the table's order."""
    return [metric for metric in TABLE if place in metric.places]
