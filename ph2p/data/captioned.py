"""Images with captions that people wrote: a folder, and a table or text files beside it."""

from dataclasses import dataclass
from pathlib import Path

from ph2p.data.folder import find_pictures
from ph2p.data.images import TargetError
from ph2p.data.tables import read_table
from ph2p.data.targets import Target, Targets, chosen, tidy
from ph2p.errors import UserError
from ph2p.files import expand, printable, read_text


@dataclass(eq=False)
class CaptionedTargets(Targets):
    """The images that a file of captions names, with those captions as references.

    `captions` is a .csv, .tsv or .jsonl file: `file_key` names the column of file names, `caption_key` that of
    captions (JSON lines may hold lists of them); several lines may name one image, columns of a .csv are separated by
    `delimiter`. Or it is a folder with a text file for each picture, `sub/a.txt` for `sub/a.jpg`, a caption a line.
    `captions` and `images`, the folder that file names start from, lie in `root`. An image's id is its file name.

    Raises UserError for a missing or malformed file of captions.
    """

    root: str
    captions: str
    images: str = "."
    file_key: str = "file_name"
    caption_key: str = "caption"
    delimiter: str = ","

    def find(self) -> None:
        if len(self.delimiter) != 1 or self.delimiter in '"\r\n':
            raise UserError(f"data.delimiter={printable(self.delimiter)}: give one character (a .tsv needs none)")
        root = expand(self.root)
        self._folder, source = root / expand(self.images), root / expand(self.captions)
        self._texts = source if source.is_dir() else None
        found = self._listed() if self._texts else read_table(source, self.file_key, self.caption_key, self.delimiter)
        names = list(found)
        self._names = [names[k] for k in chosen(names, self.count, self.seed)]
        self.ids = [printable(name) for name in self._names]
        self.references = [tidy(found[name]) for name in self._names]

    def _listed(self) -> dict[str, list[str]]:
        """The pictures of the folder; their text files are read with them."""
        pictures, skipped = find_pictures(self._folder, "data.images")
        names = [file.relative_to(self._folder).as_posix() for file in pictures]
        texts = {printable(Path(name).with_suffix(".txt").as_posix()) for name in names}
        self.skipped = [(name, reason) for name, reason in skipped if name not in texts]
        return {name: [] for name in names}

    def load(self, index: int) -> Target:
        file, references = self._folder / self._names[index], self.references[index]
        picture = self.read(file, printable(file))
        if self._texts:
            references = _read_lines((self._texts / self._names[index]).with_suffix(".txt"))
        return Target(self.ids[index], printable(file), picture.image, references=references, notes=picture.notes)


def _read_lines(file: Path) -> tuple[str, ...]:
    """The captions of one picture; none where there is no such file."""
    if not file.exists():
        return ()
    try:
        return tidy(read_text(file).split("\n"))
    except UserError as error:
        raise TargetError(str(error)) from error
