"""Several ranks: each image once, the results of one rank, and nobody is harmed by another's end."""

import csv
import io
import json
import os
import random
import signal
import subprocess
import sys
import time
from collections import Counter, defaultdict
from functools import partial
from itertools import groupby
from pathlib import Path

import lightning as L
import numpy as np
import pytest
from runs import SMALL, Runner, ended, found, lines, make_pictures

from ph2p import invert
from ph2p.errors import UserError
from ph2p.run.assignment import batches, belongs
from ph2p.run.ranks import Ranks, pass_on, trainer_options
from ph2p.run.stopping import requeue

TRAIN = Path(__file__).resolve().parents[1] / "train.py"


# --- who does what ------------------------------------------------------------------------------------------------


def test_every_image_belongs_to_one_rank_of_one_shard_whatever_else_there_is():
    ids = [f"{k}.png" for k in range(400)]
    for shards, world in ((1, 1), (1, 2), (3, 1), (3, 4)):
        cut = [
            [name for name in ids if belongs(name, (i, shards), rank, world)]
            for i in range(shards)
            for rank in range(world)
        ]
        assert sorted(name for part in cut for name in part) == sorted(ids)
        mean = len(ids) / len(cut)
        assert all(abs(len(part) - mean) <= 3 * mean**0.5 for part in cut)
        assert {name for name in ids if belongs(name, (0, shards))} == {name for part in cut[:world] for name in part}
    assert [belongs("żaba.png", (0, 2)), belongs("żaba.png", (1, 2))].count(True) == 1


def test_batches_keep_their_composition_through_interruptions():
    """Whatever was done and whichever image fails for good, a batch is the one of the undisturbed run."""
    chance = random.Random(0)
    for _ in range(200):
        ids, size = [str(k) for k in range(chance.randint(1, 12))], chance.randint(1, 4)
        bad = {i for i in ids if chance.random() < 0.2}
        undisturbed = batches(ids, [], set(), set(), size)
        assert [i for batch in undisturbed for i in batch] == ids
        at, done, failed = chance.randrange(len(undisturbed)), set(), set()
        for batch in undisturbed[:at]:
            done |= set(batch) - bad
            failed |= set(batch) & bad
        begun = [i for i in undisturbed[at] if i not in bad]
        failed |= set(undisturbed[at]) & bad
        done |= set(begun[: chance.randint(0, max(0, len(begun) - 1))])  # killed while the batch was written
        left = batches(ids, begun, done, failed, size)
        expected = ([begun] if begun else []) + undisturbed[at + 1 :]
        assert left[: len(expected)] == expected
        again = [i for batch in left[len(expected) :] for i in batch]
        assert Counter(again) == Counter(failed)


def test_a_begun_batch_of_another_number_of_ranks_is_dropped():
    assert batches(["0", "2", "4"], ["0", "1"], {"1"}, set(), 2) == [["0", "2"], ["4"]]
    assert batches(["0", "1"], ["0", "1"], {"0", "1"}, set(), 2) == []


# --- runs ---------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def place(tmp_path_factory) -> Path:
    return tmp_path_factory.mktemp("ranks")


@pytest.fixture(scope="module")
def words(place, model_overrides) -> list[str]:
    pictures = make_pictures(place / "pictures")
    return [*SMALL, *model_overrides, "batch_size=1", f"output={place}/out", f"data.path={pictures}"]


@pytest.fixture(scope="module")
def runner(words) -> Runner:
    return Runner(words)


@pytest.fixture(scope="module")
def alone(place, runner) -> dict[str, dict]:
    assert runner.run("name=alone") == 0
    return found(place / "out" / "alone")


def test_two_ranks_find_what_one_finds(place, runner, alone):
    assert runner.ranks(2, "name=two") == [0, 0]
    folder = place / "out" / "two"
    assert found(folder) == alone
    parts = {path.name: {record["image_id"] for record in map(json.loads, path.open())} for path in parts_of(folder)}
    assert parts == {f"part-{k:05d}.jsonl": {name for name in alone if belongs(name, (0, 1), k, 2)} for k in (0, 1)}
    page = (folder / "index.html").read_text(encoding="utf-8")
    assert all(name in page for name in alone)


