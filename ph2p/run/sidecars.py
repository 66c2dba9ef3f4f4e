"""A text file with the prompt for each picture, as programs that train LoRA weights read captions."""

from collections.abc import Iterable, Mapping
from contextlib import suppress
from pathlib import Path, PurePosixPath

from ph2p.data.formats import is_picture
from ph2p.errors import UserError
from ph2p.files import plain_disk_errors, write_whole

FOLDER = "captions"


def sidecar_name(image_id: str) -> PurePosixPath:
    """The text file of a picture inside `captions/`: `sub/dir/name.txt` for `sub/dir/name.png`.

    It lies inside that folder whatever the id: a leading `/` and `..` are left out.
    """
    path = PurePosixPath(
        *[part for part in PurePosixPath(image_id).parts if part not in ("/", "//", "..")] or ["image"]
    )
    return path.with_suffix(".txt") if is_picture(path.name) else path.with_name(f"{path.name}.txt")


def check_sidecars(ids: Iterable[str]) -> None:
    """Raise UserError where two pictures would have the same text file, as `a.png` and `a.jpg` in one folder."""
    owners: dict[PurePosixPath, str] = {}
    for image_id in ids:
        other = owners.setdefault(sidecar_name(image_id), image_id)
        if other != image_id:
            raise UserError(
                f"sidecars=true: {other} and {image_id} would both have {FOLDER}/{sidecar_name(image_id)}; rename one"
            )


def write_sidecar(folder: Path, image_id: str, prompt: str) -> None:
    """Write a picture's text file into a results folder, whole, if it does not hold just this.

    Raises UserError when the disk refuses it.
    """
    path, content = folder / FOLDER / sidecar_name(image_id), f"{prompt}\n".encode()
    with plain_disk_errors(folder):
        with suppress(FileNotFoundError):
            if path.read_bytes() == content:
                return
        path.parent.mkdir(parents=True, exist_ok=True)
        write_whole(path, content)


def remove_sidecar(folder: Path, image_id: str) -> None:
    """Remove the text file of a picture that has no prompt any more."""
    with plain_disk_errors(folder):
        (folder / FOLDER / sidecar_name(image_id)).unlink(missing_ok=True)


def complete_sidecars(folder: Path, prompts: Mapping[str, str]) -> None:
    """Write what lacks of finished pictures, {image id: prompt}: an earlier run may not have been asked for it."""
    for image_id, prompt in prompts.items():
        write_sidecar(folder, image_id, prompt)
