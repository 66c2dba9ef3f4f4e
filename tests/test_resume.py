"""A run that is interrupted, in whatever way, ends with the results of one that was not, to the last bit."""

import json
import os
import random
import shutil
import signal
import subprocess
import time
from contextlib import contextmanager
from dataclasses import replace
from functools import partial
from pathlib import Path

import pytest
import torch
from runs import QUICK, SMALL, Runner, found, kill_after, lines, make_pictures

from ph2p.config.compose import load_config
from ph2p.errors import UserError
from ph2p.report.records import read_results
from ph2p.run import session, stopping
from ph2p.run.checkpoint import BatchCheckpoint
from ph2p.run.engine import run
from ph2p.run.remeasure import remeasure, repaint
from ph2p.run.results import ResultsFolder

SHM = Path("/dev/shm")  # in memory: a checkpoint is flushed to the disk after every epoch


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    if not os.access(SHM, os.W_OK):
        yield tmp_path_factory.mktemp("resume")
        return
    folder = SHM / f"ph2p-{os.getpid()}"
    folder.mkdir()
    yield folder
    subprocess.run(["rm", "-r", str(folder)], check=True)


@pytest.fixture(scope="module")
def runner(place, model_overrides) -> Runner:
    pictures = make_pictures(place / "pictures")
    return Runner([*SMALL, *model_overrides, f"output={place}/out", f"data.path={pictures}"])


@pytest.fixture(scope="module")
def undisturbed(place, runner) -> dict[str, dict]:
    assert runner.run("name=undisturbed") == 0
    assert not list((place / "out/undisturbed/checkpoints").iterdir())
    result = found(place / "out" / "undisturbed")
    assert len(result) == 5 and len({record["loss"] for record in result.values()}) == 5
    return result


# --- killed at random moments -------------------------------------------------------------------------------------


def test_killed_at_random_moments(place, runner, undisturbed):
    """20 SIGKILLs and 10 SIGTERMs that find the run alive; half of the killed leave a torn line too."""
    chance, kills, runs = random.Random(0), {signal.SIGKILL: 0, signal.SIGTERM: 0}, 0
    wanted = {signal.SIGKILL: 20, signal.SIGTERM: 10}
    folder = place / "out" / "killed-0"
    while kills != wanted or not folder.exists():
        left = [number for number in wanted for _ in range(wanted[number] - kills[number])]
        number = chance.choice(left)
        code = kill_after(runner.start(f"name={folder.name}"), chance.uniform(0.05, 0.8), number)
        if code == 0:  # it was faster
            assert found(folder) == undisturbed
            runs += 1
            folder = place / "out" / f"killed-{runs}"
            continue
        assert code == (143 if number == signal.SIGTERM else -number)
        kills[number] += 1
        part = folder / "results" / "part-00000.jsonl"
        if number == signal.SIGKILL and part.exists() and chance.random() < 0.5:
            part.write_bytes(part.read_bytes() + b'{"image_id": "3.png", "stat')
    assert runner.run(f"name={folder.name}") == 0
    assert found(folder) == undisturbed


def crash_after(steps: int):
    """Let the run raise an error at its report number `steps`, not counting that a stage is announced."""
    left = [steps]

    def call(inverter, targets, session):
        report = session.report

        def counting(stage, done, total):
            report(stage, done, total)
            left[0] -= bool(done)
            if left[0] <= 0:
                raise RuntimeError(stage)

        session.report = counting  # on this one: its fit reports by itself
        return inverter(targets, session)

    return call


def test_an_error_after_every_single_epoch_and_round(place, runner, undisturbed):
    folder, crashes = place / "out" / "crashing", 0  # 14 reports a batch, of three batches
    # The three last reports of a batch lie behind the last checkpoint, so four steps are needed to get over them.
    while (code := runner.run("name=crashing", call=crash_after(4))) != 0:
        assert code == 70 and crashes < 60
        crashes += 1
    assert crashes >= 10
    assert found(folder) == undisturbed