def parts_of(folder: Path) -> list[Path]:
    return sorted((folder / "results").iterdir())


def test_a_picture_that_appears_between_two_listings_loses_and_doubles_nothing(place, runner, alone):
    """The second rank sees a list with one more picture, first in the order, than the first rank has seen."""
    pictures, folder = make_pictures(place / "growing"), place / "out" / "growing"
    words = ("name=growing", f"data.path={pictures}", "trainer.devices=2")
    assert runner.run(*words, LOCAL_RANK=0) in (0, 1)  # the other's are missing
    (pictures / "-1.png").write_bytes((pictures / "4.png").read_bytes())
    assert runner.run(*words, LOCAL_RANK=1) in (0, 1)
    results = found(folder)
    assert results.keys() - {"-1.png"} == alone.keys()
    assert runner.ranks(2, *words[:2]) == [0, 0]
    assert found(folder).keys() == alone.keys() | {"-1.png"}


def test_more_ranks_than_images(place, runner, alone):
    assert runner.ranks(7, "name=many") == [0] * 7
    assert found(place / "out" / "many") == alone


def test_another_number_of_ranks_continues(place, runner, alone):
    """Killed with two ranks and two images a batch, continued with three, one, and none of the images is lost."""
    folder, chance = place / "out" / "changing", random.Random(1)
    for world in (2, 3, 2, 1):
        devices = (f"trainer.devices={world}", "name=changing", "batch_size=2")
        processes = [runner.start(*devices, LOCAL_RANK=rank) for rank in range(world)]
        time.sleep(chance.uniform(0.3, 0.8))
        for process in processes:
            os.kill(process, signal.SIGKILL)
            ended(process)
    assert runner.ranks(2, "name=changing", "batch_size=2") == [0, 0]
    assert {name: record["status"] for name, record in found(folder).items()} == dict.fromkeys(alone, "ok")
    assert len(lines(folder)) == 5
    assert not list((folder / "checkpoints").iterdir())


def test_shards_share_a_folder(place, runner, alone):
    """And a finished one removes what its own interruptions have left, not what another still needs."""
    folder = place / "out" / "shards"
    marks = {f"part-{i}-requeued-70_{i}-{restart}" for i in range(3) for restart in (0, 1)}
    marks |= {f"part-{i}-00004.ckpt" for i in range(3)}
    (folder / "checkpoints").mkdir(parents=True)
    for name in marks:
        (folder / "checkpoints" / name).touch()
    for i in range(3):
        assert runner.run("name=shards", f"shard={i}/3") == 0
        marks = {name for name in marks if not name.startswith(f"part-{i}-")}
        assert {path.name for path in (folder / "checkpoints").iterdir()} == marks
    assert found(folder) == alone
    assert sorted(path.name for path in (folder / "results").iterdir()) == [f"part-{i}-00000.jsonl" for i in range(3)]


def test_bad_images_fail_on_their_ranks_alone_and_once(place, runner, alone):
    pictures, mark = make_pictures(place / "mixed"), place / "out" / "mixed" / "checkpoints" / "part-requeued-7-0"
    (pictures / "1.png").write_text("no picture")
    mark.parent.mkdir(parents=True)
    mark.touch()
    for _ in range(2):  # under a cluster the exit code of a rank that is not the last says nothing of images
        overflow = partial(runner.overflow, pictures / "2.png")
        codes = runner.ranks(2, "name=mixed", f"data.path={pictures}", before=overflow)
        assert 1 in codes and set(codes) <= {0, 1}
    records = found(place / "out" / "mixed")
    bad = {name: records.pop(name) for name in ("1.png", "2.png")}
    assert {record["status"] for record in bad.values()} == {"failed"}
    assert "not a picture" in bad["1.png"]["error"]
    assert bad["2.png"]["error"].startswith("2.png: its loss is not finite")
    assert {name: record["loss"] for name, record in records.items()} == {
        name: record["loss"] for name, record in alone.items() if name not in bad
    }
    assert len(lines(place / "out" / "mixed")) == 5  # the second time it is not said again
    assert mark.exists()  # another rank may be trying the bad image again, and be told to stop


