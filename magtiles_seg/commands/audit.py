"""`magtiles-seg data audit`: labels that a model contradicts, of any data set."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import TYPE_CHECKING, Any

from magtiles_seg.commands import options
from magtiles_seg.errors import ConfigError
from magtiles_seg.files import write, write_json
from magtiles_seg.names import counted
from magtiles_seg.progress import bar, note

if TYPE_CHECKING:
    from magtiles_seg.config import Params
    from magtiles_seg.evaluate.scoring import Watch

_EXAMPLES = """
  magtiles-seg data audit --folds runs/T/f* --out audit
  magtiles-seg data audit --model line.onnx --out audit    a model that did not learn these labels

  Writes audit/index.html, one page with its pictures in it, audit.csv and audit.json; the pictures
  are those of the data set.
"""

_REPEATS = (
    "{model} was trained on these labels and repeats their errors, so that few are listed: take "
    "--folds, or a model of other pictures"
)


def add(verbs: options.Verbs) -> None:
    """Add the verb."""
    verb = options.add_verb(
        verbs, "audit", "list labels that are probably wrong", run, examples=_EXAMPLES
    )
    options.add_params(verb)
    whose = verb.add_mutually_exclusive_group(required=True)
    whose.add_argument("--folds", nargs="+", type=Path, metavar="RUN_DIR", help="as of evaluate")
    whose.add_argument("--model", type=Path, metavar="FILE", help="a model, for all pictures")
    verb.add_argument(
        "--protocol", help="as of evaluate (default: T of the magnetic tiles, else native)"
    )
    verb.add_argument(
        "--out", type=options.folder, required=True, metavar="DIR", help="where to write it"
    )
    verb.add_argument("--top", type=int, default=60, metavar="N", help="pictures (default: 60)")


def run(arguments: argparse.Namespace) -> int:
    """Write the lists and the page."""
    from magtiles_seg import pipeline
    from magtiles_seg.evaluate.labels import audit
    from magtiles_seg.evaluate.plots.gallery import Gallery

    if arguments.top < 1:
        raise ConfigError(f"--top is {arguments.top}; expected 1 or more pictures")
    params = options.read_params(arguments)
    options.check_output(arguments.out)
    gallery, found = Gallery(arguments.top), list[audit.LabelIssue]()

    def watch(sample: Any, result: Any, target: Any) -> None:  # noqa: ANN401 - as Watch
        mine = sorted(audit.label_issues(sample, result, target), key=lambda issue: -issue.rank)
        found.extend(mine)
        if mine:
            gallery.add(mine[0].rank, str(mine[0]), result, target, name=sample.id)

    _answer(arguments, params, watch)
    found.sort(key=lambda issue: (-issue.rank, issue.id))
    lead = "Predictions that contradict the label most: either may be wrong."
    page = gallery.save(arguments.out, title="Label audit", lead=lead, embedded=True)
    write(arguments.out / "audit.csv", audit.to_csv(found))
    samples = pipeline.samples_of(params)
    write_json(arguments.out / "audit.json", audit.to_dict(found, samples))
    pictures = len({issue.id for issue in found})
    what = f"{counted(len(found), 'region')} of {counted(pictures, 'picture')} with a label issue"
    print(f"{page}, audit.csv, audit.json: {what}")
    return options.ACCEPTED


def _answer(arguments: argparse.Namespace, params: Params, watch: Watch) -> None:
    """Show `watch` the answer to every picture: of unseen weights, or of one model."""
    from magtiles_seg import pipeline
    from magtiles_seg.commands import runs
    from magtiles_seg.evaluate.protocols import get_protocol
    from magtiles_seg.evaluate.scoring import score
    from magtiles_seg.export.unseen import is_training_set
    from magtiles_seg.infer.segmenter import Segmenter
    from magtiles_seg.labels import LABELS

    own = tuple(params.data_load.labels) == LABELS
    protocol = arguments.protocol or ("T" if own else "native")
    if arguments.folds:
        runs.out_of_fold(arguments.folds, params, protocol, resamples=0, watch=watch)
        return
    with (
        Segmenter(arguments.model, flips=params.evaluate.flips) as segmenter,
        bar("audit", "picture") as progress,
    ):
        samples = pipeline.samples_of(params)
        if is_training_set(samples, segmenter.backend.spec.card):
            note(_REPEATS.format(model=arguments.model))
        score(
            segmenter,
            samples,
            protocol=get_protocol(protocol),
            labels=params.data_load.labels,
            progress=progress,
            watch=watch,
        )
