"""Where a run stands: which images are finished, which have failed, and which must be done anew."""

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

from ph2p.data import TargetError, Targets
from ph2p.run import stopping

Record = dict[str, Any]


@dataclass(frozen=True)
class Standing:
    """What the records of a folder say of some images."""

    done: set[str] = field(default_factory=set)
    errors: dict[str, str] = field(default_factory=dict)  # what was wrong with those that have failed
    anew: dict[str, str] = field(default_factory=dict)  # finished ones that no longer count, and why


def standing(
    records: Iterable[Record], index: Mapping[str, int], targets: Targets, change: Callable[[Record], str | None]
) -> Standing:
    """How it stands with the images in `index` (id: number in `targets`).

    A finished image no longer counts if it was made with other settings, which `change` names, or if another
    picture stands under its name now. One that cannot be read any more counts: its prompt is known.
    """
    found = Standing()
    for record in records:
        image_id = str(record["image_id"])
        if image_id not in index:
            continue
        if record.get("status") != "ok":
            found.errors[image_id] = str(record.get("error"))
        elif changed := change(record):
            found.anew[image_id] = f"was made with {changed}"
        elif _is_replaced(record, targets, index[image_id]):
            found.anew[image_id] = "the picture was replaced"
        else:
            found.done.add(image_id)
    return found


def _is_replaced(record: Record, targets: Targets, index: int) -> bool:
    stopping.check()
    if not record.get("content"):
        return False
    try:
        return targets.load(index).key != record["content"]
    except TargetError:
        return False
