"""`InversionResult`: what is known of an image at the end, and how a results folder records it."""

from collections.abc import Sequence
from dataclasses import asdict, dataclass, field, fields
from typing import Any

from torch import Tensor

from ph2p.evaluation.failures import warnings_of
from ph2p.evaluation.formatting import finite
from ph2p.evaluation.metrics import metrics_of, value_of
from ph2p.inversion.selection import Candidate, different
from ph2p.inversion.trail import Trail


@dataclass(repr=False)
class InversionResult:
    """The prompt found for one image, what it is worth and what it cost.

    Losses are mean squared denoising errors on the evaluation draws, which chose nothing. What needs a true caption
    or references is None for images without. What follows from these fields, such as `gap_closed`, is in `metrics`.
    """

    image_id: str
    source: str  # where the picture was read from
    method: str  # the method's label
    seed: int
    prompt: str  # real tokens of the model's vocabulary, as text
    token_ids: list[int]  # (M)
    loss: float  # of the prompt
    loss_empty: float  # of no words
    clip_similarity: float  # target and renderings of the prompt, mean over the renderings, in [-1, 1]
    forward_samples: int  # samples that went forward through the denoiser until the prompt was found
    backward_samples: int  # and backward
    evaluation_samples: int  # samples that went through it afterwards, to measure and to render
    seconds: float  # the image's part of its batch's time
    peak_memory: int  # MiB, the most that the process has taken so far, on a GPU, otherwise of main memory
    measured_with: dict[str, Any] = field(default_factory=dict)  # draws, timesteps, renderings, steps, scorer, ...
    microbatch: dict[str, int] = field(default_factory=dict)  # what bounded the rows at once; empty: nothing
    content: str = ""  # hash of the picture as the model saw it
    caption: str | None = None  # a true caption, which names everything there is to see
    words: tuple[frozenset[str], ...] = ()  # a set of accepted synonyms for each true attribute
    loss_caption: float | None = None
    clip_similarity_caption: float | None = None  # as `clip_similarity`, of the caption's renderings
    clip_text: float | None = None  # CLIP features of target and prompt, in [-1, 1]
    diversity: float | None = None  # 1 - mean CLIP similarity of two of the renderings; None of one alone
    regret_curve: list[tuple[int, float]] = field(default_factory=list)  # (samples, regret so far), if it was followed
    references: list[str] = field(default_factory=list)  # what people wrote about the picture
    loss_reference: float | None = None  # the lowest of the references' losses
    reference_similarity: float | None = None  # CLIP text features, prompt and nearest reference, in [-1, 1]
    caption_similarity: float | None = None  # text features of prompt and true caption, in [-1, 1]
    bertscore: float | None = None  # F1 of token features, prompt and the nearest of true caption and references
    perplexity: float | None = None  # of the prompt, by the language model that was asked for
    reads_back: float | None = None  # part of the tokens whose own text is read as just this token
    dino_similarity: float | None = None  # target and renderings by DINOv2, mean over the renderings, in [-1, 1]
    lpips: float | None = None  # distance of target and renderings, mean over the renderings
    agreement: float | None = None  # of the words that several starts found, in [0, 1]; None: there was one
    transfer_similarity: float | None = None  # as `clip_similarity`, of what a second generator paints
    together: list[str] = field(default_factory=list)  # where the pictures of a set were read from; []: one picture
    negatives: list[str] = field(default_factory=list)  # where its negatives were read from
    alternatives: list[dict[str, Any]] = field(default_factory=list)  # other prompts: prompt, loss, gap_closed
    cut_short: str = ""  # why optimisation or search ended before their plan; empty: they did not
    notes: list[str] = field(default_factory=list)  # what was cut, or could not be measured
    loss_soft: float | None = None  # of the continuous prompt, for methods that end with one
    loss_curve: list[float] = field(default_factory=list)  # an entry an epoch, on its own draws
    search_curve: list[float] = field(default_factory=list)  # an entry a round, the start first; on the search's draws
    trail: Trail | None = None  # what the prompt has passed through; None: a record of before it was kept
    candidates: list[Candidate] = field(default_factory=list)  # the winner first, losses on the validation draws
    target: Tensor | None = None  # (3, H, W) in [0, 1]
    renderings: Tensor | None = None  # (R, 3, H, W) in [0, 1], made from the prompt
    caption_renderings: Tensor | None = None  # the same from the true caption

    @property
    def metrics(self) -> dict[str, float | None]:
        """Every metric of `ph2p.evaluation.metrics.TABLE` by its key; None where one is not known."""
        return metrics_of(self)

    @property
    def gap_closed(self) -> float | None:
        """How far the prompt comes from no words (0) to the true caption (1); see `metrics.gap_closed`."""
        return value_of(self, "gap_closed")

    @property
    def regret(self) -> float | None:
        """0: as good as the true caption; 1: no better than no words; None without a caption."""
        return value_of(self, "regret")

    @property
    def word_recall(self) -> float | None:
        """Part of the true attributes that the prompt names; None where they are not known."""
        return value_of(self, "word_recall")

    @property
    def warnings(self) -> list[str]:
        """What to know before trusting the prompt; empty where all is well."""
        return warnings_of(self)

    def __repr__(self) -> str:
        gap = "unknown" if self.gap_closed is None else f"{self.gap_closed:.0%}"
        warning = "".join(f", warning: {text}" for text in self.warnings)
        return f"InversionResult({self.image_id!r}, {self.prompt!r}, loss {self.loss:.4f}, gap closed {gap}{warning})"


BESIDE = ("loss_curve", "search_curve", "trail", "candidates", "target", "renderings", "caption_renderings", "words")


def alternatives_of(candidates: Sequence[Candidate], count: int) -> list[dict[str, Any]]:
    """The best of `candidates` that differ enough from the first, the winner, and from each other: `count` - 1 at most.

    Losses are those on the validation draws that chose; `gap_closed` is None where no words were not scored on them.
    """
    return [
        {"prompt": one.text, "loss": finite(one.loss), "gap_closed": one.gap_closed}
        for one in different(candidates, count)[1:]
    ]


def as_record(result: InversionResult) -> dict[str, Any]:
    """The result as one line of `results/part-*.jsonl`: everything but tensors, curves, candidates and true words."""
    known = {f.name: getattr(result, f.name) for f in fields(result) if f.name not in BESIDE}
    derived = {key: value for key, value in result.metrics.items() if key not in known}
    return {"status": "ok", "error": None} | known | derived | {"warnings": result.warnings}


def as_candidates(result: InversionResult) -> dict[str, Any]:
    """The content of `candidates/<slug>.json`: curves, and the candidates with the winner first."""
    rows = [
        {
            "prompt": c.text,
            "token_ids": list(c.token_ids),
            "loss": c.loss,
            "clip_similarity": c.clip_similarity,
            "epoch": c.epoch,
        }
        for c in result.candidates
    ]
    curves = {"loss_curve": result.loss_curve, "search_curve": result.search_curve}
    return curves | ({"trail": asdict(result.trail)} if result.trail else {}) | {"candidates": rows}


def pictures(result: InversionResult) -> dict[str, Tensor]:
    """The pictures of a result by their key in the record's `files`: (3, H, W) the target, (R, 3, H, W) the others."""
    found = {name: getattr(result, name) for name in ("target", "renderings", "caption_renderings")}
    return {name: tensor for name, tensor in found.items() if tensor is not None}
