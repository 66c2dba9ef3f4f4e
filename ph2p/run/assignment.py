"""Which image goes to which process of a run (its rank), and in which batches.

These are functions of names and numbers, the same whoever asks. A batch's composition decides the last bits of its
results, so it must be the same after an interruption. So the images of a rank depend neither on what is finished nor
on what else there is, and a batch that was begun is continued as it was.
"""

import hashlib
from collections.abc import Collection, Sequence


def belongs(image_id: str, shard: tuple[int, int], rank: int = 0, world: int = 1) -> bool:
    """Whether an image is one of the rank's: of its shard (i, n), and there one of `world` parts.

    The hash of its id says so, h mod n = i and h div n mod world = rank. Two processes that see different lists,
    because a picture was added in between, agree on all others. The price: of k images a rank has k / (n world), give
    or take the square root of that.
    """
    index, shards = shard
    number = int.from_bytes(hashlib.sha256(image_id.encode("utf-8", "surrogatepass")).digest()[:8], "big")
    return number % shards == index and number // shards % world == rank


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
