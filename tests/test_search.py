"""The racing search on a random pipeline: its parts against exhaustive computations, and searches as a whole."""

from dataclasses import replace

import pytest
import torch

from ph2p.config.budget import plan, race_cost, round_cost
from ph2p.config.compose import load_config
from ph2p.config.method import SearchConfig
from ph2p.errors import UserError
from ph2p.inversion.draws import make_draws
from ph2p.inversion.fluency import Fluency
from ph2p.inversion.moves import MOVES, Position
from ph2p.inversion.objectives import DenoisingObjective, candidate_losses
from ph2p.inversion.price import Price
from ph2p.inversion.prompts import ABSENT, lengths, padded, present, prompt_losses, stacked
from ph2p.inversion.racing import Stage, race
from ph2p.inversion.search import Search, swap_scores
from ph2p.models.language import TrigramModel

KEYS = ["a", "b", "c"]
FLUENT = Fluency(
    0.01, TrigramModel(["a small red dog above a blue circle"] * 5 + ["red square", "blue dog"]), ("above",)
)


@pytest.fixture(scope="module")
def latents(generator, targets):
    return generator.encode_images(torch.stack([target.image for target in targets]))  # (3, C, h, w)


@pytest.fixture(scope="module")
def draws(generator):
    return make_draws(0, KEYS, ("search",), 4, (500, 1000), generator.latent_shape)


@pytest.fixture(scope="module")
def method():
    method = load_config(["method=ph2p_plus"]).method
    small = SearchConfig(starts=2, draws=2, race=[[12, 1], [6, 1], [3, 2]], min_length=1, max_length=6)
    return replace(method, search=small, word_price=0.0, prompt_length=3)


def prompts_of(generator, *sizes: int) -> torch.Tensor:
    """Random prompts of some lengths for each of the three images: (3, K, 6) padded."""
    random = torch.Generator().manual_seed(5)
    rows = [stacked([generator.vocabulary.random(size, random) for size in sizes], 6) for _ in KEYS]
    return torch.stack(rows)


def alone(generator, latents, prompts, draws) -> torch.Tensor:
    """The losses of padded prompts (3, K, L), each scored by itself."""
    losses = latents.new_empty(prompts.shape[:2])
    for row in range(len(prompts)):
        for k, prompt in enumerate(prompts[row]):
            one = slice(row, row + 1)
            losses[row, k] = candidate_losses(generator, latents[one], present(prompt)[None, None], draws[one])
    return losses


# --- prompts of any length ----------------------------------------------------------------------------------------


def test_padding_tells_lengths_and_goes_again():
    prompts = stacked([[4, 5], [6], []], 4)
    assert prompts.tolist() == [[4, 5, -1, -1], [6, -1, -1, -1], [-1] * 4]
    assert lengths(prompts).tolist() == [2, 1, 0] and present(prompts[0]).tolist() == [4, 5]
    assert padded(prompts, 5).shape == (3, 5) and padded(prompts, 2).shape == (3, 4)


def test_losses_of_mixed_lengths_are_those_of_each_alone(generator, latents, draws):
    prompts = prompts_of(generator, 3, 1, 6, 3)
    prompts[:, 3] = prompts[:, 0]  # twice the same
    prompts = torch.cat([prompts, torch.full_like(prompts[:, :1], ABSENT)], 1)  # and no words
    before = generator.counter.read().forward
    losses = prompt_losses(generator, latents, prompts, draws)
    assert generator.counter.read().forward - before == 3 * 4 * 4  # images, distinct prompts, draws
    torch.testing.assert_close(losses, alone(generator, latents, prompts, draws))
    assert torch.equal(losses[:, 0], losses[:, 3])


# --- races --------------------------------------------------------------------------------------------------------


def test_a_race_of_one_stage_finds_the_lowest_loss_with_its_price(generator, latents, draws):
    prompts = prompts_of(generator, 6, 5, 4, 3, 2, 1)
    losses = prompt_losses(generator, latents, prompts, draws)
    for price in (0.0, 0.05, 10.0):
        outcome = race(generator, latents, prompts, draws, [Stage(6, 4)], price * lengths(prompts))
        expected = (losses + price * lengths(prompts)).argmin(1)
        assert torch.equal(outcome.winner, expected)
        torch.testing.assert_close(outcome.loss, losses.gather(1, expected[:, None])[:, 0])
        torch.testing.assert_close(outcome.first_loss, losses[:, 0])
    assert (expected == 5).all()  # at such a price a single token is enough


