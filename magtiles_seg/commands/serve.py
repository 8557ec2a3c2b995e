"""`magtiles-seg serve`: the web service."""

from __future__ import annotations

import argparse
from collections.abc import Callable
from dataclasses import Field, fields
from typing import Any

from magtiles_seg.commands import options
from magtiles_seg.progress import print_above
from magtiles_seg.serve.settings import PREFIX, SECRET, Settings, described, parse

_EXAMPLES = """
  magtiles-seg serve
  curl -F 'image=@tile.jpg' http://127.0.0.1:8000/analyze
  magtiles-seg serve --host 0.0.0.0 --port 80 --max-files 8
  MAGTILES_PORT=8080 magtiles-seg serve
  magtiles-seg serve --new-key line-1           make an API key

  Every option is a setting of the environment, too: --max-files is MAGTILES_MAX_FILES, and
  MAGTILES_PORT may also be PORT. MAGTILES_SHADOW_API_KEY, a secret, is there alone.
"""


def add(verbs: options.Verbs) -> None:
    """Add the verb; each setting is an option, but for the secret: others can list those."""
    verb = options.add_verb(verbs, "serve", "run the web service", run, examples=_EXAMPLES)
    about = described(Settings)
    for entry in _offered():
        sentence = about.get(entry.name, "").replace("%", "%%").replace("None: ", "by default ")
        verb.add_argument(
            f"--{entry.name.replace('_', '-')}",
            type=_reader(str(entry.type)),
            metavar="X",
            help=f"{sentence} {_default(entry.default)}".strip(),
        )
    verb.add_argument("--new-key", metavar="NAME", help="make an API key, print it, and end")


def run(arguments: argparse.Namespace) -> int:
    """Serve until told to stop."""
    if arguments.new_key is not None:
        from magtiles_seg.serve.auth import new_key

        key, entry = new_key(arguments.new_key)
        print(f"key, for the client; it is shown only now: {key}")
        print(f"entry of {PREFIX}API_KEYS, for the service: {entry}")
        return options.ACCEPTED
    flags = {entry.name: getattr(arguments, entry.name) for entry in _offered()}
    settings = Settings.read(flags=flags)
    options.import_extra("magtiles_seg.serve.app", "serve")
    running = options.import_extra("magtiles_seg.serve.running", "serve")
    running.run(settings, tell=print_above)
    return options.ACCEPTED


def _offered() -> list[Field[Any]]:
    return [entry for entry in fields(Settings) if entry.name != SECRET]


def _default(value: object) -> str:
    return "" if value is None else f"(default: {value})"


def _reader(kind: str) -> Callable[[str], Any]:
    def read(text: str) -> Any:  # noqa: ANN401  (the setting's own type)
        try:
            return parse(text, kind)
        except ValueError as error:
            raise argparse.ArgumentTypeError(str(error)) from None

    return read
