"""Stopping when told to: SIGTERM, and SIGUSR1, by which a cluster announces that a job's time is nearly up.

A handler only takes a note. The run looks at it where everything is in order: within an evaluation of the
objective, between the batches of candidates, between two images that are read or written, between two phases. While
a model is loaded nothing is in disorder, and a signal ends the run at once.
"""

import os
import signal
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from types import FrameType

_received: list[int] = []  # signals, oldest first
_at_once: list[bool] = [False]  # whether a signal raises where it comes
PATIENCE = 20  # seconds that SLURM gets to take a job back


class Stopped(SystemExit):
    """The run was told to stop by signal `number`; its exit code is the shell's, 143 for SIGTERM."""

    def __init__(self, number: int) -> None:
        super().__init__(128 + number)
        self.number = number


def listen() -> None:
    """Take note of the two signals from now on; call it first of all, for a signal before it kills."""
    owner = os.getpid()

    def note(number: int, frame: FrameType | None) -> None:
        if os.getpid() == owner:
            _received.append(number)
            if _at_once[0]:
                raise Stopped(number)
        elif number == signal.SIGTERM:  # a forked worker has inherited this handler, and ends as if it had none
            signal.signal(number, signal.SIG_DFL)
            os.kill(os.getpid(), number)

    _received.clear()
    for number in (signal.SIGTERM, signal.SIGUSR1):
        signal.signal(number, note)


def requested() -> bool:
    """Whether a signal to stop has come."""
    return bool(_received)


def check() -> None:
    """Raise `Stopped` if a signal to stop has come."""
    if _received:
        raise Stopped(_received[0])


@contextmanager
def at_once() -> Iterator[None]:
    """While inside, a signal to stop raises `Stopped` right where it comes: for what takes minutes and is not ours."""
    check()
    _at_once[0] = True
    try:
        yield
    finally:
        _at_once[0] = False


def requeue(mark: Path) -> bool | None:
    """Give this SLURM job, or this task of an array, back to the queue; once, whichever rank is the first.

    The first one leaves a file, `mark` and the job, and takes it away again if SLURM refuses, so that the next rank
    tries. Returns whether the job is in the queue again; None outside SLURM.
    """
    if "SLURM_JOB_ID" not in os.environ:
        return None
    job = os.environ["SLURM_JOB_ID"]
    if "SLURM_ARRAY_JOB_ID" in os.environ:
        job = f"{os.environ['SLURM_ARRAY_JOB_ID']}_{os.environ['SLURM_ARRAY_TASK_ID']}"
    own = mark.with_name(f"{mark.name}-{job}-{os.environ.get('SLURM_RESTART_COUNT', 0)}")
    try:
        own.parent.mkdir(parents=True, exist_ok=True)
        own.touch(exist_ok=False)
    except FileExistsError:
        return True
    except OSError:  # a full disk: better asked for twice than not at all
        pass
    with suppress(OSError, subprocess.TimeoutExpired):
        if subprocess.run(["scontrol", "requeue", job], check=False, timeout=PATIENCE).returncode == 0:
            return True
    with suppress(OSError):
        own.unlink(missing_ok=True)
    return False