def test_a_race_costs_its_stages_and_keeps_the_first(generator, latents, draws):
    prompts, stages = prompts_of(generator, 3, 3, 3, 3, 3, 3), [Stage(6, 1), Stage(3, 1), Stage(2, 2)]
    before = generator.counter.read().forward
    outcome = race(generator, latents, prompts, draws, stages, torch.zeros(prompts.shape[:2]))
    search = SearchConfig(race=[[6, 1], [3, 1], [2, 2]], draws=2)
    assert generator.counter.read().forward - before == 3 * race_cost(search, 6)
    first = prompt_losses(generator, latents, prompts[:, :1], draws)[:, 0]
    torch.testing.assert_close(outcome.first_loss, first)  # on all draws
    assert (outcome.loss <= outcome.first_loss).all()


def test_what_has_no_finite_loss_loses_and_ends_nothing(generator, latents, draws):
    prompts, broken = prompts_of(generator, 3, 3, 3, 3), latents.clone()
    broken[1] = torch.nan
    stages = [Stage(4, 1), Stage(2, 3)]
    whole = race(generator, latents, prompts, draws, stages, torch.zeros(prompts.shape[:2]))
    outcome = race(generator, broken, prompts, draws, stages, torch.zeros(prompts.shape[:2]))
    assert torch.equal(outcome.winner[[0, 2]], whole.winner[[0, 2]])
    assert outcome.winner[1] == 0 and not outcome.loss[1].isfinite()


# --- moves --------------------------------------------------------------------------------------------------------


@pytest.fixture
def position():
    random = torch.Generator().manual_seed(1)
    allowed, scores = torch.arange(10, 30), torch.rand(3, 20, generator=random)
    scores[range(3), range(3)] = torch.inf  # no swap for itself
    return Position(
        torch.tensor([10, 11, 12]),
        scores,
        allowed,
        [torch.tensor([28, 29])],
        torch.tensor([[11, 13], [10, 14], [15, 16]]),
        (1, 5),
        random,
        reworded=lambda tokens, count: [tokens[[2, 0, *range(3, len(tokens))]]][:count],
    )


@pytest.mark.parametrize("name", MOVES)
def test_moves_change_what_their_names_say(position, name):
    before = position.prompt.tolist()
    found = [prompt.tolist() for prompt in MOVES[name](position, 2)]
    assert 1 <= len(found) <= 2 and position.prompt.tolist() == before
    for after in found:
        assert set(after) <= set(position.allowed.tolist())
        longer = {"insert": [1], "delete": [-1], "reword": [-1, 0], "splice": [2]}
        assert len(after) - 3 in longer.get(name, [0])
        if name in ("exchange", "shift"):
            assert sorted(after) == before and after != before
        if name in ("swap", "random", "borrow", "neighbour"):
            assert sum(a != b for a, b in zip(after, before, strict=True)) <= 1
        if name == "double":
            assert sum(a != b for a, b in zip(after, before, strict=True)) == 2
        if name in ("borrow", "splice"):
            assert set(after) & {28, 29}


