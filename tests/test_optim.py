"""BatchedLBFGS row by row against scipy, torch and the definitions in the literature."""

import io
from dataclasses import fields
from itertools import pairwise

import pytest
import scipy.optimize
import torch
from torch import Tensor, nn
from torch.nn.functional import softplus

from ph2p.inversion.descent import LINE_SEARCHES, History, LBFGSOptions
from ph2p.inversion.lbfgs import BatchedLBFGS, LBFGSKeywords
from ph2p.inversion.line_search import Point, advance, start_search

torch.set_num_threads(1)
double = torch.float64
ROWS = 5


def normal(*shape: int, seed: int) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=double)


def rosenbrock(x: Tensor) -> Tensor:
    return (100 * (x[..., 1:] - x[..., :-1] ** 2) ** 2 + (1 - x[..., :-1]) ** 2).sum(-1)


def beale(x: Tensor) -> Tensor:
    a, b = x.unbind(-1)
    return (1.5 - a + a * b) ** 2 + (2.25 - a + a * b**2) ** 2 + (2.625 - a + a * b**3) ** 2


def booth(x: Tensor) -> Tensor:
    a, b = x.unbind(-1)
    return (a + 2 * b - 7) ** 2 + (2 * a + b - 5) ** 2


SCALES = torch.stack([torch.logspace(0, k, 20, dtype=double) for k in (0, 1, 2, 3, -3)])
SIGNS = normal(ROWS, 40, seed=1).sign()
FEATURES, ANCHORS, OFFSETS = normal(40, 6, seed=2), normal(20, 8, seed=3), normal(ROWS, 20, seed=4)

# name: (loss of x (..., n) in the problem of row r, starting points (B, n))
PROBLEMS = {
    "rosenbrock-2": (lambda x, r: rosenbrock(x), 1.5 * normal(ROWS, 2, seed=5)),
    "rosenbrock-10": (lambda x, r: rosenbrock(x), 1 + normal(ROWS, 10, seed=6) / 2),
    "quadratic": (lambda x, r: (SCALES[r] * (x - 1) ** 2).sum(-1), 3 * normal(ROWS, 20, seed=7)),
    "logistic": (
        lambda x, r: softplus(-SIGNS[r] * (x @ FEATURES.T)).mean(-1) + 0.01 * (x**2).sum(-1),
        normal(ROWS, 6, seed=8),
    ),
    "beale": (
        lambda x, r: beale(x),
        torch.tensor([[1, 1], [2, 0], [2.5, 0.2], [3.5, 0.6], [1, -0.5]], dtype=double),
    ),
    "booth": (lambda x, r: booth(x), 5 * normal(ROWS, 2, seed=9)),
    "log-sum-exp": (
        lambda x, r: torch.logsumexp(x @ ANCHORS.T + OFFSETS[r], -1) + 0.05 * (x**2).sum(-1),
        2 * normal(ROWS, 8, seed=10),
    ),
}


class Run:
    """A batch of problems under BatchedLBFGS, and the record of its evaluations."""

    def __init__(self, loss, start: Tensor, rows: Tensor | None = None, **options):
        self.loss, self.rows = loss, torch.arange(len(start)) if rows is None else rows
        self.x = nn.Parameter(start.clone())
        self.optimizer = BatchedLBFGS([self.x], **options)
        self.record: list[tuple[Tensor, Tensor, Tensor]] = []

    def closure(self) -> Tensor:
        self.optimizer.zero_grad()
        losses = self.loss(self.x, self.rows)
        losses.sum().backward()
        self.record.append((self.x.detach().clone(), losses.detach().clone(), self.x.grad.clone()))
        return losses

    def step(self, times: int = 1) -> Tensor:
        for _ in range(times):
            losses = self.optimizer.step(self.closure)
        return losses


def scipy_reference(loss, start: Tensor) -> tuple[float, int]:
    def value_and_gradient(array):
        x = torch.tensor(array, requires_grad=True)
        value = loss(x)
        value.backward()
        return value.item(), x.grad.numpy()

    options = {"gtol": 1e-7, "ftol": 0, "maxiter": 2000, "maxfun": 5000}
    found = scipy.optimize.minimize(value_and_gradient, start.numpy(), jac=True, method="L-BFGS-B", options=options)
    return found.fun, found.nfev


