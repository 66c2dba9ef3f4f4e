"""Several starts of one image: the weaker ones are dropped halfway, and how far their prompts agree."""

import pytest
import torch
from runs import SMALL, Runner, found, make_pictures

from ph2p.config.budget import first_epochs, kept_starts, plan
from ph2p.config.compose import load_config
from ph2p.evaluation.result import as_record
from ph2p.inversion.batch import Batch
from ph2p.inversion.halving import agreement, agreements, finishers, strongest
from ph2p.inversion.session import Session

STARTS = ["method=ph2p", "method.draws=2", "method.judge_draws=2", "method.optimizer.max_eval=4", "method.restarts=3"]


def test_agreement_is_the_part_of_common_words_of_each_two():
    assert agreement(["a red dog", "Dog red RED"]) == pytest.approx(2 / 3)
    assert agreement(["red dog", "red cat", "blue cat"]) == pytest.approx((1 / 3 + 0 + 1 / 3) / 3)
    assert agreement(["red dog"] * 4) == 1 and agreement(["red", "dog"]) == 0
    assert agreement(["red dog"]) is None and agreement([]) is None
    words = {1: "red", 2: "dog", 3: "cat"}
    found = agreements(
        torch.tensor([[1, 2], [2, 1], [1, 2], [3, 2]]), lambda ids: " ".join(map(words.get, ids.tolist())), 2
    )
    assert found == [1, pytest.approx(1 / 3)]


def test_the_lowest_losses_go_on_and_what_is_not_finite_does_not():
    losses = torch.tensor([[0.3, 0.1, 0.2], [torch.nan, 0.5, torch.inf], [0.4, 0.4, 0.4]])
    alive = strongest(losses, 2)
    assert alive.tolist() == [[False, True, True], [True, True, False], [True, True, False]]
    assert finishers(alive.flatten(), 3).tolist() == [1, 3, 6]


class Alive(Session):
    """Notes which rows are optimised at the end of each epoch, and what the epoch has cost."""

    def fit(self, module, data, epochs, callbacks) -> None:
        (halving,) = [one for one in callbacks if type(one).__name__ == "Halving"]
        self.seen, self.losses, inner = [], [], halving.on_train_epoch_end

        def note(trainer, module) -> None:
            self.losses.append(halving.projection.best["losses"].clone())
            inner(trainer, module)
            self.seen.append(module.alive.clone())

        halving.on_train_epoch_end = note
        super().fit(module, data, epochs, callbacks)


def test_after_half_the_epochs_the_better_half_goes_on_and_the_others_cost_nothing(inverter_of, targets):
    inverter = inverter_of(*STARTS, "method.budget=700")
    method, session = inverter.cfg.method, Alive()
    epochs, batch = plan(method).epochs, Batch(targets, inverter.generator, inverter.scorer)
    assert epochs >= 4 and kept_starts(method) == 2
    half = first_epochs(epochs)
    pool, _, curves = inverter.optimise(batch, session)
    assert all(seen.all() for seen in session.seen[: half - 1])
    alive = strongest(session.losses[half - 1].view(3, 3), 2)
    assert all(torch.equal(seen.view(3, 3), alive) for seen in session.seen[half - 1 :])
    rows = 3 * half + 2 * (epochs - half)  # of an image, over all epochs
    evaluations, judged = rows * method.draws * 4, 3 * method.judge_draws + rows * 4 * method.judge_draws
    assert batch.backward == [evaluations] * 3
    assert all(evaluations < spent <= evaluations + judged for spent in batch.forward)
    assert curves.shape == (3, epochs) and curves.isfinite().all()  # of a start that went on
    tokens = pool.token_ids.view(3, 3, epochs + 1, -1)
    for image, start in (~alive).nonzero().tolist():
        best = pool.losses.view(3, 3, -1)[image, start, : half + 1].argmin()
        for later in range(half + 1, epochs + 1):
            assert torch.equal(tokens[image, start, later], tokens[image, start, best])
    assert [len(trail.losses) for trail in batch.trails] == [4 * epochs] * 3


def test_the_record_says_how_far_starts_agreed(inverter_of, targets):
    several = inverter_of(*STARTS, "method.budget=500")(targets[:2])
    for result in several:
        assert 0 <= result.agreement <= 1 and as_record(result)["agreement"] == result.agreement
    for words in (["method=ph2p", *STARTS[1:4], "method.budget=300"], ["method=random", "method.restarts=4"]):
        (result,) = inverter_of(*words)(targets[:1])
        assert result.agreement is None and as_record(result)["agreement"] is None


def test_without_a_judge_all_starts_go_on():
    method = load_config(["method=sgd", "method.restarts=3"]).method
    assert kept_starts(method) == 3
    twice = load_config(["method=sgd", "method.restarts=3", f"method.budget={2 * method.budget}"]).method
    assert plan(twice).epochs > plan(method).epochs > 0


def test_the_best_preset_has_starts_to_drop():
    best, usual = load_config(["method=best"]).method, load_config(["method=ph2p_plus"]).method
    assert best.budget == 3 * usual.budget and kept_starts(best) == 1
    assert plan(best).epochs > plan(usual).epochs and plan(best).rounds > plan(usual).rounds


def test_an_interrupted_run_drops_the_same_starts(model_overrides, tmp_path):
    pictures = make_pictures(tmp_path / "pictures", 2)
    words = [*SMALL, *model_overrides, f"output={tmp_path}/out", f"data.path={pictures}"]
    runner = Runner([*words, "method.restarts=3", "method.budget=400"])
    assert plan(runner.inverter.cfg.method).epochs >= 4

    def ending(inverter, targets, session):
        report, left = session.report, [4]

        def counting(stage, done, total):
            report(stage, done, total)
            left[0] -= bool(done)
            if left[0] <= 0:
                raise RuntimeError(stage)

        session.report = counting
        return inverter(targets, session)

    assert runner.run("name=whole") == 0
    interrupted = 0
    while (code := runner.run("name=parts", call=ending)) != 0:
        assert code == 70 and interrupted < 40
        interrupted += 1
    assert interrupted >= 2
    assert found(tmp_path / "out" / "parts") == found(tmp_path / "out" / "whole")
