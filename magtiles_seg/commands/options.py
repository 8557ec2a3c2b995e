"""What the verbs share: options, exit codes, and how their words become parameters and models."""

from __future__ import annotations

import argparse
import os
import stat
from contextlib import contextmanager
from importlib import import_module
from inspect import cleandoc
from pathlib import Path
from textwrap import indent
from typing import TYPE_CHECKING, Any

from magtiles_seg import errors
from magtiles_seg.inputs import expand_home
from magtiles_seg.signals import handled

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from types import FrameType

    from magtiles_seg.commands.parser import Parser
    from magtiles_seg.config import Params
    from magtiles_seg.review.settings import ReviewSettings

    Verbs = argparse._SubParsersAction[Parser]

ACCEPTED, REJECTED, ERROR, INTERNAL, INTERRUPTED = 0, 1, 2, 70, 130

_MOST_PORT = 65535

_SEGMENTER_OPTIONS = ("device", "backend", "mm_per_px", "threads", "screen", "rebuild")
"""Options of the verbs that are arguments of `Segmenter` by the same name, beside `OVERRIDES`."""

DECISION: tuple[tuple[str, type, str], ...] = (
    ("threshold", float, "a pixel of at least this probability is defect"),
    ("min-area-px", int, "smaller connected regions are dropped"),
    ("reject-score", float, "a picture of at least this score is rejected"),
    ("review-score", float, "from this score on a picture wants review"),
    ("mm-per-px", float, "scale of the pictures, for sizes in mm"),
)
"""Options of the verbs that judge pictures: name, type and help of each."""


def add_verb(
    verbs: Verbs,
    name: str,
    purpose: str,
    run: Callable[[argparse.Namespace], int],
    *,
    examples: str,
) -> argparse.ArgumentParser:
    """Add a verb and return its parser.

    Args:
        verbs: What it is added to.
        name: The word on the command line.
        purpose: What the verb does; starts with a small letter.
        run: Does it and returns the exit code.
        examples: Ends its help.
    """
    verb = verbs.add_parser(
        name,
        help=purpose,
        description=f"{purpose[0].upper()}{purpose[1:]}.",
        epilog=as_epilog(examples),
    )
    verb.set_defaults(run=run)
    return verb


def folder(word: str) -> Path:
    """Return the folder that an option names; `~` is the home folder.

    Raises:
        argparse.ArgumentTypeError: The word is empty, which would mean the working directory.
    """
    if not word.strip():
        raise argparse.ArgumentTypeError("is empty; expected a folder; '.' is this one")
    return Path(expand_home(word))


def port(word: str) -> int:
    """Return the port that an option names.

    Raises:
        argparse.ArgumentTypeError: It is none; 0 lets the system choose one.
    """
    if not word.isdecimal() or len(word) > 5 or int(word) > _MOST_PORT:
        raise argparse.ArgumentTypeError(f"expected a port from 0 to {_MOST_PORT}, got {word!r}")
    return int(word)


def check_output(out: Path, *, instead: str = "name another --out") -> None:
    """Check that an output folder can be written, before any work is done for it.

    It is not made: what finds another mistake leaves no empty folder behind.

    Args:
        out: The folder.
        instead: What to do where it cannot be made or written to.

    Raises:
        ConfigError: Something that is no folder is in the way, or it cannot be written to.
    """
    place = next(path for path in (out, *out.absolute().parents) if os.path.lexists(path))
    try:
        if not stat.S_ISDIR(place.stat().st_mode):
            raise errors.ConfigError(
                f"{out} cannot be the output folder: {place} is no folder; {instead}"
            )
        out.stat()
    except FileNotFoundError as error:
        if place.is_symlink():
            raise errors.ConfigError(
                f"{out} cannot be the output folder: {place} is a broken link; {instead}"
            ) from error
    except OSError as error:
        raise errors.ConfigError(f"{out} cannot be made: {error.strerror}; {instead}") from error
    if not os.access(place, os.W_OK | os.X_OK):
        raise errors.ConfigError(
            f"{out} cannot be written to; change the permissions of {place}, or {instead}"
        )