def torch_reference(loss, start: Tensor) -> tuple[float, int]:
    x, calls = nn.Parameter(start.clone()), []
    optimizer = torch.optim.LBFGS(
        [x], max_iter=2000, history_size=10, tolerance_change=1e-14, line_search_fn="strong_wolfe"
    )

    def closure() -> Tensor:
        optimizer.zero_grad()
        calls.append(loss(x))
        calls[-1].backward()
        return calls[-1]

    optimizer.step(closure)
    return loss(x).item(), len(calls)


@pytest.mark.parametrize("line_search", LINE_SEARCHES)
@pytest.mark.parametrize("problem", PROBLEMS)
def test_rows_reach_the_minima_of_scipy_and_torch_in_similar_evaluations(problem, line_search):
    loss, start = PROBLEMS[problem]
    first_step = start.shape[1] ** -0.5  # a first trial of length 1, as scipy's
    run = Run(loss, start, max_eval=1000, line_search=line_search, tolerance_change=1e-14, first_step=first_step)
    losses = run.step()
    used = run.optimizer.evaluations
    assert len(run.record) == used.max() < 1000
    assert torch.equal(losses, loss(run.x, run.rows))
    for row in range(ROWS):
        for reference in (scipy_reference, torch_reference):
            minimum, evaluations = reference(lambda x, row=row: loss(x, row), start[row])
            assert losses[row] <= minimum + 1e-9
            assert used[row] <= 1.3 * evaluations + 6, (row, reference.__name__)


@pytest.mark.parametrize("line_search", LINE_SEARCHES)
def test_a_row_is_the_same_alone_in_a_batch_and_in_another_order(line_search):
    loss, start = PROBLEMS["log-sum-exp"]
    options = {"max_eval": 6, "line_search": line_search}
    batch = Run(loss, start, **options)
    batch.step(times=3)
    order = torch.tensor([3, 0, 4, 1, 2])
    shuffled = Run(loss, start[order], order, **options)
    shuffled.step(times=3)
    torch.testing.assert_close(shuffled.x, batch.x[order], rtol=1e-10, atol=1e-12)
    assert torch.equal(shuffled.optimizer.iterations, batch.optimizer.iterations[order])
    for row in range(ROWS):
        alone = Run(loss, start[row : row + 1], torch.tensor([row]), **options)
        alone.step(times=3)
        torch.testing.assert_close(alone.x[0], batch.x[row], rtol=1e-10, atol=1e-12)
        assert alone.optimizer.evaluations == batch.optimizer.evaluations[row]


@pytest.mark.parametrize("line_search", LINE_SEARCHES)
@pytest.mark.parametrize("poison", ["nan", "inf", "gradient", "wall", "abyss"])
def test_a_row_that_is_not_finite_leaves_the_others_bitwise_alone(poison, line_search):
    def poisoned(x: Tensor, r: Tensor) -> Tensor:
        x, factor = x * 1, torch.ones(ROWS, dtype=double)
        if poison == "gradient":
            x.register_hook(lambda gradient: torch.where(r[:, None] == 2, torch.nan, gradient))
        elif poison in ("nan", "inf") or (x[2] - start[2]).norm() > 1e-3:
            factor[2] = {"inf": torch.inf, "abyss": -torch.inf}.get(poison, torch.nan)
        return rosenbrock(x) * factor

    start = PROBLEMS["rosenbrock-10"][1]
    options = {"max_eval": 30, "line_search": line_search}
    clean, run = Run(lambda x, r: rosenbrock(x), start, **options), Run(poisoned, start, **options)
    clean.step(times=2)
    losses = run.step(times=2)
    others = [0, 1, 3, 4]
    assert torch.equal(run.x[others], clean.x[others])
    assert torch.equal(run.optimizer.evaluations[others], clean.optimizer.evaluations[others])
    if poison in ("wall", "abyss"):
        assert rosenbrock(run.x)[2] == losses[2] < rosenbrock(start)[2]
        assert (run.x[2] - start[2]).norm() > 5e-4
    else:
        assert all(torch.equal(x[2], start[2]) for x, _, _ in [*run.record, (run.x, None, None)])
        assert run.optimizer.evaluations[2] == 2 and run.optimizer.iterations[2] == 0


