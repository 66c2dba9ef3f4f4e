"""How many rows go through a frozen model at once, and what happens when the device's memory is too small."""

import resource
from collections.abc import Callable, Iterator
from typing import TypeVar

import torch
from lightning.pytorch.utilities.memory import garbage_collection_cuda, is_oom_error
from torch import Tensor

from ph2p.errors import UserError

Result = TypeVar("Result")


class MicroBatch:
    """The largest number of rows at once, learned separately for each kind of pass.

    Rows are independent of each other up to rounding, and another split rounds differently. `rows` is a bound, of at
    least 1; None starts with everything at once and halves whenever the device runs out of memory. `used` names
    the largest size of each kind that went through.
    """

    def __init__(self, rows: int | None = None) -> None:
        self.rows = rows
        self.learned: dict[str, int] = {}  # kind of pass -> rows that may fit
        self.used: dict[str, int] = {}

    def bounds(self) -> dict[str, int]:
        """What bounds the rows at once: the number given, or, for each kind where memory ran out, what was left."""
        return {"all": self.rows} if self.rows else dict(self.learned)

    def run(self, kind: str, most: int, function: Callable[[int], Result]) -> Result:
        """`function(size)` with the most rows that fit, at most `most`; it begins anew after each failure.

        Raises UserError when memory runs out and there is nothing left to halve.
        """
        while True:
            size = min(most, self.learned.get(kind, self.rows or most))
            try:
                result = function(size)
            except RuntimeError as error:
                if not is_oom_error(error):
                    raise
                if self.rows or size == 1:
                    advice = (
                        "give a smaller number, or auto" if self.rows else "free the device or take a smaller model"
                    )
                    at_once = self.rows or "auto"
                    raise UserError(f"method.microbatch={at_once}: out of memory with {size} rows; {advice}") from error
            else:
                self.used[kind] = max(size, self.used.get(kind, 0))
                return result
            self.learned[kind] = size // 2  # here the failed attempt's tensors are gone
            garbage_collection_cuda()

    def map(self, kind: str, most: int, function: Callable[[Tensor], Tensor], rows: Tensor) -> Tensor:
        """`function` of rows (K, ...), at most `most` of them at once."""
        most = max(1, min(most, len(rows)))
        return self.run(kind, most, lambda size: torch.cat([function(part) for part in rows.split(size)]))


def parts(rows: int, draws: int, size: int) -> Iterator[tuple[slice, slice, float]]:
    """Cut rows x draws samples into parts of at most `size`: (rows, draws, the part's share of a row's draws)."""
    if size >= draws:
        step = size // draws
        yield from ((slice(start, start + step), slice(None), 1.0) for start in range(0, rows, step))
        return
    for row in range(rows):
        for start in range(0, draws, size):
            end = min(start + size, draws)
            yield slice(row, row + 1), slice(start, end), (end - start) / draws


def peak_memory() -> int:
    """The most memory so far in MiB: on a GPU what torch has allocated there, else the process's resident set."""
    if torch.cuda.is_available() and torch.cuda.is_initialized():
        return torch.cuda.max_memory_allocated() // 2**20
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 2**10  # Linux counts in KiB