def check_output_file(out: Path, suffix: str = "", *, option: str = "--out") -> None:
    """Check that a file can be written, before any work is done for it.

    Args:
        out: The file.
        suffix: What its name must end in.
        option: The word of the command line that names it.

    Raises:
        ConfigError: Its name does not end so, a folder is in the way, or its folder cannot be
            written to.
    """
    if suffix and out.suffix.lower() != suffix:
        raise errors.ConfigError(f"{option} {out}: expected a name that ends in {suffix}")
    if out.is_dir():
        raise errors.ConfigError(f"{out} is a folder; expected the name of a file as {option}")
    check_output(out.parent, instead=f"name another {option}")


def as_epilog(examples: str) -> str:
    """Return the end of a help page."""
    return f"examples:\n{indent(cleandoc(examples), '  ')}"


def bundled_names() -> str:
    """Return the names of the models that this installation carries, the default first."""
    from magtiles_seg.model.bundled import BUNDLED_MODELS

    return ", ".join(BUNDLED_MODELS).replace("lite0", "lite0 (default)")


def add_model(verb: argparse.ArgumentParser) -> None:
    """Add `--model`."""
    verb.add_argument(
        "--model",
        type=Path,
        metavar="FILE",
        help=f"a model file, or a bundled model: {bundled_names()}",
    )


def add_device(verb: argparse.ArgumentParser) -> None:
    """Add `--device`, `--backend` and `--rebuild`."""
    verb.add_argument("--device", help="cpu, cuda, cuda:N or tensorrt (default: as selected, cpu)")
    verb.add_argument(
        "--backend", help="onnxruntime, openvino or eager (default: as selected, or by the suffix)"
    )
    verb.add_argument(
        "--rebuild",
        action="store_true",
        default=None,
        help="an engine that does not fit this machine: build it again from its ONNX file",
    )


def add_screen(verb: argparse.ArgumentParser) -> None:
    """Add `--screen`."""
    verb.add_argument(
        "--screen",
        type=Path,
        metavar="FILE",
        help="look only where this file of `magtiles-seg screen` says so; on a CPU",
    )


def add_params(verb: argparse.ArgumentParser) -> None:
    """Add `--params` and `--set`, which `read_params` reads."""
    verb.add_argument("--params", type=Path, metavar="FILE", help="default: params.yaml if there")
    verb.add_argument(
        "--set",
        action="append",
        default=[],
        metavar="SECTION.KEY=VALUE",
        help="override a parameter for this run; may be repeated",
    )


def add_tiles(verb: argparse.ArgumentParser, *, data: str, split: str) -> None:
    """Add `--data DIR` or `--split FILE`, the tiles that models are compared on, and their help."""
    tiles = verb.add_mutually_exclusive_group()
    tiles.add_argument("--data", type=Path, metavar="DIR", help=data)
    tiles.add_argument("--split", type=Path, metavar="FILE", help=split)


def add_train_device(verb: argparse.ArgumentParser) -> None:
    """Add `--device`, a short word for `--set train.device=…`, which `read_params` reads."""
    verb.add_argument(
        "--device",
        dest="set",
        type="train.device={}".format,
        action="append",
        metavar="DEVICE",
        help="auto, cpu or cuda (train.device)",
    )


def add_group_by(verb: argparse._ActionsContainer, purpose: str) -> None:
    """Add `--group-by`, which `magtiles_seg.dataset.grouping.group_pictures` reads."""
    verb.add_argument(
        "--group-by",
        metavar="WHAT",
        help=f"{purpose}: a groups.csv, or a pattern whose group names the tile, such as "
        r"'(\w+)_light\d'",
    )


def add_review(verb: argparse.ArgumentParser) -> None:
    """Add `--review-dir` and what belongs to it, which `read_review` reads."""
    verb.add_argument(
        "--review-dir",
        type=folder,
        metavar="DIR",
        help="keep here what a person should look at (MAGTILES_REVIEW_DIR; default: nothing)",
    )
    for name, kind, metavar, text in (
        ("reasons", str, "WORDS", "of review, drift and random (default: all)"),
        ("share", float, "X", "share that is kept at random (default: 0.001)"),
        ("pictures", int, "N", "most pictures that are kept (default: 1000)"),
        ("mb", float, "X", "most MB that are kept (default: 1000)"),
    ):
        verb.add_argument(f"--review-{name}", type=kind, metavar=metavar, help=text)


