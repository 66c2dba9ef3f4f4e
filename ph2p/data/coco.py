"""Microsoft COCO (arXiv 1405.0312, captions: 1504.00325): images with five captions each."""

import io
from contextlib import redirect_stdout
from pathlib import Path
from typing import Any

from ph2p.data.images import load_image, printable
from ph2p.data.targets import Target, Targets, chosen, tidy
from ph2p.errors import UserError

SPLITS = ("val2017", "train2017")
DOWNLOADS = "cocodataset.org/#download"


class CocoTargets(Targets):
    """Images of COCO with their captions as references; an image's id is its file name.

    Reads `root/annotations/captions_<split>.json` and `root/<split>/*.jpg`, as the archives unpack. Of `count`
    images, a sample by `seed`; of all for None. Raises UserError for what is missing and says where to get it.
    """

    def __init__(
        self,
        root: str | Path,
        image_size: int,
        split: str = "val2017",
        count: int | None = None,
        seed: int = 0,
    ) -> None:
        if split not in SPLITS:
            raise UserError(f"data.split={split}: choose one of {', '.join(SPLITS)}")
        root = Path(root).expanduser()
        self.folder, self.image_size = root / split, image_size
        annotations = root / "annotations" / f"captions_{split}.json"
        _check_present(annotations, f"annotations_trainval{split[-4:]}.zip")
        _check_present(self.folder, f"{split}.zip")
        found = _read_captions(annotations)
        names = sorted(found)
        self.ids = [names[k] for k in chosen(names, count, seed)]
        self.references = [tidy(found[name]) for name in self.ids]

    def load(self, index: int) -> Target:
        file = self.folder / self.ids[index]
        image = load_image(file, self.image_size)
        return Target(self.ids[index], printable(file), image, references=self.references[index])


def _check_present(path: Path, archive: str) -> None:
    if not path.exists():
        raise UserError(f"{printable(path)}: missing: unpack {archive} of {DOWNLOADS} in data.root, or mend data.root")


def _read_captions(annotations: Path) -> dict[str, list[str]]:
    """The captions of every file name; images without captions are in it too."""
    coco = _open_annotations(annotations)
    try:
        return {
            image["file_name"]: [annotation["caption"] for annotation in coco.imgToAnns[number]]
            for number, image in coco.imgs.items()
        }
    except (KeyError, TypeError) as error:
        raise UserError(f"{printable(annotations)}: an entry lacks {error}: give COCO's captions") from error


def _open_annotations(annotations: Path) -> Any:
    try:
        from pycocotools.coco import COCO
    except ImportError as error:
        raise UserError("data=coco: pycocotools is not installed: pip install pycocotools") from error
    try:
        with redirect_stdout(io.StringIO()):  # it reports what it does
            return COCO(str(annotations))
    except Exception as error:  # it looks into whatever JSON it finds
        reason = printable(error) or type(error).__name__
        raise UserError(f"{printable(annotations)}: not COCO's captions ({reason}): unpack it anew") from error
