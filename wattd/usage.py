"""Command lines whose mistakes are one line."""

import argparse
from typing import NoReturn

from wattd.values import UserError


class Parser(argparse.ArgumentParser):
    """An argument parser that says what is wrong in one line, and where the examples are."""

    def error(self, message: str) -> NoReturn:
        """Refuse the command line.

        Raises:
            UserError: Always.
        """
        raise UserError(f"{message}; `{self.prog} --help` has examples", 2)