@pytest.mark.parametrize("line_search", LINE_SEARCHES)
def test_a_minimum_close_to_a_wall_of_nan_is_found(line_search):
    pull = torch.tensor([[3.0, -3.0], [1e2, 1.0], [1e4, -1e4]], dtype=double)
    run = Run(
        lambda x, r: (pull[r] * x - torch.log(1 - x**2)).sum(-1),
        torch.full((3, 2), 0.3, dtype=double),
        max_eval=100,
        line_search=line_search,
        tolerance_change=1e-14,
    )
    run.step()
    assert any(losses.isnan().any() for _, losses, _ in run.record)
    torch.testing.assert_close(run.x.detach(), (1 - (1 + pull**2).sqrt()) / pull, rtol=1e-5, atol=1e-7)


@pytest.mark.parametrize("c2", [0.9, 0.1])
def test_line_search_satisfies_strong_wolfe_on_functions_made_to_be_hard(c2):
    """Functions (5.1) to (5.3) of Moré and Thuente, ACM TOMS 20, 1994, each from four far-apart steps."""

    def phi(a: Tensor) -> Tensor:
        first, second = -a / (a**2 + 2), (a + 0.004) ** 5 - 2 * (a + 0.004) ** 4
        beta, period = 0.01, 39
        bent = torch.where((a - 1).abs() <= beta, (a - 1) ** 2 / (2 * beta) + beta / 2, (a - 1).abs())
        third = bent + 2 * (1 - beta) / (period * torch.pi) * torch.sin(period * torch.pi / 2 * a)
        return torch.where(kind == 0, first, torch.where(kind == 1, second, third))

    def at(step: Tensor) -> Point:
        a = step.clone().requires_grad_()
        value = phi(a)
        (slope,) = torch.autograd.grad(value.sum(), a)
        return Point(step, value.detach(), slope, slope[:, None])

    kind = torch.arange(3).repeat_interleave(4)
    start = at(torch.zeros(12, dtype=double))
    search = start_search(start, torch.tensor([1e-3, 1e-1, 1e1, 1e3], dtype=double).repeat(3))
    c1, found = 1e-3, torch.full((12,), torch.nan, dtype=double)
    for _ in range(13):
        search, accepted = advance(search, at(search.trial), c1, c2)
        found = torch.where(accepted & found.isnan(), search.low.step, found)
    end = at(found)
    assert (end.loss <= start.loss + c1 * found * start.slope).all()
    assert (end.slope.abs() <= c2 * start.slope.abs()).all()


@pytest.mark.parametrize("line_search", LINE_SEARCHES)
@pytest.mark.parametrize("problem", ["rosenbrock-10", "logistic"])
def test_accepted_iterates_satisfy_the_conditions(problem, line_search):
    """An iterate is accepted where the trials leave the ray on which they lay; the conditions hold there."""
    loss, start = PROBLEMS[problem]
    run = Run(loss, start, max_eval=45, line_search=line_search)
    run.step()
    for row in range(ROWS):
        points = [(x[row], losses[row], gradient[row]) for x, losses, gradient in run.record]
        points = points[: run.optimizer.evaluations[row]]
        iterate, accepted = points[0], 0
        for trial, following in pairwise(points[1:]):
            ray, onward = trial[0] - iterate[0], following[0] - iterate[0]
            if torch.cosine_similarity(ray, onward, dim=0) > 1 - 1e-10:
                continue
            slope = iterate[2] @ ray
            assert trial[1] <= iterate[1] + 1e-4 * slope
            assert line_search == "armijo" or (trial[2] @ ray).abs() <= 0.9 * slope.abs()
            iterate, accepted = trial, accepted + 1
        assert accepted >= 5


@pytest.mark.parametrize("line_search", LINE_SEARCHES)
def test_every_budget_is_spent_exactly_and_ends_at_the_best_point_seen(line_search):
    loss, start = PROBLEMS["rosenbrock-2"]
    previous = loss(start, None)
    for budget in range(1, 25):
        run = Run(loss, start, max_eval=budget, line_search=line_search)
        losses = run.step()
        assert len(run.record) == budget
        assert run.optimizer.evaluations.eq(budget).all()
        assert torch.equal(losses, loss(run.x, None)) and (losses <= previous).all()
        assert torch.equal(losses, torch.stack([f for _, f, _ in run.record]).amin(0))
        previous = losses


