"""What is known of an image at the end."""

from dataclasses import dataclass, field
from typing import Any

from torch import Tensor

from ph2p.inversion.selection import Candidate


@dataclass
class InversionResult:
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


def as_record(result: InversionResult) -> dict[str, Any]:
    """The result as one line of `results/part-*.jsonl`: everything but tensors, curve and candidates."""
    left_out = ("loss_curve", "search_curve", "candidates", "target", "pictures", "caption_pictures")
    return {"status": "ok", "error": None} | {k: v for k, v in vars(result).items() if k not in left_out}