def test_an_image_without_a_prompt_fails_alone_through_interruptions(place, runner, undisturbed):
    """Within its batch, and once: the record is there from the first time on."""

    def overflow():
        runner.overflow(place / "pictures" / "1.png")

    assert runner.run("name=overflow", before=overflow) == 1
    expected = found(place / "out" / "overflow")
    assert {name for name, record in expected.items() if record["status"] == "failed"} == {"1.png"}
    assert all(expected[name]["prompt"] == undisturbed[name]["prompt"] for name in expected if name != "1.png")
    while (code := runner.run("name=overflowing", before=overflow, call=crash_after(4))) == 70:
        pass
    assert code == 1 and found(place / "out" / "overflowing") == expected
    assert runner.run("name=overflowing", before=overflow) == 1
    assert [record["image_id"] for record in lines(place / "out" / "overflowing")].count("1.png") == 1
    assert runner.run("name=overflowing") == 0  # mended, it is inverted


def test_a_kill_between_the_records_of_a_batch(place, runner, undisturbed):
    def call(inverter, targets, session):
        for number, result in enumerate(inverter(targets, session)):
            if number == 1:
                os.kill(os.getpid(), signal.SIGKILL)
            yield result

    assert runner.run("name=between", call=call) == -signal.SIGKILL
    assert [record["image_id"] for record in lines(place / "out" / "between")] == ["0.png"]
    assert runner.run("name=between") == 0
    assert found(place / "out" / "between") == undisturbed


def stopping_at(runner: Runner, log: Path, call: int):
    """Note every call of the denoiser in `log`, and send this process SIGTERM at number `call`."""

    def install() -> None:
        log.write_bytes(b"")

        def note(*_) -> None:
            log.write_bytes(log.read_bytes() + b".")
            if len(log.read_bytes()) == call:
                os.kill(os.getpid(), signal.SIGTERM)

        runner.inverter.generator.denoiser.register_forward_pre_hook(note)

    return install


