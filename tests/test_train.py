"""The command from end to end on a random pipeline, each process put to as many questions as it can answer."""

import json
import os
import signal
import subprocess
import sys
import time
from collections import Counter
from contextlib import contextmanager
from pathlib import Path

import pytest
import torch
from omegaconf import OmegaConf
from PIL import Image

from ph2p.data import slug
from ph2p.report.records import read_results

TRAIN = Path(__file__).resolve().parents[1] / "train.py"
SMALL = [
    *("debug=quick", "data=folder", "batch_size=1", "trainer=cpu", "evaluation.draws=4", "generator.steps=2"),
    *(
        "method.budget=200",
        "method.judge_draws=1",
        "method.prompt_length=3",
        "method.draws=1",
        "method.optimizer.max_eval=6",
    ),
    *("method.search.share=0.75", "method.search.draws=1", "method.search.race=[[8,1]]", "method.selection.steps=2"),
]
GOOD = ["Übung 星.png", "[red] x.png", "alpha.png", "cmyk.jpg", "deep.png", "moving.gif", "palette.png", "plain.png"]
BAD = {"broken.png": "not a picture", "cut.png": "damaged or cut off", "empty.png": "0 bytes"}
# Each line of commands in one process: loading the libraries takes longer than everything else.
DRIVER = """
import json, sys, train
for words in json.loads(sys.argv[1]):
    code = train.main(words)
    print(f"<{code}>", file=sys.stderr, flush=True)
"""


def drive(commands: list[list[str]], cwd: Path) -> list[str]:
    """What commands in one process say on stderr: of each its complaint, and its exit code as <2>."""
    driver = [sys.executable, "-c", DRIVER, json.dumps(commands)]
    done = subprocess.run(driver, capture_output=True, text=True, cwd=cwd, env=environment(), timeout=300)
    assert done.returncode == 0 and "Traceback" not in done.stderr, done.stderr
    lines = done.stderr.splitlines()
    assert len(lines) == 2 * len(commands), done.stderr
    return lines


def environment() -> dict[str, str]:
    """One thread: on more, sums of floats may be added up in another order."""
    return os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(TRAIN.parent), "HF_HUB_OFFLINE": "1"}


def train(*words: str, cwd: Path, **variables: str) -> subprocess.CompletedProcess:
    command, surroundings = [sys.executable, str(TRAIN), *words], environment() | variables
    return subprocess.run(command, capture_output=True, text=True, cwd=cwd, env=surroundings, timeout=300)


def make_pictures(folder: Path) -> Path:
    """Eight pictures of every awkward kind, and three files that only look like pictures."""
    folder.mkdir()
    ramp = torch.arange(20 * 24 * 3, dtype=torch.float32).view(20, 24, 3)
    image = Image.fromarray(((ramp / 7).sin().abs() * 255).byte().numpy())
    for name in ("Übung 星.png", "[red] x.png", "plain.png"):
        image.save(folder / name)
    image.convert("CMYK").save(folder / "cmyk.jpg")
    image.quantize().save(folder / "palette.png")
    image.convert("RGBA").rotate(30).save(folder / "alpha.png")
    Image.fromarray((ramp[..., 0] * 40).numpy().astype("uint16")).save(folder / "deep.png")
    image.save(folder / "moving.gif", save_all=True, append_images=[image.rotate(90)])
    (folder / "broken.png").write_text("no picture")
    (folder / "cut.png").write_bytes((folder / "plain.png").read_bytes()[:-200])
    (folder / "empty.png").touch()
    return folder


@pytest.fixture(scope="module")
def place(tmp_path_factory) -> Path:
    return tmp_path_factory.mktemp("train")


@pytest.fixture(scope="module")
def command(place, model_overrides) -> list[str]:
    pictures = make_pictures(place / "my pictures")
    return [*SMALL, *model_overrides, f"output={place}/out", f"data.path='{pictures}'"]


@pytest.fixture(scope="module")
def first(place, command) -> subprocess.CompletedProcess:
    return train(*command, "name=first", cwd=place)


@pytest.fixture(scope="module")
def records(place, first) -> dict[str, dict]:
    return {record["image_id"]: record for record in read_results(place / "out" / "first")}


# --- a run --------------------------------------------------------------------------------------------------------


def test_bad_images_fail_alone_with_one_clear_line_each(first, records):
    assert first.returncode == 1, first.stderr
    assert first.stderr == ""
    assert {name for name, record in records.items() if record["status"] == "ok"} == set(GOOD)
    lines = [line for line in first.stdout.splitlines() if line.startswith("failed ")]
    assert len(lines) == len(BAD)
    for name, words in BAD.items():
        assert words in records[name]["error"] and records[name]["status"] == "failed"
        assert sum(name in line and words in line for line in lines) == 1
    assert "8 images inverted, 3 failed" in first.stdout and "index.html" in first.stdout