# --- loggers ------------------------------------------------------------------------------------------------------


def curves(folder: Path) -> dict[str, list[tuple[int, float]]]:
    """What a logger must hold: of each part the steps and values of its curves, and of its finished images."""
    wanted: dict[str, list[tuple[int, float]]] = {}
    for part in sorted(path.stem for path in (folder / "results").glob("part-*.jsonl")):
        with (folder / "logs" / f"{part}.csv").open(newline="", encoding="utf-8") as file:
            rows = list(csv.DictReader(file))
        for key in ("loss", "search_loss"):
            groups = groupby(enumerate(rows, 1), lambda row: row[1]["epoch"])
            for some in (list(group) for _, group in groups):
                known = [float(row[key]) for _, row in some if row[key]]
                if known:
                    wanted.setdefault(f"epochs/{key}/{part}", []).append((some[-1][0], np.mean(known)))
        records = map(json.loads, (folder / "results" / f"{part}.jsonl").read_text().splitlines())
        wanted[f"images/gap_closed/{part}"] = [(k, record["gap_closed"]) for k, record in enumerate(records, 1)]
        assert all(len(wanted[f"epochs/{key}/{part}"]) > 1 for key in ("loss", "search_loss"))
    return wanted


def test_tensorboard_shows_the_images_of_all_ranks(place, runner):
    """And of an earlier run in the folder, here one of a shard; there are as many charts for any number of images."""
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    words = ("name=board", "logger=tensorboard", "batch_size=2")
    assert runner.run(*words, "shard=0/3") == 0
    assert runner.ranks(2, *words) == [0, 0]
    folder = place / "out" / "board"
    events = EventAccumulator(str(folder / "logs" / "tensorboard"))
    events.Reload()
    assert len(list((folder / "logs" / "tensorboard").glob("events.*"))) == 3
    for tag, curve in curves(folder).items():
        found = events.Scalars(tag)
        later = 1 if tag == "images/gap_closed/part-00000" else 0  # the image of the earlier run was the first
        assert [event.step for event in found] == [step + later for step, _ in curve]
        assert [event.value for event in found] == pytest.approx([value for _, value in curve], rel=1e-6)
    parts, tags = ("part-00000", "part-00001", "part-0-00000"), events.Tags()
    assert set(tags["images"]) == {f"pictures/{part}" for part in parts}
    assert sum(len(events.Images(tag)) for tag in tags["images"]) == 5
    assert {f"gradient_norm/{part}" for part in parts} <= {tag.removeprefix("epochs/") for tag in tags["scalars"]}
    assert not any(".png" in tag for names in tags.values() if isinstance(names, list) for tag in names)


def test_every_rank_is_a_run_in_the_group_of_wandb(place, runner, monkeypatch):
    pytest.importorskip("wandb")
    from wandb.proto.wandb_internal_pb2 import Record
    from wandb.sdk.internal.datastore import DataStore

    for name in ("CONFIG", "CACHE", "DATA"):
        monkeypatch.setenv(f"WANDB_{name}_DIR", str(place / "wandb"))
    monkeypatch.setenv("WANDB_SILENT", "true")
    assert runner.ranks(2, "name=group", "logger=wandb", "logger.offline=true") == [0, 0]
    folder, logged, runs = place / "out" / "group", defaultdict(list), []
    for path in folder.glob("logs/wandb/offline-run-*/*.wandb"):
        store = DataStore()
        store.open_for_scan(str(path))
        while (data := store.scan_data()) is not None:
            record = Record.FromString(data)
            if record.WhichOneof("record_type") == "run":
                runs.append((record.run.run_group, record.run.run_id))
            row = {"/".join(item.nested_key): json.loads(item.value_json) for item in record.history.item}
            for tag in row.keys() - {"trainer/global_step"}:
                logged[tag].append((row.get("trainer/global_step"), row[tag]))
    assert {group for group, _ in runs} == {"group"} and len(set(runs)) == 2
    for tag, curve in curves(folder).items():
        assert [step for step, _ in logged[tag]] == [step for step, _ in curve]
        assert [value for _, value in logged[tag]] == pytest.approx([value for _, value in curve])


