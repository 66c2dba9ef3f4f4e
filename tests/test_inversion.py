"""The engine's core on a random pipeline: rows stand alone, losses are the pipeline's, samples are counted."""

from collections import Counter
from contextlib import contextmanager
from dataclasses import replace

import lightning as L
import pytest
import torch
from PIL import Image

from ph2p import invert, load_config, load_inverter
from ph2p.config.budget import plan
from ph2p.data import TargetError
from ph2p.errors import UserError
from ph2p.inversion.batch import Batch
from ph2p.inversion.draws import make_draws
from ph2p.inversion.judge import Judge
from ph2p.inversion.lbfgs import BatchedLBFGS
from ph2p.inversion.module import PromptInversion
from ph2p.inversion.objectives import DenoisingObjective, candidate_losses, make_objective
from ph2p.inversion.projection import DelayedProjection
from ph2p.inversion.selection import Pool
from ph2p.inversion.session import Session
from ph2p.inversion.steps import InversionData
from ph2p.inversion.units import units_of
from ph2p.inverter import Inverter

WINDOW = (500, 1000)
SCALES = (0.5, 1.0, 2.0)
LBFGS = ["method=ph2p", "method.draws=2", "method.judge_draws=2", "method.optimizer.max_eval=6", "method.budget=400"]
SIMPLEX = ["method=simplex", "method.draws=2", "method.judge_draws=2", "method.steps=5", "method.budget=200"]
STRAIGHT_THROUGH = ["method=pez_diffusion", "method.draws=2", "method.budget=120"]


def outcome(result) -> tuple:
    """What must not depend on the neighbours: prompt, tokens, losses, cost and the ranking."""
    candidates = [(c.token_ids, c.epoch) for c in result.candidates]
    costs = (result.forward_samples, result.backward_samples, result.evaluation_samples)
    return result.prompt, result.token_ids, candidates, costs


def assert_same(ours, theirs) -> None:
    assert outcome(ours) == outcome(theirs)
    for key in ("loss_curve", "loss", "loss_empty", "regret", "word_recall"):
        assert getattr(ours, key) == pytest.approx(getattr(theirs, key), rel=1e-5), key


@pytest.mark.parametrize("method", [LBFGS, SIMPLEX, STRAIGHT_THROUGH], ids=["lbfgs", "simplex", "straight-through"])
def test_an_image_alone_in_a_batch_and_in_another_order(inverter_of, targets, method):
    inverter = inverter_of(*method, "method.restarts=2")
    batch = inverter(targets)
    assert len({str(outcome(result)) for result in batch}) == 3  # or the comparison would prove nothing
    assert all(len(set(result.loss_curve)) > 1 for result in batch)
    turned = inverter(targets[::-1])[::-1]
    for target, ours, theirs in zip(targets, batch, turned, strict=True):
        assert_same(ours, theirs)
        assert_same(ours, inverter([target])[0])


def test_a_second_run_is_the_same_and_another_seed_is_not(inverter_of, targets):
    runs = [inverter_of(*LBFGS, f"seed={seed}")(targets[:1])[0] for seed in (0, 0, 1)]
    assert_same(runs[0], runs[1])
    assert runs[0].loss == runs[1].loss and runs[0].loss_curve != runs[2].loss_curve


def test_a_broken_row_leaves_the_others_alone(inverter_of, targets):
    inverter = inverter_of("method=ph2p_plus", *LBFGS[1:4], "method.budget=700", "method.search.draws=2")
    assert plan(inverter.cfg.method).rounds and plan(inverter.cfg.method).epochs

    def found(broken: bool):
        batch = Batch(targets, inverter.generator, inverter.scorer)
        if broken:
            batch.latents[1] = torch.nan
        pool, _, curves = inverter.optimise(batch, Session())
        assert curves[1].isnan().all() == broken
        pool = inverter.search(batch, pool, Session())
        candidates, failed = inverter.select(batch, pool, Session())
        assert list(failed) == [1] * broken
        return [[(c.token_ids, pytest.approx(c.loss)) for c in candidates[row]] for row in (0, 2)]

    assert found(broken=True) == found(broken=False)