@pytest.mark.parametrize("line_search", LINE_SEARCHES)
def test_steps_of_two_evaluations_get_there_as_well(line_search):
    loss, start = PROBLEMS["beale"]
    run = Run(loss, start, max_eval=2, line_search=line_search, first_step=100.0)
    assert (run.step(times=80) < 1e-10).all()


def test_armijo_takes_the_first_decrease_that_strong_wolfe_finds_too_short():
    start = torch.ones(1, 1, dtype=double)
    runs = [Run(lambda x, r: (x**2).sum(-1), start, line_search=name, first_step=0.01) for name in LINE_SEARCHES]
    for run in runs:
        run.step()
    wolfe, armijo = ([x.item() for x, _, _ in run.record[:3]] for run in runs)
    assert wolfe == pytest.approx([1, 0.99, 0.9])  # ten times the first step
    assert armijo == pytest.approx([1, 0.99, 0])  # a quasi-Newton step


@pytest.mark.parametrize("size", [1, 7, 400])
def test_a_first_trial_is_as_far_in_each_number_however_many_there_are(size):
    weights = torch.stack([1e-3 * normal(size, seed=11), 1e3 * normal(size, seed=12)])
    run = Run(lambda x, r: (weights[r] * x).sum(-1), torch.ones(2, size, dtype=double), first_step=0.3, lr=0.5)
    run.step()
    (start, _, gradient), (trial, _, _) = run.record[:2]
    moved = trial - start
    torch.testing.assert_close(moved.square().mean(-1).sqrt(), torch.full((2,), 0.15, dtype=double))
    assert (torch.cosine_similarity(moved, -gradient) > 1 - 1e-12).all()


def test_a_row_stops_at_its_tolerance_of_the_gradient():
    start = PROBLEMS["quadratic"][1]
    options = {"max_eval": 300, "tolerance_grad": 1e-2, "tolerance_change": 0.0}
    run = Run(PROBLEMS["quadratic"][0], start, **options)
    run.step()
    for row, used in enumerate(run.optimizer.evaluations):
        largest = torch.stack([gradient[row].abs().max() for _, _, gradient in run.record])
        assert largest[used - 1] <= 1e-2 < largest[: used - 1].min()


def test_a_search_that_fails_starts_again_from_steepest_descent():
    """Curvature kept from a flat objective makes every trial on a steep one far too long."""
    run = Run(lambda x, r: scale * (x**2).sum(-1), torch.ones(2, 3, dtype=double), max_line_search=1, max_eval=4)
    scale = 1.0
    run.step()
    assert run.optimizer.state[run.x]["s"].any()  # kept, although the gradient was exactly zero at the end
    scale = 1e8
    with torch.no_grad():
        run.x.fill_(1)
    assert (run.step() < 3e8).all()


def test_a_loss_flat_to_rounding_ends_the_row_at_once():
    run = Run(lambda x, r: 1e6 + (x**2).sum(-1), torch.full((2, 3), 1e-4), first_step=1e-4)
    run.step()
    assert run.optimizer.evaluations.eq(2).all()


def test_two_loop_recursion_is_the_inverse_bfgs_update():
    """Against the dense matrices of N&W (6.17); each row keeps its own pairs, one is given more than fit."""
    size, fit = 6, 4
    history = History(*torch.zeros(2, 4, fit, size, dtype=double))
    pairs: list[list[tuple[Tensor, Tensor]]] = [[], [], [], []]
    curvature = normal(4, size, size, seed=20)
    curvature = curvature @ curvature.mT + torch.eye(size)
    for k in range(6):
        s = normal(4, size, seed=30 + k)
        y = (curvature @ s[..., None])[..., 0]
        if k > 0:
            y[0] = -y[0]  # negative curvature: not kept
        history = history.push(torch.tensor([True, False, k < 3, True]), s, y)
        for row, kept in enumerate([k < 1, False, k < 3, True]):
            pairs[row] += [(s[row], y[row])] if kept else []
    gradient = normal(4, size, seed=40)
    product = history.inverse_hessian_product(gradient)
    assert history.filled().tolist() == [True, False, True, True]
    for row in range(4):
        inverse = identity = torch.eye(size, dtype=double)
        if pairs[row]:
            s, y = pairs[row][-1]
            inverse = (s @ y) / (y @ y) * identity
        for s, y in pairs[row][-fit:]:
            v = identity - torch.outer(y, s) / (s @ y)
            inverse = v.T @ inverse @ v + torch.outer(s, s) / (s @ y)
        torch.testing.assert_close(product[row], inverse @ gradient[row])


