"""Prompts of several pictures cross over, and those that suit all of the pictures survive: a genetic algorithm.

A generation's fittest stay (elitism); the others are children. A child takes each of its tokens from one of two parents
(uniform crossover, Syswerda, ICGA 1989), and some tokens mutate to one of their nearest neighbours in the vocabulary.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from ph2p.applications.settings import EvolutionSettings, require_timesteps
from ph2p.config.schema import GeneratorConfig
from ph2p.data import Target
from ph2p.errors import UserError
from ph2p.inversion.draws import make_draws, random_generator
from ph2p.inversion.prompts import prompt_losses, stacked
from ph2p.models.generators import Generator
from ph2p.models.painting import guidance_options, paint
from ph2p.models.scorer import Scorer
from ph2p.models.vocabulary import Vocabulary

Ids = tuple[int, ...]
TRIES = 10  # children that are tried for each that is wanted: some are known, others do not read back
Fitness = Callable[[list[Ids]], Tensor]  # of K prompts how well they suit each of P pictures: (K, P), more is better


@dataclass(frozen=True)
class Individual:
    """A prompt of a family: its number, the generation that it was born in and its parents' numbers.

    `suits` says how well it suits each picture; its `fitness` is the least of these, so that no picture is given up.
    """

    number: int
    born: int
    token_ids: Ids
    text: str
    parents: tuple[int, ...]
    suits: tuple[float, ...]

    @property
    def fitness(self) -> float:
        return min(self.suits)


@dataclass(frozen=True)
class Family:
    """All that ever lived, by number, and who lived in each generation, the fittest first."""

    members: tuple[Individual, ...]
    generations: tuple[tuple[int, ...], ...]

    @property
    def best(self) -> Individual:
        return self.members[self.generations[-1][0]]

    def ancestors(self, number: int) -> set[int]:
        """The numbers of an individual and of all it descends from."""
        found = {number}
        for one in reversed(self.members):  # children stand behind their parents
            found |= set(one.parents) if one.number in found else set()
        return found


def evolve(
    vocabulary: Vocabulary, prompts: Sequence[str], fitness: Fitness, settings: EvolutionSettings, seed: int = 0
) -> Family:
    """The family of two or more prompts, after `settings.generations` generations; the same for the same seed.

    Of prompts with the same tokens one lives. A child that does not read back as its tokens is stillborn, and another
    is tried, a bounded number of times. Raises UserError for fewer than two different prompts.
    """
    first = dict.fromkeys(tuple(vocabulary.encode(prompt)) for prompt in prompts)
    if len(first) < 2:
        raise UserError("evolution: give two or more different prompts, each with its picture")
    chance = random_generator(seed, "evolution", tuple(prompts))
    members: list[Individual] = []
    living = _born(vocabulary, members, [(ids, ()) for ids in first], fitness, 0)
    generations = [living]
    for generation in range(1, settings.generations + 1):
        alive = [members[number] for number in living]
        survivors = alive[: settings.survivors]
        room = settings.population - len(survivors)
        children = _children(vocabulary, alive, room, {one.token_ids for one in members}, settings, chance)
        born = _born(vocabulary, members, children, fitness, generation)
        living = _sorted(members, [*(one.number for one in survivors), *born])
        generations.append(living)
    return Family(tuple(members), tuple(map(tuple, generations)))


def _sorted(members: Sequence[Individual], numbers: Sequence[int]) -> list[int]:
    return sorted(numbers, key=lambda number: (-members[number].fitness, number))


def _born(
    vocabulary: Vocabulary,
    members: list[Individual],
    children: Sequence[tuple[Ids, tuple[int, ...]]],
    fitness: Fitness,
    generation: int,
) -> list[int]:
    """Add children, each with its parents, to the members; their numbers, the fittest first."""
    if not children:
        return []
    suits, start = fitness([ids for ids, _ in children]).tolist(), len(members)
    for (ids, parents), row in zip(children, suits, strict=True):
        members.append(Individual(len(members), generation, ids, vocabulary.decode(ids), parents, tuple(row)))
    return _sorted(members, range(start, len(members)))


def _children(
    vocabulary: Vocabulary,
    alive: Sequence[Individual],
    count: int,
    known: set[Ids],
    settings: EvolutionSettings,
    chance: torch.Generator,
) -> list[tuple[Ids, tuple[int, ...]]]:
    """Up to `count` new prompts with their parents, of whom the fitter ones are chosen more often."""
    found: dict[Ids, tuple[int, ...]] = {}
    for _ in range(TRIES * count):
        if len(found) == count:
            break
        one, other = (alive[k] for k in _pair(len(alive), chance))
        mixed = crossover(one.token_ids, other.token_ids, chance)
        ids = mutate(vocabulary, mixed, settings.mutation, settings.neighbours, chance)
        if ids not in known and ids not in found and vocabulary.round_trips(ids):
            found[ids] = (one.number, other.number)
    return list(found.items())


def _pair(count: int, chance: torch.Generator) -> list[int]:
    """Two different places of `count`, the first ones with better chances: linear rank selection (Baker, ICGA 1985)."""
    weights = torch.arange(count, 0, -1, dtype=torch.float64)
    pair: list[int] = torch.multinomial(weights, 2, generator=chance).tolist()
    return pair


def crossover(one: Ids, other: Ids, chance: torch.Generator) -> Ids:
    """A prompt as long as `one`, each token with even chances `one`'s or that of the same relative place in `other`."""
    coins = torch.rand(len(one), generator=chance).tolist()
    return tuple(
        token if coin < 0.5 else other[k * len(other) // len(one)]
        for k, (token, coin) in enumerate(zip(one, coins, strict=True))
    )


def mutate(vocabulary: Vocabulary, ids: Ids, rate: float, neighbours: int, chance: torch.Generator) -> Ids:
    """The prompt with each token, by the chance `rate`, replaced by one of its nearest allowed `neighbours`."""
    near = vocabulary.neighbours(vocabulary.allowed_ids.new_tensor(list(ids)), neighbours).tolist()
    coins = torch.rand(len(ids), generator=chance).tolist()
    picks = torch.randint(len(near[0]), (len(ids),), generator=chance).tolist()
    return tuple(
        token if coin >= rate else row[pick] for token, coin, pick, row in zip(ids, coins, picks, near, strict=True)
    )


# --- what suits a picture -----------------------------------------------------------------------------------------


def denoising_fitness(
    generator: Generator, targets: Sequence[Target], settings: EvolutionSettings, seed: int = 0
) -> Fitness:
    """Of each picture the part of its loss without words that a prompt takes away, on N draws that stay the same.

    Costs N forward samples a prompt and picture. Raises UserError for timesteps that the model has not.
    """
    window = require_timesteps(settings.timesteps, generator.num_timesteps)
    pictures = torch.stack([target.image for target in targets]).to(generator.device)
    latents = torch.cat([generator.encode_images(picture) for picture in pictures.split(1)])  # (P, C, h, w)
    keys, purpose = [target.key for target in targets], ("evolution",)
    draws = make_draws(seed, keys, purpose, settings.draws, window, latents.shape[1:]).to(latents.device)

    def losses(prompts: Sequence[Ids]) -> Tensor:
        ids = stacked(prompts).to(latents.device)  # (K, L)
        return prompt_losses(generator, latents, ids.expand(len(targets), *ids.shape), draws).T  # (K, P)

    empty = losses([()])
    return lambda prompts: 1 - losses(prompts) / empty


def clip_fitness(
    generator: Generator, scorer: Scorer, painting: GeneratorConfig, targets: Sequence[Target], seed: int = 0
) -> Fitness:
    """Of each picture the CLIP similarity of a prompt's rendering with it, in [-1, 1]; all prompts have one seed."""
    wanted = scorer.image_features(torch.stack([target.image for target in targets]).to(generator.device))  # (P, E)

    def fitness(prompts: Sequence[Ids]) -> Tensor:
        texts = [generator.vocabulary.decode(ids) for ids in prompts]
        seeds = [seed + 1000] * len(texts)
        renderings = paint(generator, texts, seeds, painting.steps, guidance_options(painting))
        return scorer.image_features(renderings) @ wanted.T

    return fitness
