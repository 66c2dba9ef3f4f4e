"""Where a run's processes come from, and what they have in common: nothing but their number.

Image batches are separate problems, so the ranks of a run exchange no tensor and wait for nobody: a rank that
has more to do, stops or dies takes no other with it. That is why no process group (gloo, nccl) is opened: its
rendezvous, time-outs and watchdogs could only fail. Lightning finds out the rank from its environment (plain
launch, torchrun, SLURM) or starts the processes; each fits its own batches with Trainers of its own; all meet
in the results folder.
"""

import ctypes
import os
import signal
import subprocess
import time
from pathlib import Path
from typing import Any

import lightning as L
import torch
from lightning.fabric.plugins.environments import ClusterEnvironment
from lightning.fabric.utilities.distributed import _set_num_threads_if_needed
from lightning.pytorch.plugins.environments import SLURMEnvironment, TorchElasticEnvironment
from lightning.pytorch.strategies import DDPStrategy
from lightning.pytorch.strategies.launchers import _SubprocessScriptLauncher
from lightning.pytorch.utilities import rank_zero_only

from ph2p.run import stopping

LAUNCHER = "PH2P_LAUNCHER"  # environment variable: the process that has started this one


class IndependentRanks(DDPStrategy):
    """Data parallelism over image batches: launched and numbered like DDP, with no word between the ranks.

    A rank has its own device and its own prompts. Whatever DDP would synchronise is the rank's own value, and
    every rank is the first in its own eyes, so that each saves its own checkpoints.
    """

    strategy_name = "independent_ranks"

    def _configure_launcher(self) -> None:
        self._launcher = _Launcher(self.cluster_environment, self.num_processes, self.num_nodes)

    def set_world_ranks(self) -> None:
        """Number the ranks. Lightning's loggers write on the first one alone, so all of them say they are that."""
        super().set_world_ranks()
        rank_zero_only.rank = 0

    def setup_distributed(self) -> None:
        """Take note of the rank; no process group."""
        self.set_world_ranks()

    def configure_ddp(self) -> None:
        """Leave the module as it is: no gradient is reduced, and nobody's prompt is broadcast."""

    @property
    def is_global_zero(self) -> bool:
        return True

    def barrier(self, *args: Any, **kwargs: Any) -> None:
        """Wait for nobody: the others may have more batches, or be gone."""

    def broadcast(self, obj: Any, src: int = 0) -> Any:
        return obj

    def reduce(self, tensor: Any, group: Any = None, reduce_op: Any = "mean") -> Any:
        return tensor

    def reduce_boolean_decision(self, decision: bool, all: bool = True) -> bool:
        return decision

    def all_gather(self, tensor: torch.Tensor, group: Any = None, sync_grads: bool = False) -> torch.Tensor:
        return tensor


class _Launcher(_SubprocessScriptLauncher):
    """Start a process for each device but the first; unlike Lightning's, kill none because another has failed."""

    def launch(self, function: Any, *args: Any, trainer: Any = None, **kwargs: Any) -> Any:
        if not self.cluster_environment.creates_processes_externally:
            os.environ[LAUNCHER] = str(os.getpid())
            self._call_children_scripts()
        _set_num_threads_if_needed(num_processes=self.num_processes)
        return function(*args, **kwargs)


def trainer_options(trainer: dict[str, Any]) -> dict[str, Any]:
    """The arguments of a Lightning Trainer for the configuration's `trainer`.

    `precision` is the frozen pipeline's (`load_inverter`); what the Trainer holds is prompt and optimiser, which
    stay float32. SLURM's requeueing is ours: Lightning's saves inside the signal handler.
    """
    options: dict[str, Any] = {**trainer, "precision": "32-true", "plugins": []}
    if options.get("devices") not in (1, "1") or options.get("num_nodes", 1) != 1:
        options["strategy"] = IndependentRanks()
    if SLURMEnvironment.detect() and not TorchElasticEnvironment.detect():
        options["plugins"] = [SLURMEnvironment(auto_requeue=False)]
    return options


def check_environment(environment: ClusterEnvironment, devices: int, nodes: int) -> None:
    """Raise ValueError when a cluster has started another number of processes than devices x nodes."""
    environment.validate_settings(num_devices=devices, num_nodes=nodes)
    if environment.creates_processes_externally and isinstance(environment, SLURMEnvironment | TorchElasticEnvironment):
        tasks = environment.world_size()
        if tasks != devices * nodes:
            raise ValueError(
                f"this job has {tasks} tasks, but trainer.devices={devices} x trainer.num_nodes={nodes} are "
                f"{devices * nodes}; give the tasks of a node and the nodes"
            )


LAUNCHED_BY = ("LOCAL_RANK", "NODE_RANK", "WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT", LAUNCHER)  # set by a launch
GRACE = 30  # seconds that started ranks get to save and end


class Ranks:
    """Which of how many ranks this process is, on which device; as a context it starts and ends the others.

    Attributes: `rank` in [0, `world`), `device`, and `started`, whether this process is the one whose entering
    starts the others. Raises ValueError where cluster and configuration disagree on the number of processes.
    """

    def __init__(self, trainer: dict[str, Any]) -> None:
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