def test_swaps_are_the_best_by_score(position):
    best = position.scores.flatten().topk(3, largest=False).indices.tolist()
    expected = [(k // 20, 10 + k % 20) for k in best]
    for changed, (place, token) in zip(MOVES["swap"](position, 3), expected, strict=True):
        assert changed[place] == token


def test_lengths_stay_within_their_bounds(position):
    short = replace(position, prompt=position.prompt[:1], scores=position.scores[:1])
    assert MOVES["delete"](short, 3) == [] and MOVES["exchange"](short, 3) == []
    long = replace(position, prompt=torch.arange(10, 15), scores=torch.rand(5, 20))
    assert MOVES["insert"](long, 3) == []


def test_scores_equal_finite_differences(generator, latents, draws):
    vocabulary, prompts = generator.vocabulary, prompts_of(generator, 2)[:, 0]
    scores = swap_scores(generator, vocabulary, latents, prompts, draws)
    assert scores.shape == (3, 6, len(vocabulary.allowed_ids)) and scores[:, 2:].isinf().all()
    token_ids = prompts[:, :2]
    prompt, objective, step = vocabulary.embed(token_ids).double(), DenoisingObjective(generator), 1e-3
    for place in range(2):
        for column, token in enumerate(vocabulary.allowed_ids.tolist()):
            move = torch.zeros_like(prompt)
            move[:, place] = vocabulary.embeddings[token] - prompt[:, place]
            with torch.no_grad():
                up, down = (objective(prompt + s * move, token_ids, latents, draws) for s in (step, -step))
            expected = ((up - down) / (2 * step)).masked_fill(token_ids[:, place] == token, torch.inf)
            torch.testing.assert_close(scores[:, place, column].double(), expected, rtol=1e-3, atol=1e-7)


# --- searches -----------------------------------------------------------------------------------------------------


def test_a_search_improves_and_costs_at_most_its_budget(generator, latents, draws, method):
    search, starts = Search(generator, latents, KEYS, method, 0), prompts_of(generator, 3, 4)
    before = generator.counter.read()
    found, losses, gain = search(starts, 6)
    spent = generator.counter.read() - before
    options = method.search
    most = race_cost(options, 2) + 4 + 6 * round_cost(options)
    assert 0 < spent.forward + spent.backward <= 3 * most and spent.backward == 3 * 6 * options.draws
    assert found.shape == (3, 7, 6) and losses.shape == (3, 7) and losses.isfinite().all()
    assert gain.shape == (3,) and (gain >= 0).all()
    fresh = make_draws(1, KEYS, ("check",), 64, (500, 1000), generator.latent_shape)
    worth = prompt_losses(generator, latents, found[:, [0, -1]], fresh)
    assert worth[:, 1].mean() < worth[:, 0].mean()
    assert generator.vocabulary.allowed[found[found != ABSENT]].all()


def test_a_price_makes_prompts_shorter(generator, latents, method):
    starts = prompts_of(generator, 6)
    free, *_ = Search(generator, latents, KEYS, method, 0)(starts, 6)
    dear, *_ = Search(generator, latents, KEYS, method, 0, price=Price(0.9))(starts, 6)
    assert lengths(dear[:, -1]).sum() < lengths(free[:, -1]).sum()
    assert (lengths(dear[:, -1]) >= 1).all()


@pytest.mark.parametrize("price", [Price(), Price(0.01, FLUENT)], ids=["free", "priced"])
def test_images_are_independent_and_a_search_goes_on(generator, latents, method, price):
    starts = prompts_of(generator, 3, 4)
    whole, losses, gain = Search(generator, latents, KEYS, method, 0, price=price)(starts, 4)
    for row, key in enumerate(KEYS):
        one = slice(row, row + 1)
        found, alone_losses, _ = Search(generator, latents[one], [key], method, 0, price=price)(starts[one], 4)
        assert torch.equal(found[0], whole[row]) and torch.equal(alone_losses[0], losses[row])
    states = []

    def keep(state):
        states.append({name: value.clone() for name, value in state.items()} | {"other": torch.ones(1)})

    Search(generator, latents, KEYS, method, 0, price=price)(starts, 2, keep)
    again, again_losses, again_gain = Search(generator, latents, KEYS, method, 0, price=price)(
        starts, 4, state=states[-1]
    )
    assert torch.equal(again, whole) and torch.equal(again_losses, losses) and torch.equal(again_gain, gain)


def test_a_language_model_makes_prompts_read_better(generator, latents, method):
    starts = prompts_of(generator, 6)
    free, fluent = (
        Search(generator, latents, KEYS, method, 0, price=price)(starts, 6)[0][:, -1]
        for price in (Price(), Price(0, replace(FLUENT, weight=0.5)))
    )
    surprise = [
        FLUENT.model.surprises([generator.vocabulary.decode(present(row)) for row in some]) for some in (free, fluent)
    ]
    assert sum(surprise[1]) < sum(surprise[0])


def test_an_unknown_move_is_named_before_anything_is_inverted(inverter_of):
    with pytest.raises(UserError, match=r"^method\.search\.moves\.jump: no such move; choose among .*delete, "):
        inverter = inverter_of("method=ph2p_plus")
        moves = {"jump": 3}
        replace(
            inverter, cfg=replace(inverter.cfg, method=replace(inverter.cfg.method, search=SearchConfig(moves=moves)))
        )


def test_a_larger_budget_buys_more_rounds():
    rounds = [
        plan(load_config(["method=ph2p_plus", f"method.budget={budget}"]).method).rounds for budget in (2000, 5000)
    ]
    assert 0 < rounds[0] < rounds[1]
