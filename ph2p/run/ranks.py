"""Where a run's processes come from, and what they have in common: nothing but their number.

Image batches are separate problems, so the ranks of a run exchange no tensor and wait for nobody: a rank that
has more to do, stops or dies takes no other with it. So no process group (gloo, nccl) is opened: its rendezvous,
time-outs and watchdogs could only fail. In the eyes of Lightning each rank is alone, with a Trainer on the one
device that is its own; its public cluster environments say which rank this process is. All meet in the results
folder.
"""

import ctypes
import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping
from dataclasses import dataclass
from functools import lru_cache
from typing import IO, Any

import lightning as L
import torch
from lightning.pytorch.accelerators import CPUAccelerator
from lightning.pytorch.plugins.environments import (
    ClusterEnvironment,
    LightningEnvironment,
    LSFEnvironment,
    MPIEnvironment,
    SLURMEnvironment,
    TorchElasticEnvironment,
)
from lightning.pytorch.utilities import rank_zero_only

from ph2p.errors import UserError
from ph2p.run import stopping

LAUNCHER = "PH2P_LAUNCHER"  # environment variable: the process that has started this one
GRACE = 30  # seconds that started ranks get to save and end


def find_environment() -> ClusterEnvironment:
    """What has started this process: torchrun, SLURM, LSF, MPI, or nobody."""
    if TorchElasticEnvironment.detect():  # first: it is also used inside SLURM
        return TorchElasticEnvironment()
    if SLURMEnvironment.detect():
        return SLURMEnvironment(auto_requeue=False)  # `stopping.requeue` does it
    kinds: tuple[type[ClusterEnvironment], ...] = (LSFEnvironment, MPIEnvironment)
    return next((kind() for kind in kinds if kind.detect()), LightningEnvironment())


@dataclass(frozen=True)
class Devices:
    """The devices of this node, one for each of its ranks: what Lightning makes of `accelerator` and `devices`."""

    all: tuple[torch.device, ...]
    accelerator: str

    @property
    def count(self) -> int:
        return len(self.all)

    def of(self, local_rank: int) -> torch.device:
        """The device of a rank of this node; raises ValueError where the node has several, but fewer than that."""
        if self.count == 1:
            return self.all[0]
        if local_rank >= self.count:
            raise ValueError(f"this is process {local_rank + 1} of its node, but devices={self.count}; start as many")
        return self.all[local_rank]


def devices_of(trainer: Mapping[str, Any]) -> Devices:
    """The devices that the configuration's `trainer` names; Lightning raises what it likes for wrong keys."""
    return _devices(json.dumps(dict(trainer), sort_keys=True))


@lru_cache
def _devices(trainer: str) -> Devices:
    options = {**json.loads(trainer), "num_nodes": 1, "precision": "32-true", "plugins": [LightningEnvironment()]}
    probe = L.Trainer(**options, logger=False, enable_checkpointing=False)
    kind = type(probe.accelerator)
    if issubclass(kind, CPUAccelerator):
        return Devices((torch.device("cpu"),) * probe.num_devices, "cpu")
    return Devices(tuple(kind.get_parallel_devices(probe.device_ids)), kind.name())


def own_device(trainer: Mapping[str, Any]) -> torch.device:
    """The device of this process."""
    return devices_of(trainer).of(find_environment().local_rank())


def trainer_options(trainer: Mapping[str, Any]) -> dict[str, Any]:
    """The arguments of this rank's Lightning Trainer for the configuration's `trainer`: one device, no other rank.

    `precision` is the frozen pipeline's (`load_inverter`); what the Trainer holds is prompt and optimiser, which
    stay float32. The environment is that of a process alone, whoever started it: Lightning's own for SLURM would
    save inside a signal handler.
    """
    device = own_device(trainer)
    one = {
        "accelerator": devices_of(trainer).accelerator,
        "devices": 1 if device.type == "cpu" else [device.index or 0],
    }
    fixed = {"num_nodes": 1, "precision": "32-true", "plugins": [LightningEnvironment()]}
    return {**trainer, **one, **fixed}