def test_an_image_without_a_candidate_that_reads_back_fails_alone(inverter_of, targets):
    inverter = inverter_of(*LBFGS)
    batch = Batch(targets, inverter.generator, inverter.scorer)
    pool, _, _ = inverter.optimise(batch, Session())
    whole, _ = inverter.select(batch, pool, Session())
    pool.token_ids[1] = inverter.generator.vocabulary.tokenizer.eos_token_id
    found, failed = inverter.select(batch, pool, Session())
    assert str(failed[1]).startswith(f"{targets[1].image_id}: no candidate reads back")
    assert found == {0: whole[0], 2: whole[2]}


def test_an_error_stands_in_the_place_of_its_image(inverter_of):
    class Refuses(Inverter):
        """Finds no prompt for the first image of a batch."""

        def select(self, batch, pool, session):
            found, _ = super().select(batch, pool, session)
            del found[0]
            return found, {0: TargetError(f"{batch.ids[0]}: no candidate")}

    usual, picture = inverter_of(*LBFGS), Image.new("RGB", (16, 16))
    inverter = Refuses(usual.generator, usual.scorer, usual.cfg)
    with pytest.raises(UserError, match=r"^image-0: no candidate"):
        invert(picture, inverter=inverter)
    lost, found = invert([picture] * 2, inverter=inverter)
    assert isinstance(lost, TargetError) and found.prompt


def test_the_same_picture_has_the_same_prompt_whatever_its_name_and_batch(model_overrides, targets):
    """In single precision and to the last bit, on a CPU."""
    words = [*model_overrides, "debug=quick", "trainer=cpu", *LBFGS, "method.smoothing=1.0", "method.prompt_length=4"]
    inverter, one = load_inverter(load_config(words)), replace(targets[0], image_id="another name")
    (alone,) = inverter([targets[0]])
    for batch in ([one, targets[1]], [*targets[1:], one, targets[0]], [targets[k % 3] for k in range(8)]):
        results = [r for t, r in zip(batch, inverter(batch), strict=True) if t.key == one.key]
        for result in results:
            assert outcome(result) == outcome(alone)
            assert (result.loss_curve, result.loss) == (alone.loss_curve, alone.loss)
            assert [c.loss for c in result.candidates] == [c.loss for c in alone.candidates]


# --- what is not finite, what is asked twice, stopping --------------------------------------------------------------


def test_a_candidate_without_a_finite_loss_never_wins(generator, targets):
    latents = generator.encode_images(targets[0].image[None])
    draws = make_draws(0, ["a"], ("test",), 2, WINDOW, generator.latent_shape)
    ids = torch.stack([generator.vocabulary.random(4, torch.Generator().manual_seed(k)) for k in range(3)])[None]
    clean = candidate_losses(generator, latents, ids, draws)
    for poison in (torch.nan, torch.inf, -torch.inf):

        def overflows(module, args, output, value=poison) -> None:
            output.sample[2:4] = value

        hook = generator.denoiser.register_forward_hook(overflows)
        try:
            losses = candidate_losses(generator, latents, ids, draws)
        finally:
            hook.remove()
        assert losses[0].tolist() == [pytest.approx(float(clean[0, 0])), torch.inf, pytest.approx(float(clean[0, 2]))]
        assert losses.min(1).values == losses[0, [0, 2]].min()
    known = torch.tensor([[torch.inf, 0.5, torch.nan, -torch.inf, 0.4, torch.nan]])
    pool = Pool(ids[:, [0, 1, 2, 0, 1, 2]], known, torch.arange(6)[None])
    assert set(pool.best(3).epochs[0].tolist()) == {1, 4, 5}  # and the newest
    assert pool.lowest(2).losses.tolist() == [[pytest.approx(0.4), 0.5]]


