"""Moves of the discrete search: each proposes changed prompts.

A new move is a function and a line in `MOVES`; `method.search.moves` says how often a round proposes it.

Symbols: M tokens of the prompt, A allowed tokens, K proposals.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import pairwise

import torch
from torch import Tensor

from ph2p.errors import UserError


@dataclass(frozen=True)
class Position:
    """Where a search stands, and what a move may know of it."""

    prompt: Tensor  # (M,) token ids
    scores: Tensor  # (M, A), first-order change of the loss by every swap
    allowed: Tensor  # (A,) token ids
    others: Sequence[Tensor]  # (M',) token ids each: other good prompts of the image
    neighbours: Tensor  # (M, W) token ids, of each token the nearest other allowed ones
    bounds: tuple[int, int]  # on M
    chance: torch.Generator  # on the CPU
    required: frozenset[int] = frozenset()  # token ids of which one must stay in the prompt
    # What a language model makes of some of the given tokens: at most so many prompts, for `reword`.
    reworded: Callable[[Tensor, int], list[Tensor]] = lambda tokens, count: []

    @cached_property
    def free(self) -> list[int]:
        """The places whose token may go: all but the first one of every required token."""
        ids = self.prompt.tolist()
        return [place for place, token in enumerate(ids) if token not in self.required or token in ids[:place]]

    @cached_property
    def known(self) -> Tensor:
        """(W,) token ids of the other prompts, often ones several times."""
        return torch.cat(list(self.others))

    def shuffled(self, places: Sequence[int], count: int) -> list[int]:
        """Up to `count` different ones of some places, at random."""
        return [places[k] for k in torch.randperm(len(places), generator=self.chance)[:count].tolist()]

    def some_free(self, count: int) -> list[int]:
        """`count` free places, at random; none where there are none."""
        return [self.free[k] for k in self.numbers(count, len(self.free))]

    def numbers(self, count: int, below: int) -> list[int]:
        """`count` random whole numbers in [0, below)."""
        return torch.randint(below, (count,), generator=self.chance).tolist() if below else []

    def new(self, count: int) -> Tensor:
        """Tokens (count,) to put in: half of them those that do best as swaps, half of other good prompts."""
        best = self.allowed[self.scores.amin(0).argsort()[: count - count // 2]]
        return torch.cat([best, self.known[self.numbers(count // 2, len(self.known))]])

    def swapped(self, place: int, token: Tensor) -> Tensor:
        """The prompt with another token in one place."""
        changed = self.prompt.clone()
        changed[place] = token
        return changed


Move = Callable[[Position, int], list[Tensor]]  # at most so many prompts


def swap(at: Position, count: int) -> list[Tensor]:
    """The swaps of one token that lower the loss most to first order (HotFlip, arXiv 1712.06751)."""
    scores = at.scores[at.free].flatten()
    best = scores.topk(min(count, scores.numel()), largest=False).indices.tolist()
    found = (divmod(k, len(at.allowed)) for k in best)
    return [at.swapped(at.free[row], at.allowed[column]) for row, column in found]


def double(at: Position, count: int) -> list[Tensor]:
    """The best swap of one place together with that of another: neighbours in the ranking of the places."""
    best, found = at.scores.min(1), []
    order = [at.free[k] for k in best.values[at.free].argsort().tolist()[: count + 1]]
    for first, second in pairwise(order):
        changed = at.swapped(first, at.allowed[best.indices[first]])
        changed[second] = at.allowed[best.indices[second]]
        found.append(changed)
    return found


def delete(at: Position, count: int) -> list[Tensor]:
    """One token less, in random places."""
    if len(at.prompt) <= at.bounds[0]:
        return []
    return [torch.cat([at.prompt[:k], at.prompt[k + 1 :]]) for k in at.shuffled(at.free, count)]


def insert(at: Position, count: int) -> list[Tensor]:
    """One token more, in random places: half of them tokens that do best as swaps, half of other good prompts."""
    if len(at.prompt) >= at.bounds[1]:
        return []
    tokens = at.new(count)
    places = at.numbers(len(tokens), len(at.prompt) + 1)
    return [torch.cat([at.prompt[:k], token[None], at.prompt[k:]]) for k, token in zip(places, tokens, strict=True)]


def reword(at: Position, count: int) -> list[Tensor]:
    """Some of the words, and words that join them, as a language model would put them (`fluency.py`).

    In half of them there is a token more, one that does well as a swap or one of another good prompt.
    """
    found, extra = at.reworded(at.prompt, count - count // 2), at.new(count // 2)
    for token in extra:
        some = at.reworded(torch.cat([at.prompt, token[None]]), count)
        found += [prompt for prompt in some if token in prompt][:1]
    return found


def splice(at: Position, count: int) -> list[Tensor]:
    """Two or three tokens that stand together in another good prompt, in a random place: `purple background`, say."""
    found, room = [], at.bounds[1] - len(at.prompt)
    for one in at.numbers(count if room >= 2 else 0, len(at.others)):
        other, size = at.others[one], 2 + at.numbers(1, min(2, room - 1))[0]
        if len(other) >= size:
            (begin,), (place,) = at.numbers(1, len(other) - size + 1), at.numbers(1, len(at.prompt) + 1)
            found.append(torch.cat([at.prompt[:place], other[begin : begin + size], at.prompt[place:]]))
    return found


def borrow(at: Position, count: int) -> list[Tensor]:
    """A token of another good prompt of the image, in a random place."""
    tokens = at.known[at.numbers(count, len(at.known))]
    return [at.swapped(place, token) for place, token in zip(at.some_free(len(tokens)), tokens, strict=False)]


def exchange(at: Position, count: int) -> list[Tensor]:
    """Two tokens change their places."""
    found = []
    for _ in range(count if len(at.prompt) > 1 else 0):
        first, second = at.shuffled(range(len(at.prompt)), 2)
        changed = at.swapped(first, at.prompt[second])
        changed[second] = at.prompt[first]
        found.append(changed)
    return found


def shift(at: Position, count: int) -> list[Tensor]:
    """One token moves to another place."""
    found = []
    for _ in range(count if len(at.prompt) > 1 else 0):
        source, target = at.shuffled(range(len(at.prompt)), 2)
        rest = torch.cat([at.prompt[:source], at.prompt[source + 1 :]])
        found.append(torch.cat([rest[:target], at.prompt[source : source + 1], rest[target:]]))
    return found


def neighbour(at: Position, count: int) -> list[Tensor]:
    """A token that is near in embedding space, in a random place: often a word of the same kind, such as a colour."""
    places = at.some_free(count)
    columns = at.numbers(len(places), at.neighbours.shape[1])
    return [at.swapped(place, at.neighbours[place, k]) for place, k in zip(places, columns, strict=False)]


def random(at: Position, count: int) -> list[Tensor]:
    """Any allowed token in any place."""
    tokens = at.allowed[at.numbers(count, len(at.allowed))]
    return [at.swapped(place, token) for place, token in zip(at.some_free(len(tokens)), tokens, strict=False)]


# The first ones come first where there is no room for all.
MOVES: dict[str, Move] = {
    "delete": delete,
    "insert": insert,
    "reword": reword,
    "splice": splice,
    "borrow": borrow,
    "exchange": exchange,
    "shift": shift,
    "double": double,
    "neighbour": neighbour,
    "random": random,
    "swap": swap,
}


def chosen_moves(counts: Mapping[str, int]) -> list[tuple[Move, int]]:
    """The moves that the configuration names, with how many proposals of each; raises UserError for an unknown one."""
    for name in sorted(set(counts) - set(MOVES)):
        raise UserError(f"method.search.moves.{name}: no such move; choose among {', '.join(MOVES)}")
    return [(move, counts[name]) for name, move in MOVES.items() if counts.get(name)]
