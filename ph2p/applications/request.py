"""What a command line asks of an application; nothing heavy is loaded for it."""

import argparse
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple, Self

from ph2p.applications.settings import Settings, load_settings, split_words, yaml_file
from ph2p.config.compose import load_config
from ph2p.config.validate import check_set_size
from ph2p.errors import UserError
from ph2p.files import expand, printable


class Application(NamedTuple):
    """What `ph2p apply NAME` takes, and what it is for; "..." at the end: all before it may be given several times.

    `set_of_pictures`: what it is given are pictures that share a prompt, and `--negative` names others.
    """

    takes: tuple[str, ...]
    about: str
    set_of_pictures: bool = False

    def accepts(self, count: int) -> bool:
        """Whether so many words can be what it takes."""
        if self.takes[-1] != "...":
            return count == len(self.takes)
        return count % (len(self.takes) - 1) == 0


APPLICATIONS = {
    "attention": Application(("IMAGE", "PROMPT"), "where in a picture each word of a prompt is seen"),
    "distillation": Application(("IMAGE", "PROMPT"), "which few words of a prompt do nearly as well as all"),
    "removal": Application(("PROMPT", "NEGATIVE"), "how well a negative prompt keeps its concept out of renderings"),
    "evolution": Application(("IMAGE", "PROMPT", "..."), "which children of several pictures' prompts suit them all"),
    "style": Application(("IMAGE", "..."), "which prompt several pictures share, and not the negatives", True),
}


@dataclass(frozen=True)
class Request:
    """An application with what it is given, its settings, the words for the models, and the page to write."""

    name: str
    given: Sequence[str]
    settings: Settings
    words: Sequence[str]
    output: Path
    negative: Sequence[str] = ()

    @classmethod
    def of(cls, arguments: argparse.Namespace) -> Self:
        """The request of parsed arguments; raises UserError for too few or many words and for a wrong setting."""
        name, application = arguments.name, APPLICATIONS[arguments.name]
        if not application.accepts(len(arguments.given)):
            raise UserError(f"ph2p apply {name}: give {' '.join(application.takes)}, texts in quotes")
        if arguments.output.suffix != ".html":
            raise UserError(f"--output {arguments.output}: give a file whose name ends in .html")
        own, words = split_words(arguments.set)
        settings, negative = load_settings(name, own), getattr(arguments, "negative", [])
        if application.set_of_pictures:
            if own and not negative:
                raise UserError(f"{own[0]}: has no effect without --negative IMAGE")
            _check_set([*arguments.given, *negative], words)
        return cls(name, arguments.given, settings, words, arguments.output, negative)


def _check_set(pictures: Sequence[str], words: Sequence[str]) -> None:
    """Raise UserError, before a model is loaded, for a file that is not there or more pictures than draws."""
    for path in pictures:
        if not expand(path).is_file():
            raise UserError(f"{printable(path)}: no such file; check the path")
    check_set_size(load_config(words), len(pictures))


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add a command for each application, whose help lists its keys."""
    parts = parser.add_subparsers(dest="name", required=True, metavar="|".join(APPLICATIONS))
    for name, (takes, about, set_of_pictures) in APPLICATIONS.items():
        negative = " [--negative IMAGE ...]" if set_of_pictures else ""
        keys = yaml_file(name).read_text(encoding="utf-8").partition("\n")[2]
        part = parts.add_parser(
            name,
            help=about,
            usage=f"ph2p apply {name} {' '.join(takes)}{negative} [--set KEY=VALUE] [--output PAGE]",
            description=f"Show {about}.",
            epilog=f"application.KEY, with its default:\n\n{keys}",
            formatter_class=argparse.RawDescriptionHelpFormatter,
        )
        part.add_argument("given", nargs="+", metavar=" ".join(takes), help="texts in quotes")
        if set_of_pictures:
            part.add_argument(
                "--negative", nargs="+", default=[], metavar="IMAGE", help="that the prompt is not to suit"
            )
        part.add_argument("--set", action="append", default=[], metavar="KEY=VALUE", help="application.KEY, or a run's")
        page = Path(f"{name}.html")
        part.add_argument("--output", type=Path, default=page, metavar="PAGE", help=f"default: {page}")
