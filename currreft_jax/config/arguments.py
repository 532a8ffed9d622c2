"""Command lines of programs without a config: argparse, with refusals of one line."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from typing import Any, NoReturn

from currreft_jax.config.names import nearest


class CommandParser(argparse.ArgumentParser):
    """An `argparse.ArgumentParser` that refuses in one line, and names the nearest option for a misspelt one."""

    def parse_known_args(self, args: Sequence[str] | None = None, namespace: Any = None) -> tuple[Any, list[str]]:  # pyright: ignore[reportIncompatibleMethodOverride]
        """Parses a command line; arguments that this parser or a command's does not know are refused."""
        options, unknown = super().parse_known_args(args, namespace)
        if unknown:
            self.error(self._describe_unknown(unknown[0]))
        return options, unknown

    def error(self, message: str) -> NoReturn:
        """Ends the program with one line and code 2."""
        self.exit(2, f"{self.prog.rpartition('.')[2]}: {message}\n")

    def _describe_unknown(self, argument: str) -> str:
        if not argument.startswith("-"):
            return f"{argument!r} is one argument too many; see --help"
        name = argument.partition("=")[0]
        options = {option.lstrip("-"): option for option in self._option_string_actions}
        names = [options[near] for near in nearest(name.lstrip("-"), options)]
        hint = f"nearest: {', '.join(names)}" if names else "see --help"
        return f"there is no option {name}; {hint}"
