"""`magtiles-seg batch`: an archive of any size, into Parquet."""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Callable
from typing import Any

from magtiles_seg.commands import options
from magtiles_seg.names import counted
from magtiles_seg.progress import live, note, remark

_EXAMPLES = r"""
  magtiles-seg batch shots/ --out result/
  magtiles-seg batch 's3://factory/line-3/*.png' --out result/ --masks
  magtiles-seg batch shots/ --out result/ --group-by '(\w+)_light\d'
  magtiles-seg batch inventory.txt --out /shared/result --engine ray --workers 64

  Stopped at any moment and started again with the same words, it does what is missing.
  Read the result with any Parquet reader: pandas.read_parquet("result/parts").

  Exit code: 0 every picture has its row (a damaged one a row with its error), 2 stopped, or none
  of the pictures could be segmented.
"""
_LINE_EVERY_S = 60.0


def add(verbs: options.Verbs) -> None:
    """Add the verb."""
    verb = options.add_verb(
        verbs, "batch", "segment an archive of any size into Parquet", run, examples=_EXAMPLES
    )
    verb.add_argument(
        "source", metavar="SOURCE", help="folder, quoted glob, list file, or URL such as s3://…"
    )
    verb.add_argument(
        "--out",
        type=options.folder,
        required=True,
        metavar="DIR",
        help="result; shared by all workers",
    )
    options.add_group_by(verb, "write tiles.parquet, one verdict for all pictures of a tile")
    verb.add_argument("--masks", action="store_true", help="write each mask as PNG as well")
    verb.add_argument(
        "--engine", choices=("local", "ray"), default="local", help="default: this machine's cores"
    )
    options.add_model(verb)
    options.add_device(verb)
    options.add_screen(verb)
    for name, kind, text in (
        ("workers", int, "processes (default: one a core; one with a GPU)"),
        ("threads", int, "CPU threads of one inference (default: cores / workers)"),
        ("readers", int, "threads of a worker that read ahead (default: 2; 16 from a URL)"),
        ("part-rows", int, "pictures in a part, the unit of work (default: 1000)"),
        ("patience-s", float, "wait out an outage or a full disk for so long (default: 300)"),
        ("gpus", float, "GPUs of one Ray worker, such as 0.5"),
        *options.DECISION,
    ):
        metavar = "X" if kind is float else "N"
        verb.add_argument(f"--{name}", type=kind, metavar=metavar, help=text)
    options.add_review(verb)
    verb.add_argument("--address", help="of a running Ray cluster (default: a local one)")


def run(arguments: argparse.Namespace) -> int:
    """Do the archive, or what is missing of it, and print what it holds."""
    batch = options.import_extra("magtiles_seg.batch", "batch")
    given = vars(arguments)
    options.check_output(arguments.out)
    review = options.read_review(arguments)
    job = batch.Job(
        source=batch.resolve(arguments.source),
        out=arguments.out.absolute(),
        segmenter=_segmenter_options(arguments),
        masks=arguments.masks,
        review=review,
        **_present(given, "part_rows", "patience_s", "readers"),
    )
    engine = batch.Engine(name=arguments.engine, **_present(given, "workers", "gpus", "address"))
    with live() as show:
        outcome = batch.run_batch(job, engine, _Shown(show), group_by=arguments.group_by)
    text = _counted({**outcome.verdicts, "error": outcome.errors})
    print(f"{job.out / 'parts'}: {counted(outcome.pictures, 'picture')}: {text}")
    if arguments.group_by is not None:
        count, text = sum(outcome.tiles.values()), _counted(outcome.tiles)
        print(f"{job.out / 'tiles.parquet'}: {counted(count, 'tile')}: {text}")
    if review is not None:
        options.tell_review(review)
    if outcome.errors == outcome.pictures:
        note(f"no picture could be segmented; the column 'error' of {job.out / 'parts'} says why")
        return options.ERROR
    return options.ACCEPTED


def _counted(counts: dict[str, int]) -> str:
    return ", ".join(f"{count:,} {name}" for name, count in counts.items())


def _segmenter_options(arguments: argparse.Namespace) -> dict[str, Any]:
    from magtiles_seg.model.bundled import portable_model

    found = options.segmenter_options(arguments)
    for name in ("model", "screen"):
        if (path := getattr(arguments, name)) is not None:
            found[name] = portable_model(path)
    return found


def _present(values: dict[str, Any], *names: str) -> dict[str, Any]:
    return {name: values[name] for name in names if values[name] is not None}


class _Shown:
    """Shows progress: one line that changes on a terminal, a line per minute in a log."""

    def __init__(self, show: Callable[[str], None]) -> None:
        self._show = show
        self._first: tuple[float, int] | None = None
        self._last_line_s = time.monotonic()

    def listed(self, pictures: int) -> None:
        self._say(f"{counted(pictures, 'picture')} listed")

    def note(self, text: str) -> None:
        note(text)

    def done(self, pictures: int, total: int, errors: int) -> None:
        now_s = time.monotonic()
        if self._first is None:
            self._first = (now_s, pictures)
        started_s, before = self._first
        self._say(describe(pictures, total, errors, pictures - before, now_s - started_s))

    def _say(self, text: str) -> None:
        if sys.stderr.isatty():
            self._show(text)
        elif time.monotonic() - self._last_line_s >= _LINE_EVERY_S:
            self._last_line_s = time.monotonic()
            remark(text)


def describe(pictures: int, total: int, errors: int, new: int, elapsed_s: float) -> str:
    """Return how far a run is, how fast it goes and how long it will take.

    Args:
        pictures: Done in all.
        total: Of the archive.
        errors: Pictures with an error since the run was started or resumed.
        new: Done since then.
        elapsed_s: Time since then.
    """
    text = f"{pictures:,} of {counted(total, 'picture')}"
    if new > 0 and elapsed_s > 0:
        rate = new / elapsed_s
        minutes, seconds = divmod(round((total - pictures) / rate), 60)
        hours, minutes = divmod(minutes, 60)
        text += f", {rate:.1f} pictures/s, {hours}:{minutes:02d}:{seconds:02d} left"
    return text + (f", {errors:,} with an error" if errors else "")
