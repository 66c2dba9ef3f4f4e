"""The live page's queue without a browser: pictures come in, are inverted one after another, and lie in a folder."""

import json
import time
import zipfile
from pathlib import Path

import pytest
import torch
from runs import light_denoiser, make_pictures

from ph2p import cli
from ph2p.cli import view
from ph2p.errors import UserError
from ph2p.inversion.session import BestSoFar
from ph2p.inverter import Inverter
from ph2p.report.records import read_results
from ph2p.run.live import DONE, DROPPED, FAILED, WORKING, Job, Live

HOSTILE = """<img src=x onerror=alert(1)> & "q" 'q' {{ 7 * 7 }} ${alert(1)}"""
QUICK = ["debug=quick", "trainer=cpu", "method.draws=1", "method.judge_draws=1", "method.selection.draws=2"]


@pytest.fixture
def live(model_overrides, inverter_of, generator, monkeypatch, tmp_path):
    """A queue over the random models; `live.loaded` lists the configurations that they were loaded for."""
    monkeypatch.setattr(generator.pipeline.unet, "forward", light_denoiser)
    loaded, scorer = [], inverter_of().scorer

    def load(cfg):
        loaded.append(cfg)
        return Inverter(generator, scorer, cfg)

    some = Live([*model_overrides, *QUICK, f"output={tmp_path}", "method.prompt_length=4"], load)
    some.loaded = loaded
    yield some
    some.close()


def wait(jobs, *states) -> None:
    deadline = time.monotonic() + 120
    while not all(job.state in states for job in jobs):
        assert time.monotonic() < deadline, [job.state for job in jobs]
        time.sleep(0.02)


def test_pictures_are_inverted_one_after_another_and_lie_in_a_results_folder(live, tmp_path):
    pictures = sorted(make_pictures(tmp_path / "pictures", 2).iterdir())
    broken = tmp_path / "broken.png"
    broken.write_text("no picture")
    with pytest.raises(UserError, match=r"^method\.require=.* is forbidden"):
        live.add(pictures, ["method.require=[red]", "method.forbid=[red]"])
    jobs = live.add([pictures[0], broken], ["method.require=[circle]"]) + live.add(pictures[1:], ["method=ph2p"])
    wait(jobs, DONE, FAILED)
    first, wrong, second = jobs
    assert "circle" in first.result.prompt.split() and first.found[-1].prompt and first.part == second.part == 1
    assert wrong.state == FAILED and "broken.png" in wrong.error and "\n" not in wrong.error
    assert len(live.loaded) == 1  # the next pictures take what is there
    records = read_results(live.folder)
    assert [record["status"] for record in records] == ["ok", "failed", "ok"]
    assert [record["method"] for record in records if record["status"] == "ok"] == ["ph2p_plus", "ph2p"]
    assert len({record["settings"] for record in records if record["status"] == "ok"}) == 2
    names = zipfile.ZipFile(live.archive()).namelist()
    assert "index.html" in names and not [name for name in names if "upload" in name or name.startswith(("/", ".."))]
    assert sum(name.endswith("target.png") for name in names) == 2
    assert [json.loads(line)["image_id"] for line in live.lines().read_text().splitlines()] == [
        j.image_id for j in jobs
    ]
    shown = view.finished(jobs)
    assert shown.index(second.image_id) < shown.index(first.image_id) and first.result.prompt in shown


def test_a_picture_ends_early_and_the_waiting_ones_go(live, tmp_path):
    pictures = sorted(make_pictures(tmp_path / "pictures", 3).iterdir())
    first, *others = live.add(pictures, ["method.budget=1000000"])
    wait([first], WORKING)
    while not first.found:
        time.sleep(0.02)
    live.drop_waiting()
    live.finish_early()
    assert "best so far" in view.running(live.jobs)
    wait([first, *others], DONE, DROPPED)
    assert first.state == DONE and first.result.warnings[-1] == "cut short: it was asked to finish early"
    assert [job.state for job in others] == [DROPPED] * 2 and len(read_results(live.folder)) == 1
    (last,) = live.add(pictures[:1], ["method.budget=1000000"])
    wait([last], WORKING)
    live.close()
    wait([last], DROPPED)


def test_what_is_shown_is_escaped(tmp_path):
    job = Job(f"001-{HOSTILE}", tmp_path / "none.png", None, WORKING)
    job.found = [BestSoFar(job.image_id, f"{HOSTILE}{k}", 0.5 - k / 10) for k in range(3)]
    waiting, failed = Job(HOSTILE, Path(), None), Job(HOSTILE, Path(), None, FAILED, error=HOSTILE + "\u202e")
    for html in (view.running([job, waiting]), view.finished([failed]), view.complaint(HOSTILE)):
        assert "&lt;img src=x" in html and "<img src=x" not in html and "\u202e" not in html
        assert 'data-prompt="<' not in html and '"q"' not in html


def test_a_curve_fits_its_box():
    points = [tuple(map(float, point.split(","))) for point in view.curve([0.9, 0.4, float("inf"), 0.6]).split()]
    assert [x for x, _ in points] == [0, 50, 100]
    assert all(0 <= y <= 24 for _, y in points) and points[0][1] < points[2][1] < points[1][1]
    assert view.curve([0.5]) == view.curve([float("inf")] * 3) == "" and view.curve([1.0, 1.0])


def test_a_picture_is_an_address():
    assert view.address(torch.rand(3, 8, 8)).startswith("data:image/png;base64,")


def test_without_gradio_one_line_says_what_to_install(monkeypatch, capsys):
    monkeypatch.setattr(cli, "find_spec", lambda name: None)
    assert cli.main(["ui"]) == 2
    assert capsys.readouterr().err == 'error: ph2p ui needs Gradio: pip install "ph2p[ui]"\n'