def test_the_results_folder_is_complete(place, records):
    folder = place / "out" / "first"
    written = OmegaConf.load(folder / "config.yaml")
    assert written.method.budget == 200 and written.data.path == str(place / "my pictures")
    for name in GOOD:
        record = records[name]
        assert record["method"] == "ph2p_plus" and record["seed"] == 0 and record["error"] is None
        assert record["source"] == str(place / "my pictures" / name)
        assert len(record["prompt"].split()) == len(record["token_ids"]) >= 1
        assert 0 < record["forward_samples"] + record["backward_samples"] <= 200
        assert record["loss"] > 0 and record["loss_empty"] > 0 and record["seconds"] > 0
        assert -1 <= record["clip_similarity"] <= 1
        for key in ("caption", "loss_caption", "regret", "word_recall", "clip_similarity_caption"):
            assert record[key] is None, key  # no ground truth
        files, stem = record["files"], slug(name)
        assert files["target"] == f"images/{stem}/target.png"
        assert files["renderings"] == [f"images/{stem}/rendering-0.png"]
        for path in (files["target"], *files["renderings"]):
            assert Image.open(folder / path).size == (16, 16)
        content = json.loads((folder / files["candidates"]).read_text(encoding="utf-8"))
        assert files["candidates"] == f"candidates/{stem}.json"
        assert len(content["loss_curve"]) >= 1 and len(content["candidates"]) >= 2
        assert content["candidates"][0]["prompt"] == record["prompt"]
        assert set(content["candidates"][0]) == {"prompt", "token_ids", "loss", "clip_similarity", "epoch"}
    page = (folder / "index.html").read_text(encoding="utf-8")
    assert all(record["prompt"] in page for record in records.values() if record["status"] == "ok")
    assert "Übung 星.png" in page and "broken.png" in page
    assert not [path for path in folder.rglob(".*") if path.is_file()]  # no half-written file is left behind


@contextmanager
def mended(folder: Path):
    """The bad pictures are good ones for a while."""
    before = {name: (folder / name).read_bytes() for name in BAD}
    try:
        for name in BAD:
            (folder / name).write_bytes((folder / "plain.png").read_bytes())
        yield
    finally:
        for name, content in before.items():
            (folder / name).write_bytes(content)


def test_the_same_command_skips_what_is_finished_and_tries_again_what_failed(place, command, records):
    part = place / "out" / "first" / "results" / "part-00000.jsonl"
    before = part.read_text(encoding="utf-8")
    with mended(place / "my pictures"):
        again = train(*command, "name=first", cwd=place)
    assert (again.returncode, again.stderr) == (0, "")
    assert "(8 finished before)" in again.stdout and "11 images inverted, 0 failed" in again.stdout
    added = part.read_text(encoding="utf-8").removeprefix(before)
    assert sorted(json.loads(line)["image_id"] for line in added.splitlines()) == sorted(BAD)


# --- a killed run -------------------------------------------------------------------------------------------------


def finished_lines(folder: Path) -> list[dict]:
    part = folder / "results" / "part-00000.jsonl"
    lines = part.read_bytes().split(b"\n") if part.exists() else []
    return [json.loads(line) for line in lines if line.endswith(b"}")]


def test_a_killed_run_continues_to_the_same_results(place, command, records):
    folder = place / "out" / "killed"
    words = [sys.executable, str(TRAIN), *command, "name=killed"]
    process = subprocess.Popen(words, cwd=place, env=environment(), stdout=subprocess.DEVNULL)
    try:
        deadline = time.monotonic() + 200
        while len(finished_lines(folder)) < 3:
            assert process.poll() is None and time.monotonic() < deadline
            time.sleep(0.01)
    finally:
        process.send_signal(signal.SIGKILL)
    assert process.wait() == -signal.SIGKILL
    done = finished_lines(folder)
    assert len(done) < len(GOOD) + len(BAD)
    part = folder / "results" / "part-00000.jsonl"
    part.write_bytes(part.read_bytes()[:-30])  # the kill may come while a line is written
    assert train(*command, "name=killed", cwd=place).returncode == 1
    times = Counter(record["image_id"] for record in finished_lines(folder) if record["status"] == "ok")
    assert times == Counter(GOOD)
    continued = {record["image_id"]: record for record in read_results(folder)}
    for name in GOOD:
        ours, theirs = dict(continued[name]), dict(records[name])
        assert ours.pop("seconds") != theirs.pop("seconds") and ours.pop("peak_memory") and theirs.pop("peak_memory")
        assert ours == theirs  # losses too, to the last bit
        for path in (ours["files"]["candidates"], ours["files"]["target"], *ours["files"]["renderings"]):
            assert (folder / path).read_bytes() == (place / "out" / "first" / path).read_bytes()


# --- what stops a run ---------------------------------------------------------------------------------------------


@contextmanager
def small_disk(folder: Path, size: str):
    """A file system that is soon full; None where we may not mount one."""
    folder.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", f"size={size}", "tmpfs", str(folder)]
    mounted = os.geteuid() == 0 and subprocess.run(mount, capture_output=True).returncode == 0
    try:
        yield folder if mounted else None
    finally:
        if mounted:
            subprocess.run(["umount", str(folder)], check=True)


