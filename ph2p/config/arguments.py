"""The command line of a run: words (`key=value`) and a few options."""

import argparse
from collections.abc import Sequence
from dataclasses import dataclass
from typing import NoReturn

from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException

from ph2p.config.compose import compose_config, load_config
from ph2p.config.help import help_text
from ph2p.config.schema import Config
from ph2p.config.sweep import jobs
from ph2p.errors import UserError


@dataclass(frozen=True)
class Arguments:
    """What a command line asks for: to `show` something ("help", "version", "cfg"), or to run its `words`."""

    words: list[str]
    show: str | None = None
    sweep: bool = False  # the words give several values for some keys, and each combination is a run
    resolve: bool = False  # show interpolations as what they are

    def runs(self) -> list[list[str]]:
        """The words of each run, for `load_one`; raises UserError for a key that nobody reads."""
        return jobs(self.words) if self.sweep else [self.words]

    def load_one(self, words: Sequence[str]) -> Config:
        """The configuration of one run; raises UserError."""
        config = load_config(words)
        if self.sweep and config.trainer.get("devices") not in (1, "1"):
            # Each rank that Lightning starts would run the whole sweep again.
            raise UserError(f"trainer.devices={config.trainer['devices']}: a sweep (-m) takes one device a run; give 1")
        return config

    def shown(self) -> str:
        """The text for `show`, but the version."""
        if self.show == "help":
            return help_text(self.words)
        cfg = compose_config(self.words)
        try:
            return OmegaConf.to_yaml(cfg, resolve=self.resolve).rstrip()
        except OmegaConfBaseException as error:
            raise UserError(" ".join(str(error).split())) from error


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        raise UserError(f"{message}; --help lists options and keys")


def read_arguments(argv: Sequence[str]) -> Arguments:
    """Take a command line apart; raises UserError for an option that there is not."""
    parser = _Parser(add_help=False, allow_abbrev=False)
    parser.add_argument("-h", "--help", dest="show", action="store_const", const="help")
    parser.add_argument("--version", dest="show", action="store_const", const="version")
    parser.add_argument("-c", "--cfg", choices=["job"])
    parser.add_argument("--resolve", action="store_true")
    parser.add_argument("-m", "--multirun", action="store_true")
    parser.add_argument("words", nargs="*")
    found = parser.parse_intermixed_args(list(argv))
    return Arguments(found.words, found.show or (found.cfg and "cfg"), found.multirun, found.resolve)
