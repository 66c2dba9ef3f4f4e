"""The shipped job script under a real SLURM: interrupted as clusters do, it finds what an undisturbed run finds."""

import os
import sys
import tempfile
from pathlib import Path

import pytest
from cluster import Cluster, missing, wait_until
from runs import SMALL, Runner, ended, found, lines, make_pictures

ROOT = Path(__file__).resolve().parents[1]
IMAGES, BUDGET = 12, 300
pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def slurm():
    absent = missing() or ([] if os.geteuid() == 0 else ["root"])
    if absent:
        reason = f"no SLURM here: {', '.join(absent)} missing (apt-get install slurmctld slurmd slurm-client munge)"
        (pytest.fail if os.environ.get("PH2P_REQUIRE_SLURM") else pytest.skip)(reason)
    with tempfile.TemporaryDirectory(prefix="slurm-") as folder:  # a short path, for the socket of munge
        cluster = Cluster(Path(folder))
        try:
            cluster.start()
            yield cluster
        finally:
            cluster.stop()


@pytest.fixture(scope="module")
def place(tmp_path_factory) -> Path:
    return tmp_path_factory.mktemp("slurm")


@pytest.fixture(scope="module")
def words(place, model_overrides) -> list[str]:
    pictures = make_pictures(place / "pictures", IMAGES)
    fixed = ["batch_size=2", f"output={place}/out", f"data.path={pictures}"]
    return [*SMALL, *model_overrides, f"method.budget={BUDGET}", *fixed]


@pytest.fixture(scope="module")
def runner(words) -> Runner:
    """With the model's own denoiser, which is a job's too."""
    runner = Runner(words)
    del runner.inverter.generator.pipeline.unet.forward
    return runner


@pytest.fixture(scope="module")
def undisturbed(place, runner) -> dict[int, dict]:
    """By the number of ranks, for this decides which images are in a batch."""
    assert runner.run("name=one") == 0 and runner.ranks(2, "name=two") == [0, 0]
    return {world: found(place / "out" / name) for world, name in ((1, "one"), (2, "two"))}


@pytest.fixture
def submit(slurm, words, place):
    """Submit the shipped script as a user would, from the folder of the project."""

    def call(*options: str, keys: tuple[str, ...]) -> str:
        environment = {"PYTHON": sys.executable, "PYTHONPATH": str(ROOT), "HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1"}
        log = f"--output={place}/%j.out"
        return slurm.submit(log, *options, "slurm/invert.sbatch", *words, *keys, cwd=ROOT, **environment)

    return call


def log_of(place: Path, job: str) -> str:
    path = place / f"{job}.out"
    return path.read_text() if path.exists() else ""


def test_two_nodes_and_a_requeue_by_signal(slurm, submit, place, undisturbed):
    """USR1 comes while both ranks work: both save, the job is requeued once, and it goes on."""
    job = submit("--nodes=2", keys=("name=nodes",))
    folder = place / "out" / "nodes"
    wait_until(lambda: len(parts(folder)) == 2, 300)
    slurm.signal(job)
    wait_until(lambda: slurm.jobs(job)[0]["Restarts"] == "1", 60)
    assert len(lines(folder)) < IMAGES
    (ended,) = slurm.wait(job)
    log = log_of(place, job)
    assert (ended["JobState"], ended["ExitCode"], ended["Restarts"]) == ("COMPLETED", "0:0", "1"), log
    assert "back in its queue" in log and "finished before" in log and "Traceback" not in log
    assert found(folder) == undisturbed[2]
    assert not list((folder / "checkpoints").iterdir())


def parts(folder: Path) -> list[Path]:
    return [path for path in folder.glob("results/part-*.jsonl") if path.stat().st_size]


def test_preemption(slurm, submit, place, undisturbed):
    job = submit("--exclusive", "--nodes=1", "--nodelist=127.0.0.1", keys=("name=preempted",))
    folder = place / "out" / "preempted"
    wait_until(lambda: bool(parts(folder)), 300)
    options = ("--partition=high", "--exclusive", "--nodelist=127.0.0.1", "--output=/dev/null")
    other = slurm.submit(*options, "--wrap=sleep 2", cwd=place)
    wait_until(lambda: slurm.jobs(job)[0]["Restarts"] == "1", 120)
    assert slurm.wait(other)[0]["JobState"] == "COMPLETED"
    (ended,) = slurm.wait(job)
    assert (ended["JobState"], ended["Restarts"]) == ("COMPLETED", "1"), log_of(place, job)
    assert found(folder) == undisturbed[1]


def test_a_time_limit(slurm, submit, place, runner, undisturbed):
    """A minute for work that takes longer: SLURM itself signals, 5 to 35 s ahead, as often as the work takes."""
    pace = IMAGES * min(record["seconds"] for record in lines(place / "out" / "one")) / BUDGET
    budget = f"method.budget={int(60 / pace)}"  # the signal comes within 55 s, and Python's start takes some too
    job = submit("--time=1", "--signal=USR1@5", keys=("name=limited", budget))
    process = runner.start("name=unlimited", budget)
    (last,) = slurm.wait(job)
    assert ended(process) == 0
    log, restarts = log_of(place, job), int(last["Restarts"])
    assert (last["JobState"], last["ExitCode"], last["TimeLimit"]) == ("COMPLETED", "0:0", "00:01:00"), log
    assert restarts >= 1 and log.count("back in its queue") == restarts and "Traceback" not in log, log
    assert found(place / "out" / "limited") == found(place / "out" / "unlimited")
    assert not list((place / "out" / "limited" / "checkpoints").iterdir())


def test_an_array_of_shards_of_which_one_is_requeued(slurm, submit, place, undisturbed):
    job = submit("--array=0-1", keys=("name=array",))
    folder = place / "out" / "array"
    wait_until(lambda: any(path.name.startswith("part-1-") for path in parts(folder)), 300)
    slurm.signal(f"{job}_1")
    wait_until(lambda: sum(int(one["Restarts"]) for one in slurm.jobs(job)) == 1, 60)
    ended = slurm.wait(job)
    assert [one["JobState"] for one in ended] == ["COMPLETED"] * 2
    assert {one["ArrayTaskId"]: one["Restarts"] for one in ended} == {"0": "0", "1": "1"}
    assert found(folder) == undisturbed[2]  # two shards cut the images as two ranks do
    assert not list((folder / "checkpoints").iterdir())
