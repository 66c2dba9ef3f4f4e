"""A prompt as a negative prompt: how often its concept is still there in renderings of another prompt.

Classifier-free guidance (Ho and Salimans, arXiv 2207.12598) leads away from what is predicted without words; with a
negative prompt, away from what that predicts. Whether a concept is there, CLIP says without training: its text is more
like the rendering than the text of any alternative (Radford et al., arXiv 2103.00020).
"""

from collections.abc import Sequence
from dataclasses import dataclass

from torch import Tensor

from ph2p.applications.settings import RemovalSettings
from ph2p.config.schema import GeneratorConfig
from ph2p.errors import UserError
from ph2p.evaluation.intervals import confidence_interval, proportion_interval
from ph2p.models.generators import Generator
from ph2p.models.painting import guidance_options, paint
from ph2p.models.scorer import Scorer


@dataclass(frozen=True)
class Renderings:
    """N renderings (N, 3, H, W), and of each the text, concept or alternative, that CLIP finds most like it (N)."""

    pictures: Tensor
    seen: tuple[str, ...]

    def rate(self, concept: str) -> tuple[float, float, float]:
        """How often the concept is seen, in [0, 1], with its 95 % interval (Wilson)."""
        hits = self.seen.count(concept)
        return hits / len(self.seen), *proportion_interval(hits, len(self.seen))


@dataclass(frozen=True)
class Removal:
    """Renderings of a prompt by the same seeds, without the negative prompt and with it."""

    concept: str
    before: Renderings
    after: Renderings

    def change(self) -> tuple[float, float, float]:
        """By how much the rate has changed, in [-1, 1], with its 95 % interval (bootstrap over the seeds)."""
        pairs = zip(self.before.seen, self.after.seen, strict=True)
        changes = [float(b == self.concept) - float(a == self.concept) for a, b in pairs]
        return sum(changes) / len(changes), *confidence_interval(changes)


def remove(
    generator: Generator,
    scorer: Scorer,
    painting: GeneratorConfig,
    texts: tuple[str, str],
    settings: RemovalSettings,
    seed: int = 0,
) -> Removal:
    """Render a prompt N times as `painting` says, without and with a negative prompt: `texts` are the two.

    Raises:
        UserError: no alternatives, or the model takes no negative prompt (`Generator.sample`).
    """
    prompt, negative = texts
    concept = settings.concept or negative
    if not settings.alternatives or concept in settings.alternatives:
        raise UserError(
            f"application.alternatives={settings.alternatives}: name what may be there instead of {concept}, "
            "as in application.alternatives=[red,green]"
        )
    guidance, seeds = guidance_options(painting), [seed + 1000 + k for k in range(settings.renders)]
    labels = [concept, *settings.alternatives]

    def rendered(options: dict[str, float | str]) -> Renderings:
        pictures = paint(generator, [prompt] * len(seeds), seeds, painting.steps, guidance | options)
        return Renderings(pictures.cpu(), zero_shot(scorer, pictures, labels, settings.template))

    after = rendered({"negative_prompt": negative})  # first: a model that takes none says so at once
    return Removal(concept, rendered({}), after)


def zero_shot(scorer: Scorer, pictures: Tensor, labels: Sequence[str], template: str = "{}") -> tuple[str, ...]:
    """Of each picture (N, 3, H, W) the label whose text, set into the template, CLIP finds most like it (N)."""
    texts = scorer.text_features([template.replace("{}", label) for label in labels])  # (K, E)
    best = (scorer.image_features(pictures) @ texts.T).argmax(1)
    return tuple(labels[k] for k in best.tolist())