def test_what_stops_a_run_gives_one_line_and_exit_code_2(place, command, records):
    (place / "nothing").mkdir()
    (place / "file").touch()
    cases = [
        (["name=a", f"data.path={place}/nothing"], "nothing: no pictures found"),
        (["name=a", f"data.path={place}/nowhere"], "nowhere: no such file or folder"),
        (["name=a", f"generator.path={place}/nothing"], "nothing"),
        (["name=a", f"scorer.path={place}/nothing"], "nothing"),
        (["name=a", f"generator.allowlist={place}/no.txt"], "no.txt"),
        (["name=a", f"generator.allowlist={place}/file"], "file: names no word"),
        (["name=a", "generator.steps=1001"], "generator.steps=1001: "),
        (["name=a", "method.selection.steps=1001", "method.budget=9000"], "method.selection.steps=1001"),
        (["name=a", "method.prompt_length=11"], "method.prompt_length=11: 11 tokens"),
        (["name=a", "method.init='red dog red dog red dog red dog red dog red'"], "method.init=red dog"),
        (["name=a", "method.timesteps=[500,1001]"], "method.timesteps"),
        (["name=a", "method.budget=30"], "method.budget=30"),
        (["name=a", "metod.budget=30"], "metod"),
        (["name=a", "+method.optimizer.bogus=3"], "method.optimizer"),
        (["name=first", "method.budget=300"], "method.budget=200, not 300"),
        (["name=first", "trainer.precision=bf16-mixed"], "trainer.precision=32-true, not bf16-mixed"),
        ([f"name={'a' * 300}"], "cannot be written (File name too long)"),
        (["name=a", f"output={place}/file"], "file/a: cannot be written"),
    ]
    if not torch.cuda.is_available():
        cases.append((["name=a", "trainer=gpu"], "trainer: "))
    with small_disk(place / "small", "72k") as disk:
        if disk:
            cases.append(([f"output={disk}", "name=a"], "no space left"))
        lines = drive([[*command, *words] for words, _ in cases], place)
        for (_, expected), line, code in zip(cases, lines[::2], lines[1::2], strict=True):
            assert line.startswith("error: ") and expected in line and code == "<2>", line
        if disk:
            survived = [record for record in read_results(disk / "a") if record["status"] == "ok"]
            assert survived and len(survived) < len(GOOD)
            for record in survived:
                assert record["prompt"] == records[record["image_id"]]["prompt"]
                assert Image.open(disk / "a" / record["files"]["renderings"][0]).size == (16, 16)
    assert not (place / "out" / "a").exists()  # nothing is left behind that a better command would trip over


def test_a_wrong_path_on_the_command_line(place):
    wrong = train("generator.path=no/where", "generator.local_files_only=true", cwd=place)
    assert wrong.returncode == 2 and wrong.stdout == ""
    assert wrong.stderr.startswith("error: no/where: ") and wrong.stderr.count("\n") == 1
    assert not (place / "outputs" / "examples-ph2p_plus").exists()


def test_what_is_quick_is_checked_before_a_model_is_looked_for(place, records):
    """A path that is not there, an output that cannot be written, a changed key: whatever the model is."""
    absent = ["generator.path=no/where", "scorer.path=no/where", "trainer=cpu"]
    there, out = f"data.path={place}/my pictures", f"output={place}/out"
    cases = [
        (["data=folder", f"data.path={place}/nowhere"], "nowhere: no such file or folder"),
        (["data=folder", there, f"output={place}/my pictures/plain.png"], "cannot be written"),
        (["data=folder", there, out, "name=first"], "holds results with"),
        (["data=folder", there, out, "name=b", "+method.optimizer.bogus=3"], "method.optimizer"),
    ]
    said = drive([[*words, *absent] for words, _ in cases], place)
    for (_, expected), line, code in zip(cases, said[::2], said[1::2], strict=True):
        assert line.startswith("error: ") and expected in line and code == "<2>", line


def test_a_log_has_a_line_a_batch_and_says_what_was_passed_over(place, command, first):
    assert "1 of 11 images done, 10 left, about " in first.stdout and "11 of 11 images done, none left" in first.stdout
    pictures = place / "odd"
    make_pictures(pictures)
    (pictures / "notes.txt").write_text("no picture")
    done = train(*command, f"data.path={pictures}", "name=[final] żaba", cwd=place, PYTHONIOENCODING="ascii")
    folder = place / "out" / "[final] żaba"
    assert done.returncode == 1 and done.stderr == ""
    assert "[final] \\u017caba/" in done.stdout
    if (folder / "passed-over.txt").exists():
        assert "notes.txt" in (folder / "passed-over.txt").read_text() and "passed over" in done.stdout
    assert len(read_results(folder)) == len(GOOD) + len(BAD)