@pytest.mark.parametrize("line_search", LINE_SEARCHES)
def test_state_survives_a_checkpoint_bit_for_bit(line_search):
    def fresh(start: Tensor) -> Run:
        return Run(lambda x, r: rosenbrock(x), start, max_eval=3, line_search=line_search, lr=0.7)

    undisturbed = fresh(PROBLEMS["rosenbrock-10"][1].float())
    undisturbed.step(times=4)
    file = io.BytesIO()
    torch.save((undisturbed.x.detach(), undisturbed.optimizer.state_dict()), file)
    undisturbed.step(times=6)

    file.seek(0)
    start, state = torch.load(file, weights_only=True)
    resumed = fresh(start)
    resumed.optimizer.load_state_dict(state)
    resumed.step(times=6)
    assert torch.equal(resumed.x, undisturbed.x)
    assert torch.equal(resumed.optimizer.evaluations, undisturbed.optimizer.evaluations)
    assert torch.equal(resumed.optimizer.iterations, undisturbed.optimizer.iterations)

    forgetful = fresh(start)
    forgetful.step(times=6)
    assert not torch.equal(forgetful.x, undisturbed.x)


def test_reset_makes_the_named_rows_new_and_no_others():
    loss, start = PROBLEMS["rosenbrock-10"]
    kept, mixed = Run(loss, start, max_eval=9), Run(loss, start, max_eval=9)
    kept.step(), mixed.step()
    mixed.optimizer.reset(torch.tensor([False, True, False, False, True]))
    fresh = Run(loss, mixed.x.detach(), max_eval=9)
    kept.step(), mixed.step(), fresh.step()
    assert torch.equal(mixed.x[[0, 2, 3]], kept.x[[0, 2, 3]])
    assert torch.equal(mixed.x[[1, 4]], fresh.x[[1, 4]])
    assert not torch.equal(mixed.x[[1, 4]], kept.x[[1, 4]])


def test_parameter_and_objective_may_change_between_steps():
    run = Run(lambda x, r: ((x - goal) ** 2).sum((-1, -2)), torch.zeros(2, 3, 4, dtype=double))
    goal = normal(2, 3, 4, seed=50)
    run.step()
    goal = goal + 5
    with torch.no_grad():
        run.x[0] = -goal[0]
    before = run.optimizer.evaluations
    run.step()
    torch.testing.assert_close(run.x.detach(), goal)
    assert (run.optimizer.evaluations - before).eq(2).all()  # thanks to the curvature known from before


def test_misuse_is_refused():
    x, other = nn.Parameter(torch.ones(2, 3)), nn.Parameter(torch.ones(2, 3))
    groups, integers, scalar = [{"params": [x]}, {"params": [other]}], x.detach().long(), x.detach()[0, 0]
    for wrong in ([x, other], groups, [integers], [scalar], []):
        with pytest.raises(ValueError):
            BatchedLBFGS(wrong)
    for wrong in ({"lr": 0}, {"max_eval": 0}, {"history_size": 0}, {"line_search": "exact"}, {"c1": 0.95}):
        with pytest.raises(ValueError, match=next(iter(wrong))):
            BatchedLBFGS([x], **wrong)
    optimizer = BatchedLBFGS([x])
    with pytest.raises(ValueError, match="2 losses"):
        optimizer.step(lambda: (x**2).sum())
    with pytest.raises(ValueError, match="no gradient"):
        optimizer.step(lambda: (x**2).sum(-1))


def test_the_keywords_for_type_checkers_are_the_options():
    assert LBFGSKeywords.__annotations__ == {field.name: field.type for field in fields(LBFGSOptions)}
