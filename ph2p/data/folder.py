"""The pictures of a folder."""

import os
from pathlib import Path

from ph2p.data.images import SUFFIXES, load_image, printable
from ph2p.data.targets import Target, Targets
from ph2p.errors import UserError


class FolderTargets(Targets):
    """The pictures of a folder and its subfolders in sorted order, or a single picture file.

    An image's id is its path inside the folder, with `/`. Hidden files and folders are passed over.
    Raises UserError when there is no such folder or no picture in it.
    """

    def __init__(self, path: str | Path, image_size: int) -> None:
        self.path, self.image_size = Path(path).expanduser(), image_size
        if self.path.is_file():  # named by hand: whatever its suffix, it is meant
            self.files, root = [self.path], self.path.parent
        else:
            self.files, root = find_pictures(self.path), self.path
        self.ids = [printable(file.relative_to(root).as_posix()) for file in self.files]

    def load(self, index: int) -> Target:
        file = self.files[index]
        return Target(self.ids[index], printable(file), load_image(file, self.image_size))


def find_pictures(folder: Path) -> list[Path]:
    """The pictures of a folder and its subfolders, sorted by name, hidden ones left out; UserError for none."""
    if not folder.is_dir():
        raise UserError(f"{printable(folder)}: no such file or folder: give a picture or a folder of them")
    if not os.access(folder, os.R_OK | os.X_OK):
        raise UserError(f"{printable(folder)}: permission denied: make the folder readable (chmod u+rx)")
    pictures = [
        file
        for file in folder.rglob("*")
        if file.suffix.lower() in SUFFIXES
        and not any(part.startswith(".") for part in file.relative_to(folder).parts)
        and (file.is_file() or _is_dangling(file))
    ]
    if not pictures:
        known = ", ".join(suffix[1:] for suffix in SUFFIXES)
        raise UserError(f"{printable(folder)}: no pictures found in this folder (looked for {known})")
    return sorted(pictures, key=lambda file: file.relative_to(folder).as_posix())


def _is_dangling(file: Path) -> bool:
    # A link to nothing is reported as a failed image rather than silently left out.
    return file.is_symlink() and not file.exists()