def read_review(arguments: argparse.Namespace) -> ReviewSettings | None:
    """Return what is kept for review; None: nobody asked for it.

    Raises:
        ConfigError: A value is invalid, or there is one without a folder.
    """
    from magtiles_seg.review.settings import ReviewSettings, reasons_of

    named = os.environ.get("MAGTILES_REVIEW_DIR", "")
    directory = arguments.review_dir or (folder(named) if named.strip() else None)
    reasons = arguments.review_reasons
    given = {
        "reasons": None if reasons is None else reasons_of(reasons),
        "share": arguments.review_share,
        "most_pictures": arguments.review_pictures,
        "most_mb": arguments.review_mb,
    }
    values: dict[str, Any] = {name: value for name, value in given.items() if value is not None}
    if directory is None:
        if values:
            raise errors.ConfigError("--review-… needs a folder to keep pictures in: --review-dir")
        return None
    return ReviewSettings(directory=directory.absolute(), **values)


def tell_review(review: ReviewSettings) -> None:
    """Print how many pictures the folder holds for a person to look at."""
    kept = len(review.folder().entries())
    print(f"{review.directory}: {kept:,} picture{' waits' if kept == 1 else 's wait'} for review")


def add_manifest(verb: argparse.ArgumentParser, option: str, text: str) -> None:
    """Add an option that names a split manifest."""
    path = Path("data/split.json")
    verb.add_argument(
        option, type=Path, default=path, metavar="FILE", help=f"{text} (default: {path})"
    )


def read_params(arguments: argparse.Namespace) -> Params:
    """Read the named parameter file, or `params.yaml` where there is one, or the defaults."""
    from magtiles_seg.config import load_params

    path = arguments.params
    if path is None:
        path = Path("params.yaml") if Path("params.yaml").exists() else None
    return load_params(path, arguments.set)


def open_segmenter(arguments: argparse.Namespace, **more: Any) -> Any:  # noqa: ANN401  (loaded only when used)
    """Return the `Segmenter` that the verb's options, and what else is given, describe."""
    from magtiles_seg.infer.segmenter import Segmenter

    return Segmenter(arguments.model, **segmenter_options(arguments), **more)


def segmenter_options(arguments: argparse.Namespace) -> dict[str, Any]:
    """Return the arguments of `Segmenter` that the verb's options name, beside its model."""
    from magtiles_seg.decision import OVERRIDES

    names = (*OVERRIDES, *_SEGMENTER_OPTIONS)
    given = {name: getattr(arguments, name, None) for name in names}
    options: dict[str, Any] = {name: value for name, value in given.items() if value is not None}
    if options.pop("rebuild", None):
        options["rebuild"] = import_extra("magtiles_seg.export.rebuild", "export").rebuild_engine
    return options


@contextmanager
def interrupted_once() -> Iterator[None]:
    """Let SIGTERM act as Ctrl+C, and neither of them disturb what is done on the way out.

    A CI job that is cancelled or runs out of time gets both, some seconds apart.
    """
    begun = False

    def interrupt(_number: int, _frame: FrameType | None) -> None:
        nonlocal begun
        if not begun:
            begun = True
            raise KeyboardInterrupt

    with handled(interrupt):
        yield


def import_extra(module: str, extra: str) -> Any:  # noqa: ANN401  (a module)
    """Import a module of an optional part, or name the command that installs what it needs."""
    try:
        return import_module(module)
    except ModuleNotFoundError as error:
        raise errors.BackendUnavailableError(
            f"this verb needs {error.name}, which is not installed: "
            f"pip install 'magtiles-seg[{extra}]'"
        ) from error
    except errors.MagtilesError:
        raise
    except Exception as error:  # packages with native parts raise errors of many types
        raise errors.BackendUnavailableError(
            f"what this verb needs cannot be loaded ({type(error).__name__}: {error}): check the "
            f"libraries that it names, or install it anew: pip install 'magtiles-seg[{extra}]'"
        ) from error
