"""The parser of the command line: a word that is misspelt gets the nearest one that is known."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from typing import Any, NoReturn

from magtiles_seg.config import nearest

ERROR = 2


class Parser(argparse.ArgumentParser):
    """An `ArgumentParser` that suggests words and, given nothing to do, shows its help."""

    def __init__(self, **options: Any) -> None:  # noqa: ANN401  (those of ArgumentParser)
        """Take what `ArgumentParser` takes."""
        options.setdefault("formatter_class", argparse.RawDescriptionHelpFormatter)
        super().__init__(**options)

    def add_verbs(self) -> argparse._SubParsersAction[Parser]:
        """Return what the verbs are added to; without a verb `run` prints the help.

        The exit code is then that of an error: 0 would say that a picture was accepted.
        """

        def show_help(_: argparse.Namespace) -> int:
            self.print_help(sys.stdout)
            return ERROR

        self.set_defaults(run=show_help)
        return self.add_subparsers(metavar="VERB")

    def parse_known_args(  # type: ignore[override]  # the stub has overloads for other namespaces
        self, args: Sequence[str] | None = None, namespace: argparse.Namespace | None = None
    ) -> tuple[argparse.Namespace, list[str]]:
        """Parse; what is not known is an error of the verb that it was given to."""
        parsed, rest = super().parse_known_args(args, namespace)
        if rest:
            self._refuse(rest)
        return parsed, rest

    def _refuse(self, rest: Sequence[str]) -> NoReturn:
        known = list(self._option_string_actions)
        hints = [nearest(word.split("=")[0], known) for word in rest if word.startswith("--")]
        self.error(f"unrecognized arguments: {' '.join(rest)}{next(filter(None, hints), '')}")

    def _check_value(self, action: argparse.Action, value: object) -> None:
        if action.choices is None or value in action.choices:
            return
        known = [str(choice) for choice in action.choices]
        raise argparse.ArgumentError(
            action, f"{value!r} is none of {', '.join(known)}{nearest(str(value), known)}"
        )
