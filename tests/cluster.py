"""A real SLURM of two nodes on this machine, for the tests: slurmctld, two slurmd and munged as child processes."""

import os
import re
import shutil
import socket
import subprocess
import time
from collections.abc import Callable
from pathlib import Path

PROGRAMS = ("slurmctld", "slurmd", "munged", "sbatch", "scontrol", "scancel")
CONFIG = """
ClusterName=ph2p
SlurmctldHost={host}(127.0.0.1)
SlurmctldPort={controller}
SlurmUser=root
SlurmdUser=root
AuthType=auth/munge
AuthInfo=socket={folder}/munge.socket,cred_expire=5
StateSaveLocation={folder}/state
SlurmdSpoolDir={folder}/spool-%n
SlurmctldPidFile={folder}/slurmctld.pid
SlurmdPidFile={folder}/slurmd-%n.pid
SlurmctldLogFile={folder}/slurmctld.log
SlurmdLogFile={folder}/slurmd-%n.log
SelectType=select/cons_tres
SelectTypeParameters=CR_CPU
TaskPlugin=task/none
SwitchType=switch/none
MpiDefault=none
ProctrackType=proctrack/linuxproc
AccountingStorageType=accounting_storage/none
JobCompType=jobcomp/none
JobAcctGatherType=jobacct_gather/none
SchedulerParameters=sched_interval=1,batch_sched_delay=0
SlurmdParameters=config_overrides
SlurmctldParameters=preempt_send_user_signal
PreemptType=preempt/partition_prio
PreemptMode=REQUEUE
JobRequeue=1
KillWait=2
OverTimeLimit=0
ReturnToService=2
NodeName=127.0.0.1 NodeHostname={host} NodeAddr=127.0.0.1 Port={first} CPUs=2
NodeName=127.0.0.2 NodeHostname={host} NodeAddr=127.0.0.1 Port={second} CPUs=2
PartitionName=main Nodes=ALL Default=YES PriorityTier=1 GraceTime=60
PartitionName=high Nodes=ALL PriorityTier=10 PreemptMode=OFF
"""


def missing() -> list[str]:
    """The programs that this machine lacks."""
    return [name for name in PROGRAMS if not shutil.which(name, path=f"{os.environ['PATH']}:/usr/sbin:/sbin")]


class Cluster:
    """Nodes 127.0.0.1 and 127.0.0.2 with two CPUs each; partitions `main`, and `high`, which preempts it."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.processes = folder, []
        os.chmod(folder, 0o755)
        (folder / "state").mkdir()
        host = socket.gethostname().split(".")[0]
        ports = dict(zip(("controller", "first", "second"), free_ports(3), strict=True))
        (folder / "slurm.conf").write_text(CONFIG.format(folder=folder, host=host, **ports))
        self.environment = {key: value for key, value in os.environ.items() if not key.startswith("SLURM_")}
        self.environment |= {"SLURM_CONF": str(folder / "slurm.conf"), "PATH": f"{os.environ['PATH']}:/usr/sbin:/sbin"}

    def start(self) -> None:
        key = self.folder / "munge.key"
        key.write_bytes(os.urandom(1024))
        key.chmod(0o400)
        places = {"key-file": key.name, "socket": "munge.socket", "pid-file": "munge.pid", "log-file": "munge.log"}
        places["seed-file"] = "munge.seed"
        munge = ["munged", "--foreground", "--force", *(f"--{k}={self.folder}/{v}" for k, v in places.items())]
        self._start(munge)
        wait_until(lambda: (self.folder / "munge.socket").exists())
        config = str(self.folder / "slurm.conf")
        self._start(["slurmctld", "-D", "-c", "-f", config])
        for node in ("127.0.0.1", "127.0.0.2"):
            self._start(["slurmd", "-D", "-f", config, "-N", node])
        wait_until(lambda: self._call("sinfo", "-h", "-o", "%T", "-p", "main") == "idle\n", 60)

    def _start(self, command: list[str]) -> None:
        log = (self.folder / f"{command[0]}-{len(self.processes)}.out").open("w")
        self.processes.append(subprocess.Popen(command, env=self.environment, stdout=log, stderr=log))

    def stop(self) -> None:
        self._call("scancel", "--user=root")
        time.sleep(0.5)
        for process in reversed(self.processes):
            process.terminate()
        for process in self.processes:
            try:
                process.wait(10)
            except subprocess.TimeoutExpired:
                process.kill()

    def _call(self, *command: str) -> str:
        return subprocess.run(command, env=self.environment, capture_output=True, text=True).stdout

    def submit(self, *words: str, cwd: Path, **environment: str) -> str:
        """Submit with `sbatch`; returns the job's id."""
        done = subprocess.run(
            ["sbatch", "--parsable", *words],
            env=self.environment | environment,
            cwd=cwd,
            capture_output=True,
            text=True,
        )
        assert done.returncode == 0, done.stderr
        return done.stdout.strip()

    def signal(self, job: str) -> None:
        subprocess.run(["scancel", "-s", "USR1", job], env=self.environment, check=True)

    def jobs(self, job: str) -> list[dict[str, str]]:
        """What `scontrol show job` says of a job, or of each task of an array."""
        text = self._call("scontrol", "-o", "show", "job", job)
        return [dict(re.findall(r"(\w+)=(\S*)", line)) for line in text.splitlines() if line.startswith("JobId")]

    def wait(self, job: str, seconds: float = 400) -> list[dict[str, str]]:
        """Wait until a job and all tasks of an array have ended; returns what SLURM says of them."""
        over = {"COMPLETED", "FAILED", "CANCELLED", "TIMEOUT", "NODE_FAIL", "PREEMPTED"}
        wait_until(lambda: all(one["JobState"] in over for one in self.jobs(job)), seconds)
        return self.jobs(job)


def wait_until(what: Callable[[], bool], seconds: float = 30) -> None:
    deadline = time.monotonic() + seconds
    while not what():
        assert time.monotonic() < deadline, "it took too long"
        time.sleep(0.1)


def free_ports(count: int) -> list[int]:
    sockets = [socket.socket() for _ in range(count)]
    for one in sockets:
        one.bind(("127.0.0.1", 0))
    ports = [one.getsockname()[1] for one in sockets]
    for one in sockets:
        one.close()
    return ports
