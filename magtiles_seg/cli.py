"""`magtiles-seg VERB`: thin wrappers over the library.

Answers go to stdout, progress and errors to stderr. Exit code 0: every picture accepted; 1: some
rejected, to be reviewed, or (`data check`) a leak; 2: an error.
"""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Callable, Sequence

import magtiles_seg
from magtiles_seg import errors
from magtiles_seg.commands import VERBS
from magtiles_seg.commands.options import ERROR, INTERRUPTED, as_epilog
from magtiles_seg.progress import complain

_EXAMPLES = """
  magtiles-seg segment tile.png                 what is wrong with this tile?
  magtiles-seg segment shots/ --out masks/      a folder; masks and overlays written
  magtiles-seg data load                        fetch the public data set into data/
  magtiles-seg data split && magtiles-seg train
  magtiles-seg VERB --help                      more examples
"""


def main(argv: Sequence[str] | None = None) -> int:
    """Run one verb and return the exit code.

    Args:
        argv: Arguments without the program's name; None takes those of the process.
    """
    arguments = build_parser().parse_args(argv)
    run: Callable[[argparse.Namespace], int] = arguments.run
    try:
        code = run(arguments)
        sys.stdout.flush()
    except BrokenPipeError:  # the reader, `head` perhaps, has seen enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return ERROR
    except KeyboardInterrupt:
        return INTERRUPTED
    except (errors.MagtilesError, OSError) as error:
        complain(error)
        return ERROR
    return code


def build_parser() -> argparse.ArgumentParser:
    """Return the parser; the function of a parsed verb stands in `.run`."""
    parser = argparse.ArgumentParser(
        prog="magtiles-seg",
        description="Find surface defects of magnetic tiles.",
        epilog=as_epilog(_EXAMPLES),
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    version = f"%(prog)s {magtiles_seg.__version__}"
    parser.add_argument("--version", action="version", version=version)
    verbs = parser.add_subparsers(metavar="VERB", required=True)
    for module in VERBS:
        module.add(verbs)
    return parser
