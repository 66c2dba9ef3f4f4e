"""Ending early with the best so far: by the clock, by the session, and what the results say of it."""

import pytest
from runs import SMALL, Runner, light_denoiser, make_pictures

from ph2p.config.budget import plan
from ph2p.errors import UserError
from ph2p.inversion.session import Session
from ph2p.report.records import read_results

KEYS = [
    "method=ph2p_plus",
    "method.draws=2",
    "method.judge_draws=2",
    "method.optimizer.max_eval=4",
    "method.budget=700",
]
LIMIT = "cut short: its time limit of 2 min was reached"
ASKED = "cut short: it was asked to finish early"


@pytest.fixture(autouse=True)
def quick(generator, monkeypatch):
    monkeypatch.setattr(generator.pipeline.unet, "forward", light_denoiser)


class Clock(Session):
    """Its time is up, by the clock or because somebody asks, once `done` steps of `stage` are through."""

    def __init__(self, stage: str = "", done: int = 0, asked: bool = False) -> None:
        super().__init__()
        self.stage, self.done, self.asked, self.up = stage, done, asked, False
        self.heard, self.best = [], []

    def report(self, stage, done, total):
        self.heard += [stage] if done else []
        self.up = self.up or (stage == self.stage and done == self.done)

    def seconds(self):
        return 120.0 if self.up and not self.asked else 1.0

    def enough(self):
        return self.up and self.asked

    def hear(self, best):
        self.best.append(best())


@pytest.mark.parametrize("asked", [False, True])
def test_it_ends_at_the_next_step_and_goes_on_with_what_was_found(inverter_of, targets, asked):
    inverter = inverter_of(*KEYS, "method.time_limit=2")
    steps = plan(inverter.cfg.method)
    assert steps.epochs > 2 and steps.rounds > 1
    for stage, done, epochs, rounds in (
        ("optimising", 0, 0, 0),
        ("optimising", 1, 2, 0),
        ("searching", 1, steps.epochs, 1),
    ):
        session = Clock(stage, done, asked)
        results = inverter(targets[:2], session)
        assert (session.heard.count("optimising"), session.heard.count("searching")) == (epochs, rounds)
        assert session.heard.count("choosing") == 2 and session.heard.count("measuring") == 1
        for result in results:
            assert result.prompt and result.warnings[-1] == (ASKED if asked else LIMIT)
            assert len(result.loss_curve) == epochs and result.renderings is not None
    assert all(
        r.warnings == [w for w in r.warnings if "cut" not in w]
        for r in inverter(targets[:2], Clock("choosing", 1, asked))
    )


def test_within_an_epoch_of_many_steps_too_and_its_tokens_are_projected(inverter_of, targets):
    class Calls(Session):
        asked = 0

        def enough(self):
            self.asked += 1
            return self.asked > 5

    inverter = inverter_of("method=soft", "method.steps=40")
    assert plan(inverter.cfg.method).epochs == 1
    (result,) = inverter(targets[:1], Calls())
    assert result.backward_samples == 5 * inverter.cfg.method.draws and len(result.candidates) == 2
    assert result.warnings[-1] == ASKED


def test_a_session_hears_the_best_so_far_after_every_step(inverter_of, targets):
    inverter, session = inverter_of(*KEYS), Clock()
    results = inverter(targets[:2], session)
    steps = plan(inverter.cfg.method)
    assert len(session.best) == steps.epochs + steps.rounds + 1  # the search's start too
    assert all([best.image_id for best in step] == [target.image_id for target in targets[:2]] for step in session.best)
    for row, result in enumerate(results):
        losses = [step[row].loss for step in session.best[: steps.epochs]]
        assert losses == sorted(losses, reverse=True)  # the judge's draws stay the same
        assert session.best[-1][row].prompt in {candidate.text for candidate in result.candidates}


def test_a_run_says_that_it_was_cut_short_and_is_finished(model_overrides, tmp_path):
    pictures = make_pictures(tmp_path / "pictures", 2)
    runner = Runner([*model_overrides, *SMALL, f"data.path={pictures}", f"output={tmp_path}", "name=run"])
    assert runner.run("method.time_limit=1e-9") == 0
    records = read_results(tmp_path / "run")
    assert [record["warnings"][-1] for record in records] == ["cut short: its time limit of 1e-09 min was reached"] * 2
    page = (tmp_path / "run" / "index.html").read_text()
    assert page.count("cut short: its time limit") == 4  # on the card and in the details of each
    assert not list((tmp_path / "run").glob("checkpoints/*.ckpt"))
    assert runner.run("method.time_limit=1e-9") == 0 and read_results(tmp_path / "run") == records


@pytest.mark.parametrize("value", ["0", "-1", "inf", "nan", "soon"])
def test_a_limit_is_a_number_of_minutes(value):
    from ph2p import load_config

    with pytest.raises(UserError, match=r"^method\.time_limit[=:]"):
        load_config([f"method.time_limit={value}"])
