"""Microsoft COCO (arXiv 1405.0312, captions: 1504.00325): images with five captions each."""

import json
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ph2p.data.images import TargetError
from ph2p.data.targets import Target, Targets, chosen, tidy
from ph2p.errors import UserError
from ph2p.files import expand, printable, read_text

SPLITS = ("val2017", "train2017", "val2014", "train2014")
DOWNLOADS = "cocodataset.org/#download"


@dataclass(eq=False)
class CocoTargets(Targets):
    """Images of COCO with their captions as references; an image's id is its file name.

    Reads `root/annotations/captions_<split>.json` and `root/<split>/*.jpg`, as the archives unpack. An entry that
    is wrong costs its image or caption alone. Raises UserError for what is missing and says where to get it.
    """

    root: str
    split: str = "val2017"

    def find(self) -> None:
        if self.split not in SPLITS:
            raise UserError(f"data.split={printable(self.split)}: choose one of {', '.join(SPLITS)}")
        root = expand(self.root)
        self._folder, self._annotations = root / self.split, root / "annotations" / f"captions_{self.split}.json"
        _check_present(self._annotations, f"annotations_trainval{self.split[-4:]}.zip")
        _check_present(self._folder, f"{self.split}.zip")
        images, captions = _read_annotations(self._annotations)
        found, self.skipped = _join(images, captions, self._annotations.name)
        names = sorted(found)
        self._names = [names[k] for k in chosen(names, self.count, self.seed)]
        self.ids = [printable(name) for name in self._names]
        self.references = [tidy(found[name] or ()) for name in self._names]
        self._wrong = {name for name in self._names if found[name] is None}

    def load(self, index: int) -> Target:
        name = self._names[index]
        if name in self._wrong:
            raise TargetError(f"{self.ids[index]}: its file_name in {self._annotations.name} is no text: fix it there")
        file = self._folder / name
        picture = self.read(file, printable(file))
        references = self.references[index]
        return Target(self.ids[index], printable(file), picture.image, references=references, notes=picture.notes)


def _check_present(path: Path, archive: str) -> None:
    if not path.exists():
        raise UserError(f"{printable(path)}: missing: unpack {archive} of {DOWNLOADS} in data.root, or fix data.root")


def _read_annotations(file: Path) -> tuple[list[Any], list[Any]]:
    """The entries of images and of captions, unchecked."""
    try:
        content = json.loads(read_text(file))
        images, captions = content["images"], content["annotations"]
    except (ValueError, TypeError, KeyError, RecursionError) as error:
        raise UserError(f"{printable(file)}: not COCO's captions ({printable(error)}): unpack it again") from error
    if not isinstance(images, list) or not isinstance(captions, list) or not images:
        raise UserError(f"{printable(file)}: not COCO's captions (it lists no images): unpack it again")
    if captions and not any(isinstance(entry, dict) and "caption" in entry for entry in captions):
        raise UserError(f"{printable(file)}: no entry has a caption: give COCO's captions_*.json under this name")
    return images, captions


def _join(
    images: list[Any], captions: list[Any], source: str
) -> tuple[dict[str, list[str] | None], list[tuple[str, str]]]:
    """The captions of every file name, None for a name that is no text; and what was passed over.

    Numbers and texts count as the same id: 42 and "42".
    """
    said: dict[str, list[str]] = {}
    broken: set[str] = set()
    names: dict[str, str] = {}  # by the image's id
    wrong: Counter[str] = Counter()
    for entry in images:
        if not isinstance(entry, dict) or entry.get("file_name") in (None, ""):
            wrong["images that have no file_name"] += 1
            continue
        name = entry["file_name"]
        if isinstance(name, str) and "\0" not in name:
            said.setdefault(name, [])
            names[str(entry.get("id"))] = name
        else:
            broken.add(str(name))
    for entry in captions:
        owner = str(entry.get("image_id")) if isinstance(entry, dict) else ""
        if owner not in names:
            wrong["captions of images that it does not list"] += 1
        elif not isinstance(entry.get("caption"), str):
            wrong[f"captions of {names[owner]} that are no text"] += 1
        else:
            said[names[owner]].append(entry["caption"])
    found = said | dict.fromkeys(broken - said.keys())
    return found, [(source, f"{number} {printable(what)}") for what, number in wrong.items()]
