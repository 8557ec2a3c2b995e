"""`magtiles-seg gate`: whether an experiment is merged without a person."""

from __future__ import annotations

import argparse
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING

from magtiles_seg.commands import options
from magtiles_seg.progress import bar

if TYPE_CHECKING:
    from magtiles_seg.config import Params
    from magtiles_seg.delivery.gate import Scored
    from magtiles_seg.delivery.revisions import Revision

_EXAMPLES = """
  magtiles-seg gate --head origin/exp-x         in a checkout of the base, after `dvc repro data_split`

  Both models come from the DVC remote and are scored with the code, data and split of this checkout.

  Exit code: 0 merge; 1 left to a person, or refused; 2 an error.
"""  # noqa: E501 - a line of a terminal


def add(verbs: options.Verbs) -> None:
    """Add the verb."""
    verb = options.add_verb(
        verbs, "gate", "decide whether an experiment is merged", run, examples=_EXAMPLES
    )
    verb.add_argument("--head", required=True, metavar="REV", help="the experiment")
    verb.add_argument(
        "--base", default="HEAD", metavar="REV", help="merge into (default: HEAD, this checkout)"
    )
    options.add_params(verb)
    verb.add_argument(
        "--split",
        type=Path,
        default=Path("runs/split.json"),
        metavar="FILE",
        help="the manifest (default: runs/split.json)",
    )


def run(arguments: argparse.Namespace) -> int:
    """Score both models again, and print the decision."""
    from magtiles_seg import pipeline
    from magtiles_seg.delivery.gate import judge
    from magtiles_seg.delivery.revisions import Revision

    root, params = Path.cwd(), options.read_params(arguments)
    base, head = Revision(root, arguments.base), Revision(root, arguments.head)
    split = pipeline.read_split(arguments.split)
    with tempfile.TemporaryDirectory() as folder:
        verdict = judge(
            base, head, split, lambda state: _rescore(state, params, arguments.split, Path(folder))
        )
    print(verdict)
    return options.ACCEPTED if verdict.merge else options.REJECTED


def _rescore(state: Revision, params: Params, manifest: Path, folder: Path) -> Scored | None:
    """Score the model of a state on the test part of this checkout's split."""
    from magtiles_seg import pipeline
    from magtiles_seg.delivery.gate import Scored
    from magtiles_seg.delivery.revisions import fetch_model
    from magtiles_seg.infer.segmenter import Segmenter

    model = fetch_model(state, folder)
    if model is None:
        return None
    with (
        Segmenter(model, flips=params.evaluate.flips) as segmenter,
        bar("evaluate", "picture") as progress,
    ):
        result = pipeline.evaluate(params, segmenter, manifest=manifest, progress=progress)
        return Scored(result=result, card=segmenter.spec.card)
