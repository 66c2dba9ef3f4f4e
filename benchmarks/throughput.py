"""How much faster a batch is than one image at a time, in one run on the same cores; and the peak memory.

python benchmarks/throughput.py --batch-size 16
"""

import argparse
import resource
import time

from ph2p.config.compose import load_config
from ph2p.data import WorldTargets
from ph2p.evaluation.result import InversionResult
from ph2p.run.build import load_inverter


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--batch-size", type=int, default=16)
    parser.add_argument("--singles", type=int, default=4, help="images that are inverted one at a time")
    parser.add_argument("--method", default="ph2p")
    args = parser.parse_args()
    inverter = load_inverter(load_config([f"method={args.method}"]))
    size = inverter.generator.image_size
    targets = WorldTargets(count=args.batch_size, seed=7, objects=1, image_size=size)
    scenes = [targets.load(index) for index in range(len(targets))]
    inverter(scenes[:1])  # warm up
    started = time.perf_counter()
    alone = [inverter([scene])[0] for scene in scenes[: args.singles]]
    single = (time.perf_counter() - started) / args.singles
    started = time.perf_counter()
    together = inverter(scenes)
    batched = (time.perf_counter() - started) / len(scenes)

    pairs = zip(alone, together, strict=False)
    found = [(a, b) for a, b in pairs if isinstance(a, InversionResult) and isinstance(b, InversionResult)]
    same = sum(a.prompt == b.prompt for a, b in found)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
    print(f"{args.method}: one at a time {single:.2f} s an image, {args.batch_size} in a batch {batched:.2f} s")
    print(f"throughput ratio {single / batched:.2f}; same prompts {same} of {args.singles}; peak memory {peak:.2f} GiB")


if __name__ == "__main__":
    main()