# --- processes that Lightning starts ------------------------------------------------------------------------------


def start(words: list[str], *more: str, launcher: tuple[str, ...] = ()) -> subprocess.Popen:
    environment = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(TRAIN.parent), "HF_HUB_OFFLINE": "1"}
    command = [sys.executable, *launcher, str(TRAIN), *words, *more]
    return subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def child_of(process: subprocess.Popen) -> int:
    (child,) = Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split()
    return int(child)


def wait_for(what, process: subprocess.Popen) -> None:
    deadline = time.monotonic() + 240
    while not what():
        assert process.poll() is None and time.monotonic() < deadline, process.communicate()
        time.sleep(0.02)


def written(folder: Path, rank: int) -> bool:
    part = folder / "results" / f"part-{rank:05d}.jsonl"
    return part.exists() and part.stat().st_size > 0


@pytest.mark.slow
def test_a_started_rank_dies_and_then_the_whole_run(place, words, runner):
    """`trainer.devices=2` alone starts the second rank; killed, stopped and continued, the results are the same."""
    pictures, folder = make_pictures(place / "eight", 8), place / "out" / "started"
    more = ("name=started", f"data.path={pictures}", "trainer.devices=2")

    process = start(words, *more)
    wait_for(lambda: written(folder, 1), process)
    os.kill(child_of(process), signal.SIGKILL)
    output, errors = process.communicate(timeout=300)
    assert (process.returncode, errors) == (1, "")
    assert "rank 1 ended with exit code -9" in output and "missing: the same command continues" in output
    part = (folder / "results" / "part-00000.jsonl").read_text()
    own = [name for name in os.listdir(pictures) if belongs(name, (0, 1), 0, 2)]
    assert len(part.splitlines()) == len(own)  # all of its own are finished

    process = start(words, *more)
    wait_for(lambda: "LOCAL_RANK=1" in environment_of(process), process)
    before = len(lines(folder))
    wait_for(lambda: len(lines(folder)) > before, process)
    child = child_of(process)
    process.send_signal(signal.SIGTERM)
    output, errors = process.communicate(timeout=60)
    assert (process.returncode, errors) == (143, "") and "the same command continues" in output
    assert not Path(f"/proc/{child}").exists()

    process = start(words, *more)
    output, errors = process.communicate(timeout=300)
    assert (process.returncode, errors) == (0, "") and "8 images inverted, 0 failed" in output
    assert len(lines(folder)) == 8


def environment_of(process: subprocess.Popen) -> str:
    """The environment of the process's child, once it has one."""
    try:
        return Path(f"/proc/{child_of(process)}/environ").read_text()
    except (ValueError, OSError):
        return ""


@pytest.mark.slow
def test_what_no_rank_can_load_is_said_once(place, words):
    process = start(words, "name=absent", "trainer.devices=2", f"scorer.path={place}/pictures")
    _, errors = process.communicate(timeout=300)
    assert process.returncode == 2 and errors.startswith("error: ") and errors.count("\n") == 1, errors
    assert not (place / "out" / "absent").exists()


@pytest.mark.slow
def test_torchrun(place, words):
    launcher = ("-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2")
    process = start(words, "name=torchrun", "trainer.devices=2", launcher=launcher)
    _, errors = process.communicate(timeout=300)
    assert process.returncode == 0, errors
    assert len(lines(place / "out" / "torchrun")) == 5
    assert all(written(place / "out" / "torchrun", rank) for rank in range(2))


