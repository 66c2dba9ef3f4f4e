"""How a prompt came about, as a results folder keeps it and a page draws it."""

from dataclasses import dataclass, field
from typing import Literal

Hard = Literal["first of each epoch", "first", "all"]


@dataclass
class Trail:
    """How the prompt of one image came about; of several restarts the first that went on to the end.

    `losses` has an entry an evaluation of the objective, each on the draws of its epoch and as the method smooths it;
    `ends` counts the evaluations at each epoch's end, where the prompt is projected. `projected` are the tokens of
    each projection, those that the optimisation starts from first, and `judged` their losses on the judge's draws,
    which stay the same; empty without a judge. `rounds` are the tokens after each round of the search, its start first.
    `hard` says which evaluations are of real tokens: the first of each epoch, the very first alone, or all.
    """

    losses: list[float] = field(default_factory=list)
    ends: list[int] = field(default_factory=list)
    projected: list[list[str]] = field(default_factory=list)
    judged: list[float] = field(default_factory=list)
    rounds: list[list[str]] = field(default_factory=list)
    hard: Hard = "first of each epoch"
    restarts: int = 1