def test_sigterm_ends_a_run_before_the_next_call_of_the_denoiser(place, runner, undisturbed):
    """Within a step of L-BFGS, a round of the search, the selection and the measurement: no call follows the signal."""
    log = place / "calls"
    assert runner.run("name=counted", before=stopping_at(runner, log, 0)) == 0
    calls, stops = len(log.read_bytes()), 0
    for call in range(5, calls, max(1, calls // 15)):
        assert runner.run(f"name=stop-{call}", before=stopping_at(runner, log, call)) == 143
        assert len(log.read_bytes()) == call
        assert runner.run(f"name=stop-{call}") == 0
        assert found(place / "out" / f"stop-{call}") == undisturbed
        stops += 1
    assert stops >= 10


def test_sigterm_ends_a_run_while_its_model_is_loaded(place):
    before = {number: signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGUSR1)}

    def load(cfg):
        os.kill(os.getpid(), signal.SIGTERM)
        time.sleep(100)

    try:
        stopping.listen()
        words = [*SMALL, f"data.path={place}/pictures", f"output={place}/out", "name=loading"]
        begun = time.monotonic()
        assert run(load_config(words), load) == 143 and time.monotonic() - begun < 50
    finally:
        stopping.listen()  # forgets the signal
        for number, handler in before.items():
            signal.signal(number, handler)
    assert not (place / "out" / "loading").exists()


@pytest.mark.parametrize("method", ["soft", "pez_diffusion", "simplex"])
def test_sigterm_within_an_epoch_of_several_steps(place, runner, model_overrides, method):
    """The optimiser's state and the place among the epoch's draws are in the checkpoint; no step is repeated."""
    fixed = [f"output={place}/out", f"data.path={place}/pictures", "method.budget=60", "method.selection.shortlist=2"]
    words = [*QUICK, *model_overrides, f"method={method}", "method.steps=5", "method.judge_draws=0", *fixed]
    runner, log = Runner(words), place / "steps"

    def stop(call: int):
        def install() -> None:
            session.PAUSE = 0.0  # a step takes no time here, and ten seconds elsewhere are worth saving
            stopping_at(runner, log, call)()

        return install

    assert runner.run(f"name={method}") == 0
    for evaluations in (3, 4):  # of both images, each by a call of its own
        assert runner.run(f"name={method}-stopped", before=stop(2 * (1 if evaluations == 4 else 3) + 1)) == 143
        (file,) = (place / "out" / f"{method}-stopped" / "checkpoints").iterdir()
        assert torch.load(file, weights_only=True)["state_dict"]["evaluations"] == evaluations
    assert runner.run(f"name={method}-stopped") == 0
    assert found(place / "out" / f"{method}-stopped") == found(place / "out" / method)


# --- the checkpoint -----------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def stopped(place, runner) -> Path:
    """The folder of a run that was stopped in the middle of its first batch."""
    assert runner.run("name=stopped", call=crash_after(2)) == 70
    return place / "out" / "stopped"


def test_a_checkpoint_is_small_whole_and_holds_nothing_frozen(stopped):
    (file,) = (stopped / "checkpoints").iterdir()
    assert file.stat().st_size < 50_000
    content = torch.load(file, weights_only=True)
    assert set(content["state_dict"]) == {
        "alive",
        "coordinates",
        "token_ids",
        "token_losses",
        "losses",
        "first_losses",
        "evaluations",
    }
    assert list(content["ph2p"]["images"]) == ["0.png", "1.png"]
    assert not [path for path in stopped.rglob(".*") if path.is_file()]  # no half-written file is left behind


def test_a_checkpoint_of_another_folder_goes_on(place, runner, stopped, undisturbed):
    checkpoint = stopped / "checkpoints" / "part-00000.ckpt"
    assert runner.run("name=moved", f"ckpt_path={checkpoint}") == 0
    assert found(place / "out" / "moved") == undisturbed
    assert checkpoint.exists()
    assert runner.run("name=other", f"ckpt_path={checkpoint}", f"data.path={place}/pictures/4.png") == 2


def test_a_changed_configuration_is_refused_with_its_key(runner, stopped, capfd):
    before = (stopped / "checkpoints" / "part-00000.ckpt").read_bytes()
    assert runner.run("name=stopped", "method.draws=2") == 2
    assert "method.draws=1, not 2" in capfd.readouterr().err
    assert runner.run("name=fresh", f"ckpt_path={stopped}/checkpoints/part-00000.ckpt", "seed=1") == 2
    assert "seed=0, not 1" in capfd.readouterr().err
    assert (stopped / "checkpoints" / "part-00000.ckpt").read_bytes() == before
    assert runner.run("name=stopped", "method.prompt_length=2", "resume=force") == 0  # the batch begins anew
    made_with = [json.loads((stopped / "settings" / f"{r['settings']}.json").read_text()) for r in lines(stopped)]
    assert made_with and all(settings["method.prompt_length"] == 2 for settings in made_with)


def test_a_checkpoint_that_cannot_be_gone_on_from_is_refused_before_a_model_is_loaded(place):
    words = [*SMALL, f"data.path={place}/pictures", f"output={place}/out", "name=early", "generator=sd15"]
    for path, reason in (("/nope.ckpt", "cannot be read as a checkpoint"), (__file__, "cannot be read")):
        with pytest.raises(UserError, match=f"{path}: {reason}"):
            run(load_config([*words, f"ckpt_path={path}"]), pytest.fail)
    assert not (place / "out" / "early").exists()


def test_a_broken_checkpoint_gives_one_line(tmp_path):
    path = tmp_path / "part-00000.ckpt"
    for content in (b"", b"nonsense", b"PK\x03\x04" + bytes(100)):
        path.write_bytes(content)
        with pytest.raises(UserError, match=r"part-00000\.ckpt: cannot be read as a checkpoint"):
            BatchCheckpoint(path, {}).read()
        assert BatchCheckpoint(path, {}).read(force=True) == []


# --- what a folder says is so -------------------------------------------------------------------------------------


def test_a_replaced_picture_is_inverted_anew(place, runner, undisturbed, capfd):
    """Under its old name, finished or in the batch that was interrupted; the others are left as they are."""
    pictures, folder = make_pictures(place / "replaced"), place / "out" / "replaced"
    words = ("name=replaced", f"data.path={pictures}")
    assert runner.run(*words) == 0 and found(folder).keys() == undisturbed.keys()
    before = found(folder)
    (pictures / "1.png").write_bytes((pictures / "4.png").read_bytes())
    assert runner.run(*words) == 0
    after = found(folder, "1.png")
    assert after["1.png"]["prompt"] == before["4.png"]["prompt"] != before["1.png"]["prompt"]
    assert {name: after[name] for name in after if name != "1.png"} == {
        name: before[name] for name in before if name != "1.png"
    }
    assert runner.run(*words, "name=begun", call=crash_after(2)) == 70
    (pictures / "0.png").write_bytes((pictures / "4.png").read_bytes())
    assert runner.run(*words, "name=begun") == 0
    assert found(place / "out" / "begun")["0.png"]["prompt"] == before["4.png"]["prompt"]


def test_force_does_anew_what_was_made_with_other_settings(place, runner, undisturbed):
    folder = place / "out" / "forced"
    assert runner.run("name=forced") == 0
    assert runner.run("name=forced", "evaluation.renders=2") == 2
    assert runner.run("name=forced", "evaluation.renders=2", "resume=force", call=crash_after(9)) == 70
    assert runner.run("name=forced", "evaluation.renders=2") == 0  # what is left, without force
    records = read_results(folder)
    assert len({record["settings"] for record in records}) == 1 and len(records) == 5
    assert {len(record["files"]["renderings"]) for record in records} == {2}
    assert len(lines(folder)) == 10
    assert runner.run("name=forced", "resume=force") == 0
    assert not list(folder.rglob("rendering-1.png"))
    assert {name: record["loss"] for name, record in found(folder, *undisturbed).items()} == {
        name: record["loss"] for name, record in undisturbed.items()
    }


def test_finished_prompts_are_measured_and_rendered_anew(place, runner, undisturbed):
    folder = place / "out" / "again"
    assert runner.run("name=again") == 0
    load = partial(replace, runner.inverter)  # of a configuration
    first = {record["image_id"]: record for record in read_results(folder)}
    trails = {file: json.loads(file.read_bytes())["trail"] for file in sorted((folder / "candidates").iterdir())}
    old = next(iter(trails))  # as a program wrote it that kept no trail
    old.write_text(json.dumps({k: v for k, v in json.loads(old.read_bytes()).items() if k != "trail"}))
    assert repaint(folder, ["evaluation.renders=2"], lambda cfg: load(cfg=cfg)) == 5
    second = {record["image_id"]: record for record in read_results(folder)}
    assert remeasure(folder, ["evaluation.draws=3"], lambda cfg: load(cfg=cfg)) == 5
    third = {record["image_id"]: record for record in read_results(folder)}
    kept = {file: json.loads(file.read_bytes()).get("trail") for file in trails}
    assert kept == trails | {old: None} and all(trail["losses"] for trail in trails.values())
    for name, record in first.items():
        assert record["prompt"] == second[name]["prompt"] == third[name]["prompt"]
        assert record["loss"] == second[name]["loss"] != third[name]["loss"]
        assert record["forward_samples"] == third[name]["forward_samples"]
        assert [len(one[name]["files"]["renderings"]) for one in (first, second, third)] == [1, 2, 2]
        assert [one[name]["measured_with"]["draws"] for one in (first, second, third)] == [2, 2, 3]
    assert runner.run("name=again", "evaluation.renders=2", "evaluation.draws=3") == 0  # finished, and by the folder
    assert len(lines(folder)) == 15
    with pytest.raises(UserError, match=r"method\.draws: decides more"):
        remeasure(folder, ["method.draws=2"])


def test_an_image_that_several_ranks_have_written_is_rendered_anew_once(place, runner, undisturbed):
    folder = place / "out" / "twice"
    assert runner.run("name=twice") == 0
    part = folder / "results" / "part-00000.jsonl"
    shutil.copy(part, part.with_name("part-00001.jsonl"))  # as after a run with two ranks
    before = len(lines(folder))
    repaint(folder, ["evaluation.renders=1"], load=lambda cfg: replace(runner.inverter, cfg=cfg))
    assert len(lines(folder)) == before + len(undisturbed)


def test_what_cannot_be_read_in_the_folder_is_an_error_and_not_empty(place, runner, capfd):
    folder = place / "out" / "unreadable"
    (folder / "results" / "part-00001.jsonl").mkdir(parents=True)
    assert runner.run("name=unreadable") == 2
    (line,) = capfd.readouterr().err.splitlines()
    assert "part-00001.jsonl: cannot be read" in line
    (folder / "results" / "part-00001.jsonl").rmdir()
    (folder / "results" / "part-00001.jsonl").write_text("{}\n")
    (folder / "config.yaml").write_text("a: [1")
    assert runner.run("name=unreadable") == 2
    (line,) = capfd.readouterr().err.splitlines()
    assert "config.yaml" in line


# --- the disk -----------------------------------------------------------------------------------------------------


def test_torn_lines_are_completed_or_removed(tmp_path):
    cfg, whole = load_config([]), json.dumps({"image_id": "a", "status": "ok"})
    part = tmp_path / "results" / "part-00000.jsonl"
    part.parent.mkdir()
    for torn, kept in ((whole, [whole]), (whole[:-3], []), ("\0" * 50, []), ("", [])):
        part.write_text("".join(f"{line}\n" for line in [whole]) + torn)
        results = ResultsFolder(tmp_path, cfg)
        results.append({"image_id": "b"})
        results.close()
        assert part.read_text().splitlines() == [whole, *kept, '{"image_id": "b"}']


def test_two_runs_do_not_write_the_same_part(tmp_path, monkeypatch):
    monkeypatch.setattr("ph2p.run.results.LOCK_PATIENCE", 0.1)
    first = ResultsFolder(tmp_path, load_config([]))
    with pytest.raises(UserError, match="another run is writing it"):
        ResultsFolder(tmp_path, load_config([]))
    ResultsFolder(tmp_path, load_config([]), "part-00001").close()
    first.close()
    ResultsFolder(tmp_path, load_config([])).close()


@contextmanager
def mounted(folder: Path, options: str):
    folder.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", options, "tmpfs", str(folder)]
    if os.geteuid() != 0 or subprocess.run(mount, capture_output=True).returncode != 0:
        pytest.skip("may not mount a file system")
    try:
        yield folder
    finally:
        subprocess.run(["umount", str(folder)], check=True)


def test_a_full_disk_loses_nothing(place, runner, undisturbed, capfd):
    with mounted(place / "full", "size=64k") as disk:
        assert runner.run(f"output={disk}", "name=a") == 2
        assert "no space left; free some" in capfd.readouterr().err
        lines(disk / "a")  # each is whole
        subprocess.run(["mount", "-o", "remount,size=4m", str(disk)], check=True)
        assert runner.run(f"output={disk}", "name=a") == 0
        assert found(disk / "a") == undisturbed


def test_a_read_only_output_gives_one_line(place, runner, capfd):
    with mounted(place / "fixed", "ro") as disk:
        assert runner.run(f"output={disk}", "name=a") == 2
        (line,) = capfd.readouterr().err.splitlines()
        assert "cannot be written (Read-only file system); choose another output=" in line
