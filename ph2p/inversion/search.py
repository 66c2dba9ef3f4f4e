"""Discrete search over prompts of any length: moves that the gradient proposes, raced on the exact denoising loss.

The gradient at a hard prompt says, to first order, what a swap of the token in place i for token v changes:
g_i . (E_v - E_i) (HotFlip, arXiv 1712.06751; GCG, arXiv 2307.15043). The first order is a poor guide over the distance
between two tokens, so it only proposes what is then raced with the true loss (`moves.py`, `racing.py`). Every round
draws its noise anew and scores again the prompt that it began with, so that luck with one draw is forgotten.

Words have a price (`price.py`): a token comes in, or stays, only where it pays that part of all that the prompt gains
over no words. So a prompt is as long as its picture needs, and it reads well where that costs little.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, fields

import torch
from torch import Tensor

from ph2p.config.method import MethodConfig, SearchConfig
from ph2p.inversion.draws import Draws, make_draws, random_generator
from ph2p.inversion.fluency import reworded
from ph2p.inversion.moves import Position, chosen_moves
from ph2p.inversion.objectives import finite_or_infinite, losses_and_gradients
from ph2p.inversion.price import Price
from ph2p.inversion.prompts import ABSENT, lengths, padded, present, prompt_losses, stacked
from ph2p.inversion.racing import Stage, race
from ph2p.models.generators import Generator
from ph2p.models.vocabulary import Vocabulary

State = dict[str, Tensor]
NEIGHBOURS = 16  # of a token, from which a move chooses


@dataclass
class Progress:
    """Where a search stands after some of its rounds: with it the rest goes on as if it had never stopped."""

    starts: Tensor  # (B, S, L) padded, what the search began with
    prompts: Tensor  # (B, 1 + rounds, L) padded, the winner of the starts first
    losses: Tensor  # (B, 1 + rounds), each on the draws of its round
    gain: Tensor  # (B,), how much lower the loss is than without words

    def state(self) -> State:
        """For a checkpoint: a few KB."""
        return dict(vars(self))

    @classmethod
    def of(cls, state: State, device: torch.device) -> "Progress":
        """What `state` gave, among other keys, on a device."""
        return cls(**{part.name: state[part.name].to(device) for part in fields(cls)})

    def add(self, prompts: Tensor, losses: Tensor) -> None:
        """Append a round's winners (B, L) with their losses (B,)."""
        self.prompts = torch.cat([self.prompts, prompts[:, None]], 1)
        self.losses = torch.cat([self.losses, losses[:, None]], 1)


