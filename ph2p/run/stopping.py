"""Stopping when told to: SIGTERM, and SIGUSR1, by which a cluster announces that a job's time is nearly up.

A handler only takes a note. The run looks at it where everything is in order: after a step of the optimiser, a
round of the search, between two phases.
"""

import os
import signal
from types import FrameType

_received: list[int] = []  # signals, oldest first


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
