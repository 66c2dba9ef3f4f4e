"""What any text is worth for a picture: found prompts and sentences typed by hand on the same draws."""

from collections.abc import Sequence
from dataclasses import dataclass

from torch.nn.functional import cosine_similarity

from ph2p.config.schema import EvaluationConfig
from ph2p.data import Target
from ph2p.evaluation.formatting import decimal, finite, loss, percent, visible
from ph2p.evaluation.metrics import gap_closed
from ph2p.evaluation.texts import readable, text_losses
from ph2p.inversion.draws import make_draws
from ph2p.models.generators import Generator
from ph2p.models.scorer import Scorer


@dataclass(frozen=True)
class TextScore:
    """A text's denoising loss for a picture, and what it makes of the loss without words.

    `gap_closed` is the part of the loss without words that the text takes away: at or below 0 it is no better than no
    words. `clip_similarity`, in [-1, 1], is that of picture and text. `note` says what of the text was not read.
    """

    text: str
    loss: float
    loss_empty: float
    gap_closed: float
    clip_similarity: float
    note: str = ""


def score_texts(
    generator: Generator, scorer: Scorer, target: Target, texts: Sequence[str], how: EvaluationConfig, seed: int
) -> list[TextScore]:
    """Score `texts` for a picture, in their order, on the draws that a run with this `seed` measures its prompts on.

    Costs N forward samples a text and N for no words. A text that the model cannot read has the loss nan.
    """
    latents = generator.encode_images(target.image[None].to(generator.device))  # (1, C, h, w)
    window, shape = (how.timesteps[0], how.timesteps[1]), latents.shape[1:]
    draws = make_draws(seed, [target.key], ("evaluation",), how.draws, window, shape).to(latents.device)
    (empty,) = text_losses(generator, latents, [""], draws)
    picture = scorer.image_features(target.image[None].to(generator.device))  # (1, E)
    similarity = cosine_similarity(scorer.text_features(list(texts)), picture, dim=-1).tolist()
    scores = []
    for text, cosine in zip(texts, similarity, strict=True):
        read, note = readable(generator, text) if text else ("", "")
        loss = text_losses(generator, latents, [read], draws)[0] if read or not text else float("nan")
        scores.append(TextScore(text, loss, empty, gap_closed(loss, empty), cosine, note))
    return scores


def as_lines(scores: Sequence[TextScore]) -> list[str]:
    """The scores for a terminal: a line each, after one for no words; what is no better than these says so."""
    lines = [f"loss {loss(scores[0].loss_empty)}  no words"]
    for score in scores:
        worth = f"gap closed {percent(finite(score.gap_closed)):>5}  CLIP {decimal(finite(score.clip_similarity))}"
        notes = [score.note] if score.note else []
        notes += ["no better than no words"] if score.loss >= score.loss_empty else []
        lines.append(
            "  ".join(
                [f"loss {loss(finite(score.loss))}", worth, visible(score.text), *(f"({note})" for note in notes)]
            )
        )
    return lines
