"""The pictures that an experiment is made on: scenes of the embedded world, or such scenes as a data set of COCO's."""

import shutil
import tempfile
from pathlib import Path
from typing import Any

from ph2p.data import CocoTargets, Target, Targets, WorldTargets
from ph2p.world.coco import write_coco


def targets_of(scenes: dict[str, Any], folder: Path, size: tuple[int, int] | None = None) -> Targets:
    """The pictures of one set of scenes, listed but not read.

    `scenes` are arguments of `WorldTargets`, or `layout: coco` with `count` and `seed`: a small data set as
    `python -m ph2p.world.coco` writes it, kept in `folder`, whose pictures have captions that leave something out.
    """
    if scenes.get("layout") != "coco":
        return WorldTargets(image_size=size, **scenes)
    return CocoTargets(image_size=size, root=str(_coco(folder, scenes["count"], scenes["seed"])))


def loaded(targets: Targets) -> list[Target]:
    return [targets.load(index) for index in range(len(targets))]


def _coco(folder: Path, count: int, seed: int) -> Path:
    root = folder / f"coco-{seed}-{count}"
    if not root.exists():
        folder.mkdir(parents=True, exist_ok=True)
        made = Path(tempfile.mkdtemp(dir=folder))
        write_coco(made, count, seed=seed)
        try:
            made.rename(root)
        except OSError:  # another process was faster
            shutil.rmtree(made)
    return root
