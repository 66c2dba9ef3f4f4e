"""The training scenes and their pictures."""

from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from ph2p.world import scenes as world
from ph2p.world.drawing import render
from ph2p.world.scenes import Scene

IMAGE_SIZE = 64


def load_scenes(work: Path, count: int, seed: int) -> tuple[list[Scene], np.ndarray]:
    """Return the training scenes and their pictures (count, 64, 64, 3) uint8, painted once and kept on disk."""
    scenes = [world.scene("train", i, seed) for i in range(count)]
    path = work / f"scenes-{count}-{seed}.npy"
    if not path.exists():
        print(f"painting {count} scenes", flush=True)
        partial = path.with_suffix(".partial.npy")
        pictures = np.lib.format.open_memmap(partial, "w+", np.uint8, (count, IMAGE_SIZE, IMAGE_SIZE, 3))
        for number, scene in enumerate(scenes):
            pictures[number] = render(scene, IMAGE_SIZE)
        pictures.flush()
        partial.rename(path)
    return scenes, np.load(path, mmap_mode="r")


def to_unit(pictures: np.ndarray, device: torch.device | str = "cpu") -> Tensor:
    """Turn (B, H, W, 3) uint8 into (B, 3, H, W) float in [-1, 1]."""
    images = torch.from_numpy(np.array(pictures)).to(device).permute(0, 3, 1, 2).float() / 127.5 - 1
    return images.contiguous(memory_format=torch.channels_last)
