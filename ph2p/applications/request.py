"""What a command line asks of an application; nothing heavy is loaded for it."""

import argparse
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple, Self

from ph2p.applications.settings import Settings, load_settings, split_words, yaml_file
from ph2p.errors import UserError


class Application(NamedTuple):
    """What `ph2p apply NAME` takes, and what it is for; "..." at the end: all before it may be given several times."""

    takes: tuple[str, ...]
    about: str

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
}


@dataclass(frozen=True)
class Request:
    """An application with what it is given, its settings, the words for the models, and the page to write."""

    name: str
    given: Sequence[str]
    settings: Settings
    words: Sequence[str]
    output: Path

    @classmethod
    def of(cls, arguments: argparse.Namespace) -> Self:
        """The request of parsed arguments; raises UserError for too few or many words and for a wrong setting."""
        name, application = arguments.name, APPLICATIONS[arguments.name]
        if not application.accepts(len(arguments.given)):
            raise UserError(f"ph2p apply {name}: give {' '.join(application.takes)}, texts in quotes")
        if arguments.output.suffix != ".html":
            raise UserError(f"--output {arguments.output}: give a file whose name ends in .html")
        own, words = split_words(arguments.set)
        return cls(name, arguments.given, load_settings(name, own), words, arguments.output)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add a command for each application, whose help lists its keys."""
    parts = parser.add_subparsers(dest="name", required=True, metavar="|".join(APPLICATIONS))
    for name, (takes, about) in APPLICATIONS.items():
        keys = yaml_file(name).read_text(encoding="utf-8").partition("\n")[2]
        part = parts.add_parser(
            name,
            help=about,
            usage=f"ph2p apply {name} {' '.join(takes)} [--set KEY=VALUE] [--output PAGE]",
            description=f"Show {about}.",
            epilog=f"application.KEY, with its default:\n\n{keys}",
            formatter_class=argparse.RawDescriptionHelpFormatter,
        )
        part.add_argument("given", nargs="+", metavar=" ".join(takes), help="texts in quotes")
        part.add_argument("--set", action="append", default=[], metavar="KEY=VALUE", help="application.KEY, or a run's")
        page = Path(f"{name}.html")
        part.add_argument("--output", type=Path, default=page, metavar="PAGE", help=f"default: {page}")
