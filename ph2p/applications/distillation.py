"""A prompt made shorter word by word, and what each word that goes costs.

Greedy backward elimination: of all prompts with one word less, the one with the lowest exact loss stays. PEZ (Wen et
al., arXiv 2302.03668) distils prompts too: it optimises shorter ones anew, by CLIP. Here words are only left out.
"""

from collections.abc import Sequence
from dataclasses import dataclass

from torch import Tensor

from ph2p.applications.settings import DistillationSettings, require_timesteps
from ph2p.data import Target
from ph2p.errors import UserError
from ph2p.evaluation.metrics import gap_closed
from ph2p.inversion.draws import Draws, make_draws
from ph2p.inversion.prompts import prompt_losses, stacked
from ph2p.models.generators import Generator


@dataclass(frozen=True)
class Step:
    """Some of a prompt's words, in their order: their loss on draws that chose nothing, and the word that went last.

    `gap_closed` is the part of the loss without words that they take away; `removed` is "" for the whole prompt.
    """

    words: tuple[str, ...]
    removed: str
    loss: float
    gap_closed: float

    @property
    def text(self) -> str:
        return " ".join(self.words)


def distil(
    generator: Generator, target: Target, prompt: str, settings: DistillationSettings, seed: int = 0
) -> list[Step]:
    """Prompts of n, n - 1, ..., 0 of the n words (what stands between spaces) of a prompt, the best of each number.

    All prompts of a length are compared on the same N draws, and all lengths in the end on the same further ones: what
    was chosen for its luck is not measured by it. Costs N n (n + 1) / 2 forward samples, and n + 1 measurements.

    Raises:
        UserError: the prompt is empty or too long, or a timestep is none of the model's.
    """
    words = tuple(prompt.split())
    if not words:
        raise UserError("prompt: the text is empty; give at least one word")
    window = require_timesteps(settings.timesteps, generator.num_timesteps)
    latent = generator.encode_images(target.image[None].to(generator.device))  # (1, C, h, w)

    def draws(purpose: str, count: int) -> Draws:
        made = make_draws(seed, [target.key], ("distillation", purpose), count, window, latent.shape[1:])
        return made.to(latent.device)

    subsets, choosing = [words], draws("choose", settings.draws)
    removed = [""]
    while subsets[-1]:
        before = subsets[-1]
        shorter = [before[:k] + before[k + 1 :] for k in range(len(before))]
        best = int(losses_of(generator, latent, shorter, choosing).argmin())
        subsets.append(shorter[best])
        removed.append(before[best])
    losses = losses_of(generator, latent, subsets, draws("measure", settings.measure)).tolist()
    return [
        Step(some, word, loss, gap_closed(loss, losses[-1]))
        for some, word, loss in zip(subsets, removed, losses, strict=True)
    ]


def losses_of(generator: Generator, latent: Tensor, prompts: Sequence[tuple[str, ...]], draws: Draws) -> Tensor:
    """Denoising losses (K,) of prompts given as words, of a picture's latent (1, C, h, w), on draws (1, N)."""
    encode = generator.vocabulary.encode
    ids = stacked([encode(" ".join(words)) if words else [] for words in prompts])  # (K, L)
    return prompt_losses(generator, latent, ids[None].to(latent.device), draws)[0]


def shortest(steps: Sequence[Step], keep: float) -> Step:
    """The step of fewest words that keeps at least the part `keep` of what the whole prompt gains over no words."""
    whole, empty = steps[0].loss, steps[-1].loss
    return next(step for step in reversed(steps) if empty - step.loss >= keep * (empty - whole))
