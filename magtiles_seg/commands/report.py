"""`magtiles-seg report`: what an experiment changed, as Markdown for its pull request."""

from __future__ import annotations

import argparse
import os
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from magtiles_seg import errors
from magtiles_seg.commands import options

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from magtiles_seg.config import Params
    from magtiles_seg.dataset.samples import Sample
    from magtiles_seg.delivery.report import ShowPicture
    from magtiles_seg.infer.segmenter import Segmenter

_COMPARED = 3
"""Pictures on which a model shows whether the committed figures are of it."""

_SAME_SCORE = 0.02
"""Greatest difference of a score on another machine, as `export.max_abs_diff` has it."""

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
    with _triptychs(arguments, report.scores) as (show, note):
        path = report.write(arguments.out, show=show, note=note)
    print(f"{path}: {report.decision.reason}")
    if arguments.post:
        print(post(path, os.environ))
    return options.ACCEPTED


@contextmanager
def _triptychs(
    arguments: argparse.Namespace, scores: Mapping[str, float]
) -> Iterator[tuple[ShowPicture | None, str]]:
    """Give the function that shows a test picture, or None and why there is none."""
    from magtiles_seg import pipeline
    from magtiles_seg.dataset.samples import load_target
    from magtiles_seg.evaluate.plots.gallery import triptych

    if arguments.head is not None:
        yield None, "No pictures: this compares two revisions, without their models."
        return
    with ExitStack() as stack:
        try:
            params = options.read_params(arguments)
            parts = pipeline.split_parts(arguments.split, params)
            opened = options.open_segmenter(arguments, flips=params.evaluate.flips)
            segmenter = stack.enter_context(opened)
        except (FileNotFoundError, errors.DataError) as error:
            yield None, f"No pictures: {error}."
            return
        samples = {sample.id: sample for part in parts.values() for sample in part}
        lack = _lack(arguments, params, samples, scores, segmenter)
        if lack:
            yield None, f"No pictures: {lack}."
            return

        def show(picture: str) -> NDArray[np.uint8]:
            target = load_target(samples[picture], labels=segmenter.spec.card.labels)
            return triptych(segmenter(samples[picture].image_path), target)

        yield show, ""


def _lack(
    arguments: argparse.Namespace,
    params: Params,
    samples: Mapping[str, Sample],
    scores: Mapping[str, float],
    segmenter: Segmenter,
) -> str:
    """Return why split or model are not those of the committed figures; empty: none is known."""
    missing = next((picture for picture in scores if picture not in samples), None)
    if missing is not None:
        return f"{missing} was scored, and {arguments.split} lacks it"
    if params.evaluate.protocol not in ("T", "native"):  # others resize before they score
        return ""
    for picture in list(scores)[:_COMPARED]:
        now, then = segmenter(samples[picture].image_path).score, scores[picture]
        if abs(now - then) > _SAME_SCORE:
            return (
                f"the figures are of another model than {arguments.model}, which gives {picture} "
                f"the score {now:.3f}, not {then:.3f}; evaluate it first"
            )
    return ""
