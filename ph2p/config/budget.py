"""How a budget of denoiser samples becomes epochs of the optimiser and rounds of the search."""

import math
from dataclasses import dataclass

from ph2p.config.method import MethodConfig, SearchConfig
from ph2p.errors import UserError


@dataclass(frozen=True)
class Plan:
    """What a budget pays for."""

    epochs: int  # of the optimiser
    rounds: int  # of the search


def plan(method: MethodConfig) -> Plan:
    """Divide a method's budget between optimisation, search and selection.

    The selection costs shortlist x draws forward samples, draws more for no words where words have a price or fluency
    counts, rewordings x draws where that does, and finalists x steps x 2 for the renderings of the rule "renderings"
    (twice for the guidance); the rule "released" costs shortlist x steps x 2 alone, "clip_text" nothing.
    An evaluation of the objective costs N forward and N backward samples a restart, judging the start or one of an
    epoch's projections `judge_draws` forward samples a restart; after half the epochs only `kept_starts` of them go on.
    A CLIP evaluation is charged like one of the denoiser, so that methods of the same budget take as many steps.
    Raises UserError when the budget does not pay for one epoch, or for the selection where nothing is optimised.
    """
    search = method.search
    epoch_cost = method.restarts * _row_cost(method)
    selection = method.judge_draws * method.restarts + selection_cost(method)
    rest, enough, rounds = method.budget - selection, selection + epoch_cost, 0
    if search:
        start = race_cost(search, search.starts) + sum(draws for _, draws in search.race)
        rounds = max(0, int((rest * search.share - start) // round_cost(search)))
        rest -= start + rounds * round_cost(search)
        # A larger budget buys more rounds too; with this much an epoch is left whether there are any or not.
        enough = selection + max(start + epoch_cost, math.ceil(epoch_cost / (1 - search.share)))
    if rest < epoch_cost:
        raise UserError(f"method.budget={method.budget}: too small for this method; give {enough} samples or more")
    return Plan(_epochs(rest, epoch_cost, kept_starts(method) * _row_cost(method)), rounds)


def selection_cost(method: MethodConfig) -> int:
    """Samples of an image's selection at most: prompts that are scored, and finalists that are rendered."""
    choice = method.selection
    rendered = {"renderings": choice.finalists, "released": choice.shortlist}.get(choice.rule, 0)
    return (_scored(method) * choice.draws if choice.validates else 0) + 2 * choice.steps * rendered


def kept_starts(method: MethodConfig) -> int:
    """How many of an image's restarts go on after half the epochs: half of them, where a judge compares them."""
    return (method.restarts + 1) // 2 if method.judge_draws else method.restarts


def first_epochs(epochs: int) -> int:
    """The epochs that all restarts take part in: half, of an odd number one more."""
    return (epochs + 1) // 2


def _epochs(samples: int, first: int, later: int) -> int:
    """The most epochs that so many samples pay for, where one of the first half costs `first`, then `later`."""
    pairs, rest = divmod(samples, first + later) if first else (0, 0)
    return 2 * pairs + (rest >= first > 0)


def _row_cost(method: MethodConfig) -> int:
    """Samples of one restart in an epoch: evaluations forward and backward, and judged projections."""
    if method.optimizer is None:
        return 0
    evaluations = method.steps * method.optimizer.get("max_eval", 1)
    return 2 * method.draws * evaluations + method.judge_draws * len(method.projection_scales)


def _scored(method: MethodConfig) -> int:
    """Prompts of an image that the selection scores at most: the shortlist, no words, and rewordings of the winner."""
    relative = method.word_price > 0 or method.fluent
    return method.selection.shortlist + relative + (method.selection.rewordings if method.fluent else 0)


def race_cost(search: SearchConfig, candidates: int) -> int:
    """Forward samples of a race of so many candidates."""
    return sum(min(most, candidates) * draws for most, draws in search.race)


def round_cost(search: SearchConfig) -> int:
    """Samples of a round at most: a gradient, forward and backward, and a race."""
    return 2 * search.draws + race_cost(search, search.race[0][0])