# --- what cannot be -----------------------------------------------------------------------------------------------


def test_a_cluster_with_another_number_of_tasks_is_refused(runner, capfd, monkeypatch):
    slurm = {"SLURM_NTASKS": 2, "SLURM_NTASKS_PER_NODE": 2, "SLURM_JOB_ID": 7, "SLURM_PROCID": 0}
    slurm |= {"SLURM_LOCALID": 0, "SLURM_NODEID": 0, "SLURM_JOB_NAME": "x"}
    assert runner.run("name=wrong", **slurm) == 2
    (line,) = capfd.readouterr().err.splitlines()
    assert "trainer: " in line and "devices" in line


def test_python_stays_in_its_process():
    with pytest.raises(UserError, match=r"trainer\.devices"):
        invert(TRAIN, ["trainer=cpu", "trainer.devices=2"])


def test_nodes_on_which_nobody_has_started_anything_are_refused(monkeypatch):
    """Otherwise half of the images would be nobody's, and all would look well."""
    for name in ("NODE_RANK", "GROUP_RANK"):
        monkeypatch.delenv(name, raising=False)
    trainer = {"accelerator": "cpu", "devices": 1, "num_nodes": 2}
    with pytest.raises(ValueError, match=r"num_nodes=2, but nothing has started .* NODE_RANK"):
        Ranks(trainer)
    monkeypatch.setenv("NODE_RANK", "1")
    assert (Ranks(trainer).rank, Ranks(trainer).world) == (1, 2)


def test_a_rank_is_alone_in_the_eyes_of_lightning(monkeypatch):
    """No process group and no other rank, whoever has started it; its loggers write."""
    from lightning.pytorch.utilities import rank_zero_only

    trainer = {"accelerator": "cpu", "devices": 2, "num_nodes": 1, "precision": "bf16-mixed"}
    monkeypatch.setattr(rank_zero_only, "rank", 1)
    monkeypatch.setenv("LOCAL_RANK", "1")
    ranks = Ranks(trainer)
    assert (ranks.rank, ranks.world, ranks.device.type, rank_zero_only.rank) == (1, 2, "cpu", 0)
    alone = L.Trainer(**trainer_options(trainer), logger=False, enable_checkpointing=False)
    assert (alone.world_size, alone.global_rank, alone.is_global_zero, alone.precision) == (1, 0, True, "32-true")
    assert type(alone.strategy).__name__ == "SingleDeviceStrategy"


def test_what_started_ranks_say_is_passed_on_once(capfd):
    files = [io.BytesIO(text) for text in (b"error: x\n", b"error: y\n", b"error: y\n")]
    pass_on(files, "error: x")  # which the first rank says itself
    assert capfd.readouterr().err == "error: y\n"


def test_a_job_is_requeued_once_by_the_first_rank_that_slurm_listens_to(tmp_path, monkeypatch):
    program, calls, mark = tmp_path / "scontrol", tmp_path / "calls", tmp_path / "checkpoints" / "part-requeued"
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
    monkeypatch.delenv("SLURM_JOB_ID", raising=False)
    assert requeue(mark) is None
    for name, value in (("JOB_ID", "9"), ("ARRAY_JOB_ID", "7"), ("ARRAY_TASK_ID", "1"), ("RESTART_COUNT", "2")):
        monkeypatch.setenv(f"SLURM_{name}", value)
    for code, answers in ((1, [False, False]), (0, [True, True])):
        program.write_text(f'#!/bin/sh\necho "$@" >> {calls}\nexit {code}\n')
        program.chmod(0o755)
        assert [requeue(mark), requeue(mark)] == answers
    assert calls.read_text().splitlines() == ["requeue 7_1"] * 3
    assert [path.name for path in mark.parent.iterdir()] == ["part-requeued-7_1-2"]
