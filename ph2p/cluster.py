"""The ranks of a run seen from one of them, and giving a SLURM job back to its queue."""

import ctypes
import os
import signal
import subprocess
import time
from pathlib import Path

import lightning as L
from omegaconf import DictConfig

from ph2p import stopping
from ph2p.strategy import LAUNCHER, IndependentRanks, check_environment, trainer_options

LAUNCHED_BY = ("LOCAL_RANK", "NODE_RANK", "WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT", LAUNCHER)  # set by a launch
GRACE = 30  # seconds that started ranks get to save and end


class Ranks:
    """Which of how many ranks this process is, on which device; as a context it starts and ends the others.

    Attributes: `rank` in [0, `world`), `device`, and `started`, whether this process is the one whose entering
    starts the others. Raises ValueError where cluster and configuration disagree on the number of processes.
    """

    def __init__(self, trainer: DictConfig) -> None:
        self._trainer = L.Trainer(**trainer_options(trainer), logger=False)
        strategy = self._trainer.strategy
        connector = self._trainer._accelerator_connector
        check_environment(connector.cluster_environment, self._trainer.num_devices, self._trainer.num_nodes)
        if isinstance(strategy, IndependentRanks):
            strategy.set_world_ranks()
        self.rank, self.world, self.device = self._trainer.global_rank, self._trainer.world_size, strategy.root_device
        self.started: list[subprocess.Popen] = []
        if LAUNCHER in os.environ and self._trainer.local_rank:
            _end_with_parent(int(os.environ[LAUNCHER]))

    def __enter__(self) -> "Ranks":
        self._environment = {name: os.environ.get(name) for name in LAUNCHED_BY}
        if launcher := self._trainer.strategy.launcher:
            launcher.launch(lambda: None)
            self.started = launcher.procs
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: object) -> None:
        """End the started ranks if they run on, with the signal that ended this one."""
        for process in self.started:
            if process.poll() is None:
                process.send_signal(getattr(error, "number", signal.SIGTERM))
        for process in self.started:
            try:
                process.wait(GRACE)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()
        for name, value in self._environment.items():  # a further run in this process starts ranks of its own
            os.environ.pop(name, None)
            if value is not None:
                os.environ[name] = value

    def wait(self) -> dict[int, int]:
        """Wait for the ranks that this process has started: {rank: exit code}."""
        while any(process.poll() is None for process in self.started):
            stopping.check()
            time.sleep(0.1)
        return {self.rank + 1 + k: process.returncode for k, process in enumerate(self.started)}


def _end_with_parent(parent: int) -> None:
    """Have Linux send SIGTERM when the process that started this one dies, be it by SIGKILL."""
    ctypes.CDLL(None).prctl(1, signal.SIGTERM)  # PR_SET_PDEATHSIG
    if os.getppid() != parent:  # it was faster
        os.kill(os.getpid(), signal.SIGTERM)


def requeue(mark: Path) -> bool | None:
    """Give this SLURM job, or this task of an array, back to the queue; once, whichever rank is the first.

    The first one leaves a file, `mark` and the job. Returns whether it is in the queue again; None outside SLURM.
    """
    if "SLURM_JOB_ID" not in os.environ:
        return None
    job = os.environ["SLURM_JOB_ID"]
    if "SLURM_ARRAY_JOB_ID" in os.environ:
        job = f"{os.environ['SLURM_ARRAY_JOB_ID']}_{os.environ['SLURM_ARRAY_TASK_ID']}"
    mark.parent.mkdir(exist_ok=True)
    try:
        mark.with_name(f"{mark.name}-{job}-{os.environ.get('SLURM_RESTART_COUNT', 0)}").touch(exist_ok=False)
    except FileExistsError:
        return True
    try:
        return subprocess.run(["scontrol", "requeue", job], check=False).returncode == 0
    except FileNotFoundError:
        return False
