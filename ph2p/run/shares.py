"""Which images a rank inverts, and in which batches: functions of numbers and names, the same whoever asks.

A batch's composition decides the last bits of its results, so it must be the same after an interruption. Hence
the share of a rank does not depend on what is finished, and a batch that was begun is continued as it was.
"""

from collections.abc import Collection, Sequence


def share(total: int, shard: tuple[int, int], rank: int, world: int) -> range:
    """The indices of a rank: every world-th of the shard (i, n), which is every n-th of all from i on.

    Each of `total` belongs to exactly one rank of one shard; nothing is padded or repeated.
    """
    index, shards = shard
    return range(total)[index::shards][rank::world]


def batches(
    ids: Sequence[str], begun: Sequence[str], done: Collection[str], failed: Collection[str], size: int
) -> list[list[str]]:
    """The batches of at most `size` that are left of a rank's `ids`: first the `begun` one, as it was.

    Images that have failed before come last, so that they do not shift the batches of the others. A begun
    batch that is not wholly among `ids` (another number of ranks) or that is all done is dropped.
    """
    whole = bool(begun) and set(begun) <= set(ids) and not set(begun) <= set(done)
    first = list(begun) if whole else []
    left = [image_id for image_id in ids if image_id not in done and image_id not in first]
    fresh = [image_id for image_id in left if image_id not in failed]
    again = [image_id for image_id in left if image_id in failed]
    cut = [some[k : k + size] for some in (fresh, again) for k in range(0, len(some), size)]
    return [first, *cut] if first else cut
