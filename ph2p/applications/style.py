"""One prompt for several pictures: what they have in common, and, with negative images, not with others.

The loss of a prompt is the mean of its losses over the pictures, minus a weight times the mean over the negatives; each
noise draw is of one of them (`ph2p.inversion.draws.divided`), so a set costs what a picture costs. What holds for one
picture alone is of no use to the others, and words for what they share remain.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from ph2p.config.schema import Config
from ph2p.data import Target, TargetError, together
from ph2p.data.sets import WEIGHT
from ph2p.evaluation.result import InversionResult
from ph2p.evaluation.score import TextScore, score_texts
from ph2p.models.generators import Generator
from ph2p.models.scorer import Scorer

Invert = Callable[[Sequence[Target]], list[InversionResult | TargetError]]  # such as a `ph2p.Inverter`


@dataclass(frozen=True)
class Style:
    """The result of a set of pictures, and what its prompt is worth for each of P pictures and Q negatives alone."""

    result: InversionResult
    pictures: tuple[TextScore, ...]
    negatives: tuple[TextScore, ...]


def find_style(
    invert: Invert,
    generator: Generator,
    scorer: Scorer,
    cfg: Config,
    pictures: Sequence[Target],
    negatives: Sequence[Target] = (),
    weight: float = WEIGHT,
) -> Style:
    """The prompt of some pictures, and not of the negatives, which count `weight`, in (0, 1].

    `invert` finds it, and generator, scorer and `cfg.evaluation` measure it picture by picture. Costs what one picture
    costs; then 2 N samples a picture and negative, with N `evaluation.draws`, measure it.

    Raises:
        UserError: no pictures, a picture that is a negative too, or more of them than there are draws.
        TargetError: no prompt can be found.
    """
    (result,) = invert([together(pictures, negatives, weight)])
    if isinstance(result, TargetError):
        raise result

    def worth(targets: Sequence[Target]) -> tuple[TextScore, ...]:
        how = cfg.evaluation, cfg.seed
        return tuple(score_texts(generator, scorer, one, [result.prompt], *how)[0] for one in targets)

    return Style(result, worth(pictures), worth(negatives))