def check_environment(environment: ClusterEnvironment, devices: int, nodes: int) -> None:
    """Raise ValueError when a cluster has started another number of processes than devices x nodes."""
    environment.validate_settings(num_devices=devices, num_nodes=nodes)
    if isinstance(environment, LightningEnvironment):
        if nodes > 1 and not {"NODE_RANK", "GROUP_RANK"} & os.environ.keys():
            raise ValueError(
                f"num_nodes={nodes}, but nothing has started a process on each node: use sbatch or torchrun, or set "
                "NODE_RANK=0, 1, ... where you start them"
            )
        return
    tasks = environment.world_size()
    if tasks != devices * nodes:
        raise ValueError(
            f"this job has {tasks} tasks, but trainer.devices={devices} x trainer.num_nodes={nodes} are "
            f"{devices * nodes}; give the tasks of a node and the nodes"
        )


class Ranks:
    """Which of how many ranks this process is, on which device; as a context it starts and ends the others.

    Attributes: `rank` in [0, `world`), `device`, `started`: the processes that entering has started, and
    `leads`, whether this process waits for all others, which is so where it has started them. Raises ValueError
    where cluster and configuration disagree on the number of processes.
    """

    def __init__(self, trainer: Mapping[str, Any]) -> None:
        devices, nodes = devices_of(trainer), int(trainer.get("num_nodes", 1))
        environment = find_environment()
        check_environment(environment, devices.count, nodes)
        local = environment.local_rank()
        self.device, self.world, self._here = devices.of(local), devices.count * nodes, devices.count
        if isinstance(environment, LightningEnvironment):
            self.rank = environment.node_rank() * devices.count + local
        else:
            self.rank = environment.global_rank()
        if not 0 <= self.rank < self.world:
            raise ValueError(f"this is rank {self.rank}, but there are {self.world}; give the number of nodes")
        self._external = environment.creates_processes_externally
        self.started: list[tuple[subprocess.Popen[bytes], IO[bytes]]] = []
        rank_zero_only.rank = 0  # Lightning's loggers write on the first rank alone, and each of ours is that
        if LAUNCHER in os.environ and local:
            _end_with_parent(int(os.environ[LAUNCHER]))

    @property
    def is_child(self) -> bool:
        """Whether another rank has started this one, and reports for it."""
        return LAUNCHER in os.environ

    @property
    def leads(self) -> bool:
        return self.rank == 0 and len(self.started) == self.world - 1

    def __enter__(self) -> "Ranks":
        if self._here > 1 and "OMP_NUM_THREADS" not in os.environ:
            torch.set_num_threads(max(1, len(os.sched_getaffinity(0)) // self._here))
        if not self._external:
            for local in range(1, self._here):
                self.started.append(_start(local))
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: object) -> None:
        """End the started ranks if they run on, with the signal that ended this one, and pass on what they said."""
        for process, _ in self.started:
            if process.poll() is None:
                process.send_signal(getattr(error, "number", signal.SIGTERM))
        for process, _ in self.started:
            try:
                process.wait(GRACE)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()
        pass_on([said for _, said in self.started], f"error: {error}" if isinstance(error, UserError) else "")

    def wait(self) -> dict[int, int]:
        """Wait for the ranks that this process has started: {rank: exit code}."""
        while any(process.poll() is None for process, _ in self.started):
            stopping.check()
            time.sleep(0.1)
        return {self.rank + 1 + k: process.returncode for k, (process, _) in enumerate(self.started)}


def _start(local_rank: int) -> tuple[subprocess.Popen[bytes], IO[bytes]]:
    """Start this command once more, as another rank of this node; and the file of what it says on stderr."""
    said = tempfile.TemporaryFile()  # noqa: SIM115  # open as long as the rank runs
    environment = os.environ | {LAUNCHER: str(os.getpid()), "LOCAL_RANK": str(local_rank)}
    return subprocess.Popen([sys.executable, *sys.orig_argv[1:]], env=environment, stderr=said), said


def pass_on(files: list[IO[bytes]], own: str) -> None:
    """Say on stderr what ranks have said there, each line once, and not this rank's `own` error, said by itself."""
    seen = {own}
    for file in files:
        file.seek(0)
        for line in file.read().decode("utf-8", "backslashreplace").splitlines():
            if line not in seen:
                print(line, file=sys.stderr)
            seen.add(line)
        file.close()


def _end_with_parent(parent: int) -> None:
    """Have Linux send SIGTERM when the process that started this one dies, be it by SIGKILL."""
    ctypes.CDLL(None).prctl(1, signal.SIGTERM)  # PR_SET_PDEATHSIG
    if os.getppid() != parent:  # it was faster
        os.kill(os.getpid(), signal.SIGTERM)
