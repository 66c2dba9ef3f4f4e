"""Token swaps on a random pipeline, against exhaustive search and finite differences."""

import pytest
import torch

from ph2p.inversion.draws import make_draws
from ph2p.inversion.objectives import DenoisingObjective, candidate_losses
from ph2p.inversion.search import greedy_swaps, swap_scores


@pytest.fixture(scope="module")
def latents(generator, targets):
    return generator.encode_images(torch.stack([target.image for target in targets]))  # (3, C, h, w)


@pytest.fixture(scope="module")
def draws(generator):
    return make_draws(0, ["a", "b", "c"], ("search",), 2, (500, 1000), generator.latent_shape)


def prompts_of(generator, length: int) -> torch.Tensor:
    random = torch.Generator().manual_seed(5)
    return torch.stack([generator.vocabulary.random(length, random) for _ in range(3)])


def test_losses_only_fall_and_are_those_of_the_prompts(generator, latents, draws):
    start, shares = prompts_of(generator, 3), []
    found, losses = greedy_swaps(generator, latents, start, draws, 5, 6, shares.append)
    assert found.shape == (3, 6, 3) and losses.shape == (3, 6)
    assert torch.equal(found[:, 0], start)
    assert (losses.diff(dim=1) <= 0).all() and (losses[:, -1] < losses[:, 0]).all()
    torch.testing.assert_close(losses, candidate_losses(generator, latents, found, draws))
    assert ((found[:, 1:] != found[:, :-1]).sum(-1) <= 1).all()  # one token a round
    assert generator.vocabulary.allowed[found].all()
    assert shares == pytest.approx([0.2, 0.4, 0.6, 0.8, 1])


def test_all_swaps_of_one_place_find_the_best_token(generator, latents, draws):
    every = generator.vocabulary.allowed_ids
    exhaustive = candidate_losses(generator, latents, every[None, :, None].expand(3, -1, -1), draws)  # (3, A)
    found, losses = greedy_swaps(generator, latents, prompts_of(generator, 1), draws, 1, len(every))
    assert torch.equal(found[:, -1, 0], every[exhaustive.argmin(1)])
    torch.testing.assert_close(losses[:, -1], exhaustive.min(1).values)


def test_rejected_swaps_are_not_tried_again(generator, latents, draws):
    """One swap a round from a local minimum goes through the whole ranking, and reaches any better token."""
    every = generator.vocabulary.allowed_ids
    exhaustive = candidate_losses(generator, latents, every[None, :, None].expand(3, -1, -1), draws)
    rounds = len(every) * 3  # at most A - 1 rejections before a swap is accepted or none is left
    found, _ = greedy_swaps(generator, latents, prompts_of(generator, 1), draws, rounds, 1)
    assert torch.equal(found[:, -1, 0], every[exhaustive.argmin(1)])


def test_scores_equal_finite_differences(generator, latents, draws):
    token_ids, vocabulary = prompts_of(generator, 2), generator.vocabulary
    scores = swap_scores(generator, latents, token_ids, draws)
    assert scores.shape == (3, 2, len(vocabulary.allowed_ids)) and not scores.requires_grad
    prompt, objective, step = vocabulary.embed(token_ids).double(), DenoisingObjective(generator), 1e-3
    for place in range(2):
        for column, token in enumerate(vocabulary.allowed_ids.tolist()):
            move = torch.zeros_like(prompt)
            move[:, place] = vocabulary.embeddings[token] - prompt[:, place]
            with torch.no_grad():
                up, down = (objective(prompt + s * move, token_ids, latents, draws) for s in (step, -step))
            expected = ((up - down) / (2 * step)).masked_fill(token_ids[:, place] == token, torch.inf)
            ours = scores[:, place, column].double()
            torch.testing.assert_close(ours, expected, rtol=1e-3, atol=1e-7)


def test_rows_are_independent(generator, latents, draws):
    start = prompts_of(generator, 3)
    batch = greedy_swaps(generator, latents, start, draws, 3, 6)
    for row in range(3):
        one = slice(row, row + 1)
        found, losses = greedy_swaps(generator, latents[one], start[one], draws[one], 3, 6)
        assert torch.equal(found[0], batch[0][row])
        torch.testing.assert_close(losses[0], batch[1][row])
    broken = latents.clone()
    broken[1] = torch.nan
    found, losses = greedy_swaps(generator, broken, start, draws, 3, 6)
    assert torch.equal(found[[0, 2]], batch[0][[0, 2]]) and torch.equal(found[1], start[1].expand(4, -1))
    torch.testing.assert_close(losses[[0, 2]], batch[1][[0, 2]])
