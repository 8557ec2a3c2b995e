r"""`magtiles-seg VERB`: thin wrappers over the library.

Answers go to stdout, progress and errors to stderr. Names that the terminal cannot print are
escaped (`\udcfc`), and so are bytes of names that are no UTF-8, in every file that is written.

| exit code | |
|---|---|
| 0 | every picture accepted |
| 1 | some rejected, to be reviewed, or (`data check`) a leak |
| 2 | an error: stderr says what to do |
| 70 | an internal error, a bug of this program: never 1 |
| 130 | interrupted |
"""

from __future__ import annotations

import argparse
import os
import sys
import traceback
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path

import magtiles_seg
from magtiles_seg import errors
from magtiles_seg.commands import VERBS
from magtiles_seg.commands.options import ACCEPTED, ERROR, INTERNAL, INTERRUPTED, as_epilog
from magtiles_seg.commands.parser import Parser
from magtiles_seg.names import is_address
from magtiles_seg.progress import complain, note, prepare_streams

_EXAMPLES = """
  magtiles-seg segment tile.png                 what is wrong with this tile?
  magtiles-seg segment shots/ --out masks/      a folder; masks and overlays written
  magtiles-seg data load                        fetch the public data set into data/
  magtiles-seg data split && magtiles-seg train
  magtiles-seg VERB --help                      more examples

  Exit code: 0 all accepted, 1 some rejected, 2 an error, 70 an internal error (a bug; please
  report it), 130 interrupted.
"""


def main(argv: Sequence[str] | None = None) -> int:
    """Run one verb and return the exit code.

    Args:
        argv: Arguments without the program's name; None takes those of the process.
    """
    prepare_streams()
    code = _guarded(argv)
    try:
        sys.stderr.flush()
    except OSError:  # its disk is full: no reason to leave with another code
        _silence()
    return code


def _guarded(argv: Sequence[str] | None) -> int:
    """Run one verb and return the exit code, whatever happens."""
    try:
        with _plain_warnings():
            return _run(argv)
    except BrokenPipeError:  # the reader, `head` perhaps, has seen enough
        _silence()
        return ERROR
    except OSError as error:  # stdout goes to a full disk
        complain(error)
        _silence()
        return ERROR
    except Exception as error:  # a bug: never to be taken for "some rejected"
        _report(error)
        return INTERNAL


@contextmanager
def _plain_warnings() -> Iterator[None]:
    """Print a warning as every other remark: its words alone, without a line of our code."""
    former = warnings.formatwarning
    warnings.formatwarning = lambda message, *_, **__: f"magtiles-seg: {message}\n"
    try:
        yield
    finally:
        warnings.formatwarning = former


def _run(argv: Sequence[str] | None) -> int:
    try:
        arguments = build_parser().parse_args(argv)
        _refuse_addresses(arguments)
        return _run_verb(arguments)
    except KeyboardInterrupt as error:
        for line in getattr(error, "__notes__", ()):
            note(line)
        return INTERRUPTED
    except BrokenPipeError:
        raise
    except (errors.MagtilesError, OSError) as error:
        complain(error)
        return ERROR
    except ImportError as error:
        if (error.name or "").startswith("magtiles_seg"):
            raise
        note(f"a package cannot be loaded: {error}; install it, or the library that it names")
        return ERROR
    except MemoryError:
        note("memory ran out; use fewer workers or threads, or smaller pictures")
        return ERROR
    finally:
        sys.stdout.flush()


def _refuse_addresses(arguments: argparse.Namespace) -> None:
    """Refuse `s3://…` where a path is wanted: results would go to a local folder called `s3:`."""
    for name, value in vars(arguments).items():
        for path in value if isinstance(value, list) else [value]:
            if isinstance(path, Path) and is_address(path):
                raise errors.ConfigError(
                    f"{name.replace('_', '-')} is {str(path).replace(':/', '://', 1)}, an address; "
                    "expected a path on this machine: copy to and from a store beside it"
                )


def _run_verb(arguments: argparse.Namespace) -> int:
    run: Callable[[argparse.Namespace], int] = arguments.run
    try:
        return run(arguments)
    except SystemExit as left:  # a library may leave with 1, which means "some rejected" here
        return ERROR if left.code else ACCEPTED


def _silence() -> None:
    """Send what is still to be written nowhere, so that the interpreter's end is quiet, too."""
    nowhere = os.open(os.devnull, os.O_WRONLY)
    for stream in (sys.stdout, sys.stderr):
        with suppress(AttributeError, OSError, ValueError):  # none, or a stand-in without a file
            stream.flush()
    for stream in (sys.stdout, sys.stderr):
        with suppress(AttributeError, OSError, ValueError):
            os.dup2(nowhere, stream.fileno())


def _report(error: Exception) -> None:
    """Say that this is a bug, and what to send with a report."""
    if os.environ.get("MAGTILES_DEBUG"):
        note("".join(traceback.format_exception(error)).rstrip())
    place = traceback.extract_tb(error.__traceback__)[-1]
    note(
        f"internal error, a bug of magtiles-seg {magtiles_seg.__version__}: "
        f"{type(error).__name__}: {error} (in {place.name}, {Path(place.filename).name}:"
        f"{place.lineno})\n  please report it with the command and what it prints when "
        "MAGTILES_DEBUG=1 is set"
    )


def build_parser() -> Parser:
    """Return the parser; the function of a parsed verb stands in `.run`."""
    parser = Parser(
        prog="magtiles-seg",
        description="Find surface defects of magnetic tiles.",
        epilog=as_epilog(_EXAMPLES),
    )
    version = f"%(prog)s {magtiles_seg.__version__}"
    parser.add_argument("--version", action="version", version=version)
    verbs = parser.add_verbs()
    for module in VERBS:
        module.add(verbs)
    return parser
