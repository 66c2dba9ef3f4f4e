"""The `ph2p` command: what is dispatched where, one line for what is wrong, exit codes."""

import json
import os
import re
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from omegaconf import OmegaConf

from ph2p import cli
from ph2p.errors import UserError
from ph2p.run import engine, stopping


@pytest.fixture
def runs(monkeypatch) -> list:
    """What the engine is asked to run; nothing is."""
    asked = []
    monkeypatch.setattr(engine, "run", lambda cfg: asked.append(cfg) or 0)
    return asked


def test_keys_are_a_run(runs, tmp_path):
    assert cli.main(["data=folder", f"data.path={tmp_path}", "method=ph2p", "batch_size=2"]) == 0
    (cfg,) = runs
    assert (cfg.method.name, cfg.batch_size, cfg.data["path"]) == ("ph2p", 2, str(tmp_path))


@pytest.mark.parametrize(
    ("argv", "said"),
    [
        (["method=zzz"], "method"),
        (["metod=ph2p"], "method"),
        (["-m", "metod=ph2p,pez"], "method"),
        (["-m", "seed=0,-1"], "seed=-1"),
        (["-m", "seed=0,1", "trainer.devices=2"], "trainer.devices"),
        (["--cfg", "job", "metod=ph2p"], "method"),
        (["--cfg", "everything"], "--cfg"),
        (["--nothing"], "--nothing"),
        (["report"], "DIR"),
        (["report", "nowhere"], "nowhere"),
        (["report", "--repaint", "--remeasure", "."], "--repaint"),
        (["report", "x"], "outputs/NAME"),
        (["report", "--set", "generator.steps=4", "x"], "--repaint"),
        (["study"], "build|analyse"),
        (["doctor", "metod=ph2p"], "method"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_what_is_wrong_is_one_line_and_exit_code_2(argv, said, runs, capsys):
    assert cli.main(argv) == 2
    out, err = capsys.readouterr()
    assert out == "" and err.startswith("error: ") and err.count("\n") == 1 and said in err
    assert not runs


def test_a_sweep_has_a_name_for_every_run(runs):
    assert cli.main(["-m", "seed=0,1", "method=ph2p,pez"]) == 0
    assert sorted((cfg.seed, cfg.method.name) for cfg in runs) == [(0, "pez"), (0, "ph2p"), (1, "pez"), (1, "ph2p")]
    assert len({cfg.name for cfg in runs}) == 4


def test_a_sweep_runs_the_jobs_after_one_that_failed(monkeypatch, capsys):
    asked = []

    def run(cfg):
        asked.append(cfg.seed)
        if cfg.seed == 0:
            raise UserError("no/model: is not there")
        return cfg.seed - 1

    monkeypatch.setattr(engine, "run", run)
    assert cli.main(["-m", "seed=0,1,2"]) == 2
    assert asked == [0, 1, 2] and capsys.readouterr().err == "error: no/model: is not there\n"
    monkeypatch.setattr(engine, "run", lambda cfg: asked.append(cfg.seed) or 143)
    assert cli.main(["-m", "seed=3,4"]) == 143 and asked[3:] == [3]  # told to stop: the others do not begin


def test_ctrl_c_within_a_fit_is_told_from_a_failure(monkeypatch, capsys):
    def fit(cfg):
        try:
            raise KeyboardInterrupt
        except KeyboardInterrupt:
            sys.exit(1)  # as Lightning does

    monkeypatch.setattr(engine, "run", fit)
    assert cli.main([]) == 130
    assert capsys.readouterr().err == "stopped; the same command continues\n"


def test_version_and_configuration(capsys, root):
    from ph2p import __version__

    assert cli.main(["--version"]) == 0
    assert capsys.readouterr().out == f"ph2p {__version__}\n"
    assert cli.main(["--cfg", "job", "method=pez", "seed=5"]) == 0
    printed = OmegaConf.create(capsys.readouterr().out)
    assert (printed.seed, printed.method.name) == (5, "pez")


def test_help(capsys):
    assert cli.main(["--help"]) == 0
    helped = capsys.readouterr().out
    groups = dict(re.findall(r"^  (\w+)  +(\w.*)$", helped.partition("Groups")[2], re.MULTILINE))
    assert groups["scorer"] == "clip-vit-l-14, embedded, folder, siglip"
    for words in ("data.path=my_images", "ph2p_plus", "batch_size", "ph2p report DIR", "ph2p doctor"):
        assert words in helped


def test_help_whose_reader_has_gone_says_nothing(root):
    reader, writer = os.pipe()
    os.close(reader)
    command = [sys.executable, str(root / "train.py"), "--help"]
    done = subprocess.run(command, stdout=writer, stderr=subprocess.PIPE, timeout=300)
    os.close(writer)
    assert (done.returncode, done.stderr) == (128 + signal.SIGPIPE, b"")


def test_signals_are_heard_before_anything_heavy_is_loaded(root):
    code = "import sys, train\nfrom ph2p.run import stopping\nprint('torch' in sys.modules, stopping.requested())"
    code = f"import os, signal\n{code}\nos.kill(os.getpid(), signal.SIGTERM)\nprint(stopping.requested())"
    done = subprocess.run([sys.executable, "-c", code], cwd=root, capture_output=True, text=True, timeout=300)
    assert done.stdout == "False False\nTrue\n"


def test_the_installed_command_hears_signals_too(monkeypatch):
    called = []
    monkeypatch.setattr(cli, "listen", lambda: called.append("listen"))
    monkeypatch.setattr(cli, "main", lambda argv: called.append(argv) or 3)
    monkeypatch.setattr(sys, "argv", ["ph2p", "seed=1"])
    with pytest.raises(SystemExit) as stopped:
        cli.entry()
    assert called == ["listen", ["seed=1"]] and stopped.value.code == 3
    assert not stopping.requested()


def test_the_module_is_the_command(root):
    done = subprocess.run([sys.executable, "-m", "ph2p.cli", "metod=ph2p"], cwd=root, capture_output=True, timeout=300)
    assert (done.returncode, done.stdout) == (2, b"") and b"did you mean method?" in done.stderr


def test_a_stopped_process_ends_without_clearing_away(root):
    code = "import atexit, os, signal, train; atexit.register(print, 'late'); print('said')"
    for kill, late in (("os.kill(os.getpid(), signal.SIGTERM)", ""), ("pass", "late\n")):
        command = [sys.executable, "-c", f"{code}\n{kill}\ntrain.leave(143)"]
        done = subprocess.run(command, cwd=root, capture_output=True, text=True, timeout=300)
        assert (done.returncode, done.stdout) == (143, f"said\n{late}")


# --- doctor -------------------------------------------------------------------------------------------------------


def test_the_doctor_finds_what_comes_along(capsys):
    assert cli.main(["doctor"]) == 0
    said = capsys.readouterr().out
    for words in ("Python 3", "torch ", "cpu: ", "generator=embedded", "scorer=embedded", "heif: "):
        assert words in said


def test_the_doctor_says_what_is_out_of_reach(capsys, tmp_path, monkeypatch):
    from ph2p.run import doctor

    monkeypatch.setattr(doctor, "find_spec", lambda name: None)
    words = ["generator=folder", f"generator.path={tmp_path}", "scorer=siglip", "scorer.local_files_only=true"]
    words += [f"scorer.cache_dir={tmp_path / 'cache'}", f"evaluation.transfer={tmp_path / 'none'}"]
    (tmp_path / "none").mkdir()
    assert cli.main(["doctor", *words]) == 1
    said = capsys.readouterr().out
    assert "pip install 'ph2p[heif]'" in said
    assert re.search(rf"out of reach: {re.escape(str(tmp_path))}: no model_index\.json", said)
    assert re.search(r"scorer=siglip\n +out of reach: google/siglip", said)
    assert re.search(r"evaluation\.transfer=.*none\n +out of reach: ", said)


def test_a_report_is_written_anew(capsys, tmp_path):
    (tmp_path / "results").mkdir()
    (tmp_path / "results" / "part-00000.jsonl").write_text(
        '{"image_id": "a.png", "status": "failed", "error": "why"}\n'
    )
    assert cli.main(["report", str(tmp_path), str(tmp_path)]) == 0
    assert (tmp_path / "index.html").exists()
    said = capsys.readouterr().out
    assert said.count("a.png") == 2 and str(Path(tmp_path / "index.html").resolve()) in said.replace("\n", "")


def test_reports_are_compared_on_a_page(capsys, tmp_path):
    names = ("one", "two")
    for name in names:
        (tmp_path / name / "results").mkdir(parents=True)
        record = {"image_id": "a.png", "status": "ok", "prompt": f"{name} dogs", "gap_closed": 0.5}
        (tmp_path / name / "results" / "part-00000.jsonl").write_text(json.dumps(record) + "\n")
    folders, page = [str(tmp_path / name) for name in names], tmp_path / "both.html"
    assert cli.main(["report", *folders, "--compare", str(page)]) == 0
    text = page.read_text(encoding="utf-8")
    assert "one dogs" in text and "two dogs" in text
    assert f"Compared in {page.resolve()}" in capsys.readouterr().out.replace("\n", "")
    assert cli.main(["report", folders[0], "--compare", str(page)]) == 2
    assert "--compare goes with two or more folders" in capsys.readouterr().err


def test_repaint_and_remeasure_are_passed_on(tmp_path, monkeypatch, capsys):
    from ph2p.run import remeasure

    (tmp_path / "results").mkdir()
    asked = []
    for name in ("repaint", "remeasure"):
        monkeypatch.setattr(remeasure, name, lambda folder, words, name=name: asked.append((name, folder, words)))
    assert cli.main(["report", "--repaint", "--set", "generator.steps=4", str(tmp_path)]) == 0
    assert cli.main(["report", str(tmp_path), "--remeasure"]) == 0
    assert asked == [("repaint", tmp_path, ["generator.steps=4"]), ("remeasure", tmp_path, [])]
