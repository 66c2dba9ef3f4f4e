"""How large the pages of a results folder are and how long they take: first, again, and after one more image.

The folder is made up: pictures as detailed as photographs, curves and candidates as long as those of a real run.

python benchmarks/report_size.py --images 1000 --size 512
"""

import argparse
import json
import tempfile
import time
from pathlib import Path

import numpy as np
from PIL import Image

from ph2p.report.table import write_report

RENDERINGS = 3  # of the prompt; the target comes beside them
WORDS = ["large", "red", "square", "above", "a"]


def photograph(rng: np.random.Generator, size: int) -> Image.Image:
    """A picture with structure at every scale, as photographs have it (spectrum 1 / f)."""
    total = np.zeros((size, size, 3))
    for side in (4, 16, 64, size // 2, size):
        noise = Image.fromarray(rng.integers(0, 256, (side, side, 3), dtype=np.uint8))
        total += np.asarray(noise.resize((size, size), Image.Resampling.BICUBIC), dtype=np.float64) / side
    low, high = total.min(), total.max()
    return Image.fromarray(((total - low) / (high - low) * 255).astype(np.uint8))


def add_image(folder: Path, name: str, pictures: list[bytes]) -> None:
    """Write an image's files and its record, as a run does."""
    place = folder / "images" / name
    place.mkdir(parents=True)
    files = ["target.png", *(f"rendering-{k}.png" for k in range(RENDERINGS))]
    for file, picture in zip(files, pictures, strict=True):
        (place / file).write_bytes(picture)
    rows = [{"prompt": "large red square above a dog", "loss": 0.3 + k / 100, "epoch": k} for k in range(50)]
    prompts = [[*WORDS[k % 3 :], "dog"] for k in range(21)]
    trail = {
        "losses": [1 / (k % 20 + 1) for k in range(400)],
        "ends": list(range(20, 401, 20)),
        "projected": prompts,
        "judged": [0.5 - k / 100 for k in range(21)],
        "rounds": prompts[:3],
    }
    curves = {"loss_curve": [1 / (k + 1) for k in range(20)], "search_curve": [0.4, 0.3, 0.3]}
    content = {**curves, "trail": trail, "candidates": rows}
    (folder / "candidates" / f"{name}.json").write_text(json.dumps(content))
    named = [f"images/{name}/{file}" for file in files]
    record = {
        "image_id": f"{name}.png", "status": "ok", "prompt": "large red square above a dog", "loss": 0.34,
        "loss_empty": 0.8, "gap_closed": 0.57, "clip_similarity": 0.9, "samples": 2000, "seconds": 12.5,
        "files": {"target": named[0], "renderings": named[1:], "candidates": f"candidates/{name}.json"},
    }  # fmt: skip
    with (folder / "results" / "part-00000.jsonl").open("a") as part:
        part.write(json.dumps(record) + "\n")


def measure(folder: Path, what: str) -> None:
    started, worked = time.perf_counter(), time.process_time()
    write_report(folder)
    seconds, worked = time.perf_counter() - started, time.process_time() - worked
    pages = [file.stat().st_size for file in folder.glob("index*.html")]
    thumbnails = [file.stat().st_size for file in (folder / "thumbnails").rglob("*.webp")]
    print(f"{what}: {seconds:.1f} s, {worked:.1f} s of a core")
    print(f"  {len(pages)} pages, the largest {max(pages) / 2**20:.2f} MiB, together {sum(pages) / 2**20:.1f} MiB")
    print(f"  {len(thumbnails)} thumbnails, {sum(thumbnails) / 2**20:.1f} MiB", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images", type=int, default=1000)
    parser.add_argument("--size", type=int, default=512, help="pixels")
    args = parser.parse_args()
    rng = np.random.default_rng(0)
    with tempfile.TemporaryDirectory() as place:
        folder = Path(place)
        for name in ("results", "candidates"):
            (folder / name).mkdir()
        contents = []
        for k in range(8):  # a few different pictures are enough: each file is read and shrunk for itself
            photograph(rng, args.size).save(folder / f"{k}.png")
            contents.append((folder / f"{k}.png").read_bytes())
        print(f"pictures of {np.mean([len(content) for content in contents]) / 2**10:.0f} KiB")
        for k in range(args.images):
            add_image(folder, f"image-{k}", [contents[(k + j) % len(contents)] for j in range(1 + RENDERINGS)])
        measure(folder, "first")
        measure(folder, "again")
        add_image(folder, "one-more", contents[: 1 + RENDERINGS])
        measure(folder, "one more image")


if __name__ == "__main__":
    main()
