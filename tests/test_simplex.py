"""Descent over token weights: its projections against other ways to compute them, problems of known answer."""

import copy

import pytest
import torch
from scipy.optimize import brentq, minimize
from torch import Tensor, nn

from ph2p.inversion.simplex import SimplexDescent, on_simplex, sharpened

double = torch.float64
TOKENS, WIDTH, PLACES, ROWS = 30, 12, 4, 3


def normal(*shape: int, seed: int) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=double)


@pytest.mark.parametrize("scale", [0.01, 1, 100])
def test_the_projection_is_the_nearest_distribution(scale):
    values = scale * normal(5, 7, seed=1)
    found = on_simplex(values)
    for row, value in zip(found.numpy(), values.numpy(), strict=True):
        shift = brentq(lambda s, v=value: (v - s).clip(0).sum() - 1, value.min() - 1, value.max(), xtol=1e-14)
        assert row == pytest.approx((value - shift).clip(0), abs=1e-9)
    even = torch.full((7,), 1 / 7, dtype=double).numpy()
    options = {"method": "SLSQP", "bounds": [(0, 1)] * 7, "constraints": {"type": "eq", "fun": lambda w: w.sum() - 1}}
    solved = minimize(lambda w: ((w - values[0].numpy()) ** 2).sum(), even, **options)
    assert found[0].numpy() == pytest.approx(solved.x, abs=1e-4)
    assert torch.equal(on_simplex(torch.eye(4)), torch.eye(4))


def test_sharpening_bounds_the_entropy_and_keeps_what_is_sharp_enough():
    weights = on_simplex(torch.linspace(0.1, 2, 200, dtype=double)[:, None] * normal(200, 9, seed=2))
    entropy = 1 - weights.square().sum(-1)
    for bound in (0.8, 0.5, 0.2):
        found = sharpened(weights, bound)
        assert torch.allclose(found.sum(-1), torch.ones(200, dtype=double)) and bool((found >= 0).all())
        kept = entropy <= bound
        assert 0 < kept.sum() < 200 and torch.equal(found[kept], weights[kept])
        later = 1 - found[~kept].square().sum(-1)
        assert bool((later < entropy[~kept]).all())  # one way to the bound and back does not reach it in all rows
        assert torch.equal(found.argmax(-1), weights.argmax(-1))
    two = torch.tensor([0.6, 0.4, 0.0], dtype=double)  # nothing to clip: the bound is met exactly
    assert float(1 - sharpened(two, 0.3).square().sum()) == pytest.approx(0.3)
    assert torch.equal(sharpened(weights, 0).argmax(-1), weights.argmax(-1))
    assert bool((sharpened(weights, 0).amax(-1) == 1).all())


class Problem:
    """Rows whose losses are lowest at known tokens, in a parameter's units of `unit`; some rows of a batch or all."""

    def __init__(self, rows: slice = slice(None), unit: float = 1.0, scales: Tensor | None = None):
        self.table = unit * normal(TOKENS, WIDTH, seed=3)
        random = torch.Generator().manual_seed(4)
        draw = torch.randint(TOKENS, (2, ROWS, PLACES), generator=random)
        self.answer, start = draw[0][rows], draw[1][rows]
        self.unit, self.scales = unit, torch.ones(ROWS) if scales is None else scales
        self.scales = self.scales[rows]
        self.x = nn.Parameter(self.table[start].clone())
        self.optimizer = SimplexDescent([self.x], lr=0.2, momentum=0.5, period=12)
        self.optimizer.over(self.table)

    def closure(self) -> Tensor:
        self.optimizer.zero_grad()
        losses = self.scales * (self.x / self.unit - self.table[self.answer] / self.unit).square().sum((1, 2))
        losses.sum().backward()
        return losses.detach()

    def run(self, steps: int) -> list[Tensor]:
        found = []
        for _ in range(steps):
            self.optimizer.step(self.closure)
            found.append(self.optimizer.state[self.x]["weights"].clone())
        return found


def test_a_period_ends_at_the_tokens_of_the_lowest_loss():
    problem = Problem()
    weights = problem.run(12)
    assert torch.equal(weights[-1].argmax(-1), problem.answer) and bool((weights[-1].amax(-1) == 1).all())
    assert torch.equal(problem.x.detach(), problem.table[problem.answer])
    assert all(torch.allclose(some.sum(-1), torch.ones(ROWS, PLACES, dtype=double)) for some in weights)
    assert any(bool((some.amax(-1) < 0.9).any()) for some in weights)  # it went through mixtures of tokens


def test_a_row_does_not_see_the_others_nor_the_scale_of_its_loss():
    together, scaled = Problem().run(6), Problem(scales=torch.tensor([1e-3, 1.0, 1e3])).run(6)
    for row in range(ROWS):
        alone = Problem(rows=slice(row, row + 1)).run(6)
        for step in range(6):
            assert torch.allclose(alone[step][0], together[step][row], atol=1e-9)
            assert torch.allclose(scaled[step][row], together[step][row], atol=1e-9)


@pytest.mark.parametrize("unit", [0.01, 100])
def test_the_scale_of_the_table_does_not_matter(unit):
    for ours, theirs in zip(Problem(unit=unit).run(12), Problem().run(12), strict=True):
        assert torch.allclose(ours, theirs, atol=1e-9)


def test_a_state_goes_on_where_it_stood():
    whole, first = Problem(), Problem()
    wanted = whole.run(12)
    first.run(5)
    second = Problem()
    with torch.no_grad():
        second.x.copy_(first.x)
    second.optimizer.load_state_dict(copy.deepcopy(first.optimizer.state_dict()))
    assert all(torch.equal(*pair) for pair in zip(second.run(7), wanted[5:], strict=True))


def test_a_reset_begins_a_period_at_the_prompt_as_it_stands():
    problem = Problem()
    problem.run(7)
    with torch.no_grad():
        problem.x.copy_(problem.table[torch.zeros_like(problem.answer)])
    problem.optimizer.reset()
    assert float(problem.run(1)[0][..., 0].min()) > 0.7  # a step of 0.2 from the token 0
    assert int(problem.optimizer.state[problem.x]["step"]) == 1


@pytest.mark.parametrize("wrong", [{"lr": 0}, {"momentum": 1.0}, {"period": 0}], ids=str)
def test_a_number_out_of_range_is_named(wrong):
    with pytest.raises(ValueError, match=next(iter(wrong))):
        SimplexDescent([nn.Parameter(torch.zeros(1, 1))], **wrong)