class Search:
    """The search of an image batch; image b is a problem of its own.

    `latents` (B, C, h, w), or of sets (B, P, C, h, w), of images whose draws are keyed by `keys` and `seed`; their
    prompts are made of `vocabulary`, by default the generator's, hold what that requires, and pay a `price`, by default
    none. Raises UserError for a move that does not exist.
    """

    def __init__(
        self,
        generator: Generator,
        latents: Tensor,
        keys: Sequence[str],
        method: MethodConfig,
        seed: int,
        vocabulary: Vocabulary | None = None,
        price: Price | None = None,
    ) -> None:
        assert method.search is not None
        self.vocabulary = vocabulary or generator.vocabulary
        self.generator, self.latents, self.keys, self.seed = generator, latents, list(keys), seed
        self.options: SearchConfig = method.search
        self.timesteps, self.price = (method.timesteps[0], method.timesteps[1]), price or Price()
        self.stages = [Stage(*stage) for stage in self.options.race]
        self.moves = chosen_moves(self.options.moves)
        self.bounds = self.options.min_length, min(self.options.max_length, generator.max_prompt_length)

    def __call__(
        self,
        starts: Tensor,
        rounds: int,
        save: Callable[[State], None] = lambda state: None,
        state: State | None = None,
        enough: Callable[[], bool] = lambda: False,
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Improve the best of padded prompts (B, S, L): those after all rounds (B, 1 + rounds, L), their losses, and
        how much the last ones gain over no words (B,).

        `save` gets the state at the beginning and after each round; a later call goes on from it, given the same other
        arguments. It ends before the next round where that is `enough`. A round costs what
        `config.budget.round_cost` says.
        """
        progress = Progress.of(state, starts.device) if state else self._begin(starts)
        if not state:
            save(progress.state())
        for number in range(progress.losses.shape[1], rounds + 1):
            if enough():
                break
            self._round(progress, number)
            save(progress.state())
        return progress.prompts, progress.losses, progress.gain.clamp(min=0)

    def _begin(self, starts: Tensor) -> Progress:
        """Race the starts; what they gain over no words is measured on the same draws."""
        starts = padded(starts, self.options.max_length)
        draws, free = self.draws(0), self.latents.new_zeros(starts.shape[:2])
        outcome = race(self.generator, self.latents, starts, draws, self.stages, free)
        empty = prompt_losses(self.generator, self.latents, torch.full_like(starts[:, :1], ABSENT), draws)[:, 0]
        best = starts[torch.arange(len(starts)), outcome.winner]
        gain = torch.where((empty - outcome.loss).isfinite(), empty - outcome.loss, 0)
        return Progress(starts, best[:, None], outcome.loss[:, None], gain)

    def _round(self, progress: Progress, number: int) -> None:
        """Propose, race, and keep the winner, which may be the prompt that the round began with."""
        draws = self.draws(number)
        candidates = self.propose(progress, draws[:, -self.options.draws :], number)  # (B, K, L)
        prices = torch.stack([self.price.of(row, self.vocabulary, self.latents) for row in candidates])  # (B, K)
        charge = prices * progress.gain.clamp(min=0)[:, None]
        outcome = race(self.generator, self.latents, candidates, draws, self.stages, charge)
        change = outcome.first_loss - outcome.loss
        progress.gain = progress.gain + torch.where(change.isfinite(), change, 0)
        progress.add(candidates[torch.arange(len(candidates)), outcome.winner], outcome.loss)

    def _reworded(self, tokens: Tensor, count: int) -> list[Tensor]:
        """At most `count` rewordings of tokens (M,)."""
        text = self.vocabulary.decode(tokens)
        return [torch.tensor(ids) for ids in reworded(self.price.fluency, self.vocabulary, text, count, self.bounds)]

    def draws(self, number: int) -> Draws:
        """The draws of a round, stage after stage, each with timesteps from the whole range."""
        shape = self.latents.shape[-3:]
        stages = [
            make_draws(self.seed, self.keys, ("search", number, k), stage.draws, self.timesteps, shape)
            for k, stage in enumerate(self.stages)
        ]
        return Draws.joined(stages).to(self.latents.device)

    def propose(self, progress: Progress, draws: Draws, number: int) -> Tensor:
        """The prompts as they stand, first, and what the moves make of them: (B, K, L) padded.

        Where moves find less than K - 1, the prompt itself fills up; it is scored once.
        """
        prompts, size = progress.prompts[:, -1], self.stages[0].candidates
        scores = swap_scores(self.generator, self.vocabulary, self.latents, prompts, draws).cpu()  # (B, L, A)
        allowed, required = self.vocabulary.allowed_ids.cpu(), frozenset(self.vocabulary.required_ids.tolist())
        rows = []
        for row, key in enumerate(self.keys):
            prompt, chance = present(prompts[row]).cpu(), random_generator(self.seed, key, ("moves", number))
            others = [present(start).cpu() for start in progress.starts[row]]
            near = self.vocabulary.neighbours(present(prompts[row]), NEIGHBOURS).cpu()
            worth = scores[row, : len(prompt)]
            at = Position(prompt, worth, allowed, others, near, self.bounds, chance, required, self._reworded)
            found = [prompt, *(changed for move, count in self.moves for changed in move(at, count))][:size]
            rows.append(stacked([*found, *[prompt] * (size - len(found))], prompts.shape[1]))
        return torch.stack(rows).to(prompts.device)


def swap_scores(generator: Generator, vocabulary: Vocabulary, latents: Tensor, prompts: Tensor, draws: Draws) -> Tensor:
    """First-order change of the loss (B, L, A) for every place and every allowed token; inf where there is none."""
    allowed = vocabulary.embed(vocabulary.allowed_ids)  # (A, D)
    result = allowed.new_full((*prompts.shape, len(allowed)), torch.inf)
    size = lengths(prompts)
    for length in size.unique().tolist():
        rows = (size == length).nonzero()[:, 0]
        token_ids = prompts[rows, :length]
        prompt = vocabulary.embed(token_ids)
        _, gradient = losses_and_gradients(generator, prompt, token_ids, latents[rows], draws[rows])  # (B', M, D)
        change = gradient @ allowed.T - (gradient * prompt).sum(-1, keepdim=True)
        unchanged = token_ids[..., None] == vocabulary.allowed_ids
        result[rows, :length] = finite_or_infinite(change).masked_fill(unchanged, torch.inf)
    return result