def test_a_judge_scores_the_same_tokens_once(generator, targets):
    latents = generator.encode_images(torch.stack([target.image for target in targets[:2]]))
    draws = make_draws(0, ["a", "b"], ("judge",), 3, WINDOW, generator.latent_shape)
    a, b, c = (generator.vocabulary.random(4, torch.Generator().manual_seed(k)) for k in range(3))
    judge, before = Judge(generator, latents, draws), generator.counter.forward
    first = judge(torch.stack([torch.stack([a, b, a]), torch.stack([c, c, c])]))
    assert generator.counter.forward - before == (2 + 1) * 3
    expected = candidate_losses(generator, latents, torch.stack([torch.stack([a, b]), torch.stack([c, c])]), draws)
    torch.testing.assert_close(first[:, :2], expected)
    assert torch.equal(first[:, 0], first[:, 2])
    again, before = Judge(generator, latents, draws), generator.counter.forward
    again.load_state_dict(judge.state_dict())
    assert torch.equal(again(torch.stack([b, c])[:, None])[:, 0], first[:, 1])
    assert generator.counter.forward == before


def test_a_session_hears_of_every_step_and_stops_before_the_next_call(inverter_of, targets):
    class Stop(Exception):
        pass

    class Listener(Session):
        def __init__(self, stop_at: int = 0) -> None:
            super().__init__()
            self.heard, self.calls, self.stop_at = [], 0, stop_at

        def report(self, stage, done, total):
            self.heard.append((stage, done, total))

        def check_stop(self):
            self.calls += 1
            if self.calls == self.stop_at:
                raise Stop

    inverter = inverter_of("method=ph2p_plus", *LBFGS[1:4], "method.budget=700", "method.search.draws=2")
    steps, whole = plan(inverter.cfg.method), Listener()
    inverter(targets[:2], whole)
    totals = {"optimising": steps.epochs, "searching": steps.rounds, "choosing": 2, "measuring": 1}
    assert whole.heard[:4] == [(stage, 0, total) for stage, total in reversed(totals.items())]
    assert whole.heard[4:] == [(stage, k, total) for stage, total in totals.items() for k in range(1, total + 1)]
    for stop_at in (1, whole.calls // 3, whole.calls // 2, whole.calls):  # in different stages
        session = Listener(stop_at)
        with counted(inverter.generator.denoiser) as rows, pytest.raises(Stop):
            inverter(targets[:2], session)
        assert session.calls == stop_at and bool(rows["forward"]) == (stop_at > 1)
    assert not inverter.generator.denoiser._forward_pre_hooks


def test_an_unknown_objective_is_one_line(generator):
    with pytest.raises(UserError, match=r"^method\.objective=beauty: choose one of denoising, clip$"):
        make_objective("beauty", generator, None)


def test_the_loss_is_the_pipelines_own(generator, targets):
    pipeline, images = generator.pipeline, torch.stack([t.image for t in targets])
    texts = ["red square above", "small blue circle", "dog dogs café"]
    ids = torch.tensor([generator.vocabulary.encode(text) for text in texts])
    latents = generator.encode_images(images)
    draws = make_draws(0, ["a", "b", "c"], ("test",), 3, WINDOW, generator.latent_shape)
    rows = []
    with torch.no_grad():
        hidden = pipeline.encode_prompt(texts, "cpu", 1, False)[0]
        for row in range(3):
            clean, noise, t = latents[row].expand(3, -1, -1, -1), draws.noise[row].double(), draws.timesteps[row]
            noisy = pipeline.scheduler.add_noise(clean, noise, t)
            predicted = pipeline.unet(noisy, t, hidden[row].expand(3, -1, -1)).sample
            rows.append((pipeline.scheduler.get_velocity(clean, noise, t) - predicted).square().mean())
    expected = torch.stack(rows)
    soft = DenoisingObjective(generator)(generator.vocabulary.embed(ids), ids, latents, draws)
    torch.testing.assert_close(soft, expected)
    torch.testing.assert_close(candidate_losses(generator, latents, ids[:, None], draws)[:, 0], expected)


# --- projection ---------------------------------------------------------------------------------------------------


class Watch(L.Callback):
    """Note prompt and tokens at the end of each epoch, in the trainer's order of callbacks."""

    def __init__(self) -> None:
        self.prompts, self.tokens = [], []

    def on_train_epoch_end(self, trainer, module) -> None:
        self.prompts.append(module.prompt.detach().clone())
        self.tokens.append(module.token_ids.clone())


def bowl(prompt, token_ids, latents, draws):
    """A quadratic objective whose minimum, the latents, lies between the tokens."""
    return (prompt - latents[:, 0]).square().sum((1, 2))


def fitted(vocabulary, snap: bool, straight_through: bool = False, judge=None) -> tuple[Watch, Watch, PromptInversion]:
    random = torch.Generator().manual_seed(0)
    goal = 2 * vocabulary.embeddings.std() * torch.randn(3, 1, 4, 16, generator=random)
    start = torch.stack([vocabulary.random(4, random) for _ in range(3)])
    module = PromptInversion(
        bowl,
        vocabulary,
        start,
        lambda p: torch.optim.SGD(p, lr=0.1),
        units_of("embedding", vocabulary),
        straight_through,
    )
    if judge:
        module.token_losses = judge(start[:, None])[:, 0]
    before, after = Watch(), Watch()
    trainer = L.Trainer(
        accelerator="cpu",
        max_epochs=4,
        callbacks=[before, DelayedProjection(snap, judge, SCALES), after],
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
    )
    trainer.fit(module, InversionData(goal, ["a", "b", "c"], 0, 1, 3, WINDOW))
    return before, after, module


def brute_force(vocabulary, prompt):
    """The allowed token of least distance, one by one."""
    allowed = vocabulary.allowed.nonzero().flatten().tolist()
    distance = [(prompt.double() - vocabulary.embeddings[v].double()).norm(dim=-1) for v in allowed]
    return torch.tensor(allowed)[torch.stack(distance).argmin(0)]


def test_snap_moves_the_prompt_onto_the_nearest_allowed_tokens(generator):
    vocabulary = generator.vocabulary
    before, after, _ = fitted(vocabulary, snap=True)
    for prompt, projected, tokens in zip(before.prompts, after.prompts, after.tokens, strict=True):
        assert torch.equal(tokens, brute_force(vocabulary, prompt))
        assert vocabulary.allowed[tokens].all() and not vocabulary.allowed.all()
        assert torch.equal(projected, vocabulary.embeddings[tokens])
        assert not torch.equal(prompt, projected)


def test_a_judge_takes_the_best_length_and_an_epoch_starts_from_the_best_prompt_so_far(generator):
    vocabulary, asked = generator.vocabulary, []
    # The start's loss and each epoch's best one, by row; the second row has none. The best is that of `length`.
    verdicts = torch.tensor([[3.0, 2.0, 2.5, 1.0, 1.5], [torch.nan] * 5, [3.0, 4.0, 2.0, 2.0, 5.0]])
    length = [2, 0, 1]

    class Told(Judge):
        def __call__(self, candidates):
            distance = (torch.arange(candidates.shape[1]) - torch.tensor(length)[:, None]).abs()  # (B, K)
            asked.append(candidates)
            return verdicts[:, len(asked) - 1, None] + distance * (len(asked) > 1)

    before, after, _ = fitted(vocabulary, snap=True, judge=Told(generator, torch.zeros(3), None))
    best, kept = asked[0][:, 0], []
    for epoch in range(4):
        start = vocabulary.embeddings[best]
        for k, scale in enumerate(SCALES):
            ahead = start + scale * (before.prompts[epoch] - start)
            assert torch.equal(asked[epoch + 1][:, k], brute_force(vocabulary, ahead))
        for row in (0, 2):
            assert torch.equal(after.tokens[epoch][row], asked[epoch + 1][row, length[row]])
        better = verdicts[:, epoch + 1] < verdicts[:, : epoch + 1].amin(1)
        best = torch.where(better[:, None], after.tokens[epoch], best)
        assert torch.equal(after.prompts[epoch], vocabulary.embeddings[best])
        kept.append(better.tolist())
    assert kept == [[True, False, False], [False, False, True], [True, False, False], [False, False, False]]


def test_without_snap_the_prompt_goes_on(generator):
    before, after, module = fitted(generator.vocabulary, snap=False)
    for prompt, same, tokens in zip(before.prompts, after.prompts, after.tokens, strict=True):
        assert torch.equal(prompt, same)
        assert torch.equal(tokens, brute_force(generator.vocabulary, prompt))
    assert not torch.equal(after.prompts[0], after.prompts[1])
    kept = {"coordinates", "token_ids", "token_losses", "losses", "first_losses", "alive", "evaluations"}
    assert set(module.state_dict()) == kept  # nothing frozen


def test_straight_through_sees_tokens_and_moves_the_continuous_prompt(generator):
    module = fitted(generator.vocabulary, snap=False, straight_through=True)[2]
    assert not torch.equal(module.prompt, generator.vocabulary.embed(module.token_ids))
    seen = []
    module._frozen = (lambda prompt, *rest: seen.append(prompt) or bowl(prompt, *rest), module.vocabulary)
    latents, module.coordinates.grad = torch.zeros(3, 1, 4, 16), None
    module(latents, None).sum().backward()
    hard = generator.vocabulary.embed(brute_force(generator.vocabulary, module.prompt))
    torch.testing.assert_close(seen[0], hard)
    torch.testing.assert_close(module.coordinates.grad, 2 * hard)


def test_lbfgs_forgets_between_epochs(generator):
    parameter = torch.nn.Parameter(torch.randn(2, 3))
    optimizer = BatchedLBFGS([parameter], max_eval=4)
    units = units_of("embedding", generator.vocabulary)
    module = PromptInversion(bowl, generator.vocabulary, generator.vocabulary.allowed_ids[:2, None], None, units)

    def closure():
        optimizer.zero_grad()
        losses = parameter.square().square().sum(1)
        losses.sum().backward()
        return losses.detach()

    optimizer.step(closure)
    assert optimizer.state[parameter]["s"].abs().sum() > 0
    trainer = type("Trainer", (), {"optimizers": [optimizer]})
    DelayedProjection(True).on_train_epoch_end(trainer, module)
    assert optimizer.state[parameter]["s"].abs().sum() == 0


# --- cost and frozen weights --------------------------------------------------------------------------------------


@contextmanager
def counted(unet):
    """Count the rows that go forward through the denoiser, and those whose gradient comes back."""
    rows = Counter()

    def count(module, args, kwargs, output):
        sample = output[0] if isinstance(output, tuple) else output.sample
        rows["forward"] += len(sample)
        if sample.requires_grad:
            sample.register_hook(lambda gradient: rows.update(backward=len(gradient)))

    handle = unet.register_forward_hook(count, with_kwargs=True)
    try:
        yield rows
    finally:
        handle.remove()


@pytest.mark.parametrize(
    "method",
    [
        ["method=ph2p", "method.restarts=2"],
        ["method=ph2p_plus", "method.search.starts=2", "method.search.draws=3", "method.budget=1200"],
        ["method=pez_diffusion"],
        ["method=simplex"],
        ["method=random", "method.restarts=10", "method.selection.shortlist=10"],
        ["method=pez"],
    ],
    ids=lambda method: method[0].removeprefix("method="),
)
def test_counted_samples_are_what_the_denoiser_sees_and_no_weight_changes(inverter_of, targets, method):
    inverter = inverter_of(*method)
    frozen = [*inverter.generator.parameters(), *inverter.scorer.parameters()]
    before = [weight.clone() for weight in frozen]
    with counted(inverter.generator.pipeline.unet) as rows:
        results = inverter(targets)
    assert rows["backward"] == sum(r.backward_samples for r in results)
    assert rows["forward"] == sum(r.forward_samples + r.evaluation_samples for r in results)
    for result in results:
        assert 0 < result.forward_samples + result.backward_samples <= inverter.cfg.method.budget
        assert len(result.loss_curve) == plan(inverter.cfg.method).epochs
    assert all(weight.grad is None for weight in frozen)
    assert all(torch.equal(*pair) for pair in zip(frozen, before, strict=True))


def test_a_snapped_candidate_is_ranked_by_its_own_loss(generator, inverter_of, targets):
    inverter = inverter_of("method=sgd", "method.budget=600", "method.selection.shortlist=4")
    batch = Batch(targets, inverter.generator, inverter.scorer)
    pool, _, _ = inverter.optimise(batch, Session())
    data = InversionData(
        batch.latents, batch.keys, 0, inverter.cfg.method.draws, 1, tuple(inverter.cfg.method.timesteps)
    )
    for epoch in range(3):  # the candidate number e was evaluated on the draws of epoch e, where it was the start
        latents, draws = data.batch(epoch, 0)
        own = candidate_losses(generator, latents, pool.token_ids[:, epoch, None], draws)[:, 0]
        assert torch.allclose(own.double(), pool.losses[:, epoch].double(), rtol=1e-5)


# --- what a prompt has passed through ------------------------------------------------------------------------------


SEARCHED = ["method=fast", "method.draws=2", "method.judge_draws=2", "method.optimizer.max_eval=4"]


def test_the_trail_has_every_evaluation_and_every_prompt_on_the_way(inverter_of, targets):
    inverter = inverter_of(*SEARCHED, "method.restarts=2")
    for result in inverter(targets[:2]):
        trail, vocabulary = result.trail, inverter.generator.vocabulary
        known = set(vocabulary.words(vocabulary.allowed_ids))
        assert trail.ends == sorted(set(trail.ends)) and trail.ends[-1] == len(trail.losses) > len(trail.ends)
        for loss, begin, end in zip(result.loss_curve, [0, *trail.ends], trail.ends, strict=False):
            # Where the epoch ended: one of its evaluations, not always the last, which may be a trial that was refused.
            assert min(abs(other - loss) for other in trail.losses[begin:end]) < 1e-6
        assert len(trail.projected) == len(trail.judged) == len(trail.ends) + 1
        assert len(set(map(tuple, trail.projected))) > 1 and len(trail.rounds) == len(result.search_curve)
        assert (trail.hard, trail.restarts) == ("first of each epoch", 2)
        assert all(all(word in known for word in words) for words in (*trail.projected, *trail.rounds))


@pytest.mark.parametrize(
    "method, hard", [(LBFGS, "first of each epoch"), (SIMPLEX, "first of each epoch"), (STRAIGHT_THROUGH, "all")]
)
def test_the_trail_says_which_losses_are_of_real_tokens(inverter_of, targets, method, hard):
    inverter = inverter_of(*method)
    (result,) = inverter(targets[:1])
    trail, generator = result.trail, inverter.generator
    assert trail.hard == hard and not trail.rounds
    batch, objective = Batch(targets[:1], generator, inverter.scorer), inverter._objective()
    data = inverter._data(batch, objective, batch.keys, len(trail.projected[0]))
    latents, draws = data.batch(0, 0)
    start = torch.tensor([[generator.vocabulary.encode(word)[0] for word in trail.projected[0]]])
    hard_loss = objective(generator.vocabulary.embed(start), start, latents, draws)
    assert trail.losses[0] == pytest.approx(float(hard_loss), rel=1e-5)
