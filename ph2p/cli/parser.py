"""The parser of every command."""

import argparse
from typing import NoReturn

from ph2p.errors import UserError


class Parser(argparse.ArgumentParser):
    """An ArgumentParser whose complaints are one line, as all others are."""

    def error(self, message: str) -> NoReturn:
        raise UserError(f"{message} ({self.prog} --help)")
