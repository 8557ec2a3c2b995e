"""`magtiles-seg report`: what an experiment changed, as Markdown for its pull request."""

from __future__ import annotations

import argparse
import os
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from magtiles_seg import errors
from magtiles_seg.commands import options

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from magtiles_seg.delivery.report import ShowPicture

_EXAMPLES = """
  magtiles-seg report --base origin/dev         runs/report/report.md and its pictures
  magtiles-seg report --base origin/dev --post  and put it on the pull request
  magtiles-seg report --base dev --head exp-x   without the models: no pictures

  It shows what was committed; `magtiles-seg gate` computes it again, and decides.
"""


def add(verbs: options.Verbs) -> None:
    """Add the verb."""
    verb = options.add_verb(
        verbs, "report", "write what an experiment changed", run, examples=_EXAMPLES
    )
    verb.add_argument(
        "--base", default="origin/main", metavar="REV", help="compare with (default: origin/main)"
    )
    verb.add_argument("--head", metavar="REV", help="default: the working directory")
    verb.add_argument(
        "--out",
        type=options.folder,
        default=Path("runs/report"),
        metavar="DIR",
        help="where to write it (default: runs/report)",
    )
    verb.add_argument("--post", action="store_true", help="comment by cml, or by the API")
    options.add_model(verb)
    options.add_params(verb)
    verb.add_argument(
        "--split",
        type=Path,
        default=Path("runs/split.json"),
        metavar="FILE",
        help="the manifest (default: runs/split.json)",
    )
    verb.set_defaults(model=Path("runs/model.onnx"))


def run(arguments: argparse.Namespace) -> int:
    """Write the report, and post it where asked."""
    from magtiles_seg.delivery.post import post
    from magtiles_seg.delivery.report import Report
    from magtiles_seg.delivery.revisions import Revision

    options.check_output(arguments.out)
    root = Path.cwd()
    base, here = Revision(root, arguments.base), Revision(root, arguments.head)
    report = Report(base, here)
    with _triptychs(arguments) as (show, note):
        path = report.write(arguments.out, show=show, note=note)
    print(f"{path}: {report.decision.reason}")
    if arguments.post:
        print(post(path, os.environ))
    return options.ACCEPTED


@contextmanager
def _triptychs(arguments: argparse.Namespace) -> Iterator[tuple[ShowPicture | None, str]]:
    """Give the function that shows a test picture, or None and why there is none."""
    from magtiles_seg import pipeline
    from magtiles_seg.dataset.samples import load_target
    from magtiles_seg.evaluate.plots.gallery import triptych

    if arguments.head is not None:
        yield None, "No pictures: this compares two revisions, without their models."
        return
    with ExitStack() as stack:
        try:
            parts = pipeline.split_parts(arguments.split, options.read_params(arguments))
            segmenter = stack.enter_context(options.open_segmenter(arguments))
        except (FileNotFoundError, errors.DataError) as error:
            yield None, f"No pictures: {error}."
            return
        samples = {sample.id: sample for part in parts.values() for sample in part}

        def show(picture: str) -> NDArray[np.uint8]:
            target = load_target(samples[picture], labels=segmenter.spec.card.labels)
            return triptych(segmenter(samples[picture].image_path), target)

        yield show, ""
