"""The pictures of a folder."""

import os
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from ph2p.data.formats import is_picture, why_not
from ph2p.data.targets import Target, Targets, chosen
from ph2p.errors import UserError
from ph2p.files import expand, printable

RESULTS = "a results folder of this program"


@dataclass(eq=False)
class FolderTargets(Targets):
    """The pictures of a folder and its subfolders in sorted order, or a single picture file.

    An image's id is its path inside the folder, with `/`. Links are followed. Hidden files, results folders and what
    is no picture are passed over. Raises UserError when there is no such folder or no picture in it.
    """

    path: str

    def find(self) -> None:
        path = expand(self.path)
        if path.is_file():  # named by hand: whatever its suffix, it is meant
            files, self._root = [path], path.parent
        else:
            files, self.skipped = find_pictures(path, "data.path")
            self._root = path
        names = [file.relative_to(self._root).as_posix() for file in files]
        self._names = [names[k] for k in chosen(names, self.count, self.seed)]
        self.ids = [printable(name) for name in self._names]

    def load(self, index: int) -> Target:
        file = self._root / self._names[index]
        picture = self.read(file, printable(file))
        return Target(self.ids[index], printable(file), picture.image, notes=picture.notes)


def find_pictures(folder: Path, key: str) -> tuple[list[Path], list[tuple[str, str]]]:
    """The pictures of a folder and its subfolders, sorted by name; and what was passed over: (path inside, reason).

    Raises UserError for a folder that `key` names and that is missing, unreadable, without pictures, or of results.
    """
    if not folder.is_dir():
        raise UserError(f"{key}={printable(folder)}: no such file or folder: give a picture or a folder of them")
    if not os.access(folder, os.R_OK | os.X_OK):
        raise UserError(f"{key}={printable(folder)}: permission denied: make the folder readable (chmod u+rx)")
    if is_results(folder):
        raise UserError(f"{key}={printable(folder)}: is {RESULTS}: give the folder of the pictures themselves")
    listing = _Listing(folder)
    listing.walk()
    if not listing.pictures:
        passed = listing.skipped
        first = f"; passed over {len(passed)}, such as {passed[0][0]}: {passed[0][1]}" if passed else ""
        raise UserError(
            f"{key}={printable(folder)}: no pictures found in this folder (looked for png, jpg, webp and whatever else "
            f"Pillow reads{first})"
        )
    order = {file: file.relative_to(folder).as_posix() for file in listing.pictures}
    return sorted(listing.pictures, key=order.__getitem__), sorted(listing.skipped)


def is_results(folder: Path) -> bool:
    """Whether runs write into this folder: never an input, whatever pictures a rank has put there by now."""
    return (folder / "config.yaml").is_file() and any((folder / "results").glob("part-*.jsonl"))


class _Listing:
    """What has been found below a folder; linked folders come after all others, so that they double nothing."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.pictures: list[Path] = []
        self.skipped: list[tuple[str, str]] = []
        self._seen: dict[tuple[int, int], Path] = {}
        self._waiting: deque[Path] = deque([root])
        self._links: deque[Path] = deque()

    def walk(self) -> None:
        """List everything, without recursion: folders may lie deep."""
        while self._waiting or self._links:
            folder = (self._waiting or self._links).popleft()
            try:
                self._list(folder)
            except OSError as error:
                self._skip(folder, f"cannot be read ({error.strerror}): make it readable (chmod u+rx)")
        # Another rank may have made a folder of results of it meanwhile.
        late = [folder for folder in self._seen.values() if folder != self.root and is_results(folder)]
        for folder in late:
            self.pictures = [picture for picture in self.pictures if folder not in picture.parents]
            self._skip(folder, RESULTS)

    def _list(self, folder: Path) -> None:
        state = folder.stat()
        if (state.st_dev, state.st_ino) in self._seen:
            self._skip(folder, "a link to a folder that is read already")
        elif folder != self.root and self._of_results(folder):
            self._skip(folder, RESULTS)
        else:
            with os.scandir(folder) as found:
                entries = sorted(found, key=lambda entry: entry.name)
            self._seen[state.st_dev, state.st_ino] = folder
            for entry in entries:
                self._take(Path(entry.path), entry)

    def _of_results(self, folder: Path) -> bool:
        if not folder.is_symlink():
            return is_results(folder)
        real = folder.resolve()
        return any(is_results(one) for one in (real, *real.parents))

    def _take(self, path: Path, entry: os.DirEntry[str]) -> None:
        if path.name.startswith("."):
            self._skip(path, "hidden: its name begins with a dot")
        elif _holds(entry.is_dir):
            (self._links if entry.is_symlink() else self._waiting).append(path)
        elif not is_picture(path.name):
            self._skip(path, why_not(path.name))
        # A link to nothing is reported as a failed image rather than left out.
        elif _holds(entry.is_file) or (entry.is_symlink() and not os.path.exists(path)):
            self.pictures.append(path)
        else:
            self._skip(path, "no file but a pipe, a socket or a device")

    def _skip(self, path: Path, reason: str) -> None:
        self.skipped.append((printable(path.relative_to(self.root).as_posix()), reason))


def _holds(question: Callable[[], bool]) -> bool:
    """The answer about an entry; False for links that go in circles."""
    try:
        return question()
    except OSError:
        return False
