"""`magtiles-seg loop`: what a line kept for review, out to be labelled, and back to train on."""

from __future__ import annotations

import argparse
from pathlib import Path

from magtiles_seg.commands import options
from magtiles_seg.names import counted
from magtiles_seg.progress import bar, note

_EXAMPLES = """
  magtiles-seg loop export review/ to-label/ --to labelme
  magtiles-seg loop import to-label/
  magtiles-seg data split --out runs/split.json
  magtiles-seg train --split runs/split.json --set train.start=bundled
"""
_EXPORT = """
  magtiles-seg loop export review/ to-label/ --to labelme
  magtiles-seg loop export review/ to-label/ --to label-studio --reasons review,drift --most 50
"""
_IMPORT = r"""
  magtiles-seg loop import to-label/
  magtiles-seg loop import from-cvat/ --from cvat --review to-label/review.json
  magtiles-seg loop import to-label/ --group-by '(\w+)_light\d'

  Exit code: 0 all labels are in, 1 some pictures were refused, 2 an error.
"""


def add(verbs: options.Verbs) -> None:
    """Add the verb."""
    loop = verbs.add_parser(
        "loop",
        help="label what a line kept for review, and train on it",
        epilog=options.as_epilog(_EXAMPLES),
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parts = loop.add_subparsers(metavar="VERB", required=True)
    out = options.add_verb(
        parts, "export", "hand pictures to a labelling tool", run_export, examples=_EXPORT
    )
    out.add_argument("folder", type=options.folder, metavar="DIR", help="the review folder")
    out.add_argument("out", type=options.folder, metavar="OUT", help="a new folder")
    out.add_argument(
        "--to", required=True, metavar="TOOL", help="label-studio, cvat, labelme, coco"
    )
    out.add_argument(
        "--reasons", default="", metavar="WORDS", help="only those, a comma between (default: all)"
    )
    out.add_argument("--most", type=int, metavar="N", help="the N most interesting (default: all)")
    out.add_argument(
        "--clear", action="store_true", help="remove from DIR what OUT holds, once it is there"
    )
    back = options.add_verb(
        parts, "import", "take corrected labels into the data set", run_import, examples=_IMPORT
    )
    back.add_argument("export", type=options.folder, metavar="EXPORT", help="what the tool wrote")
    back.add_argument("--from", dest="tool", metavar="TOOL", help="default: as it was exported for")
    back.add_argument(
        "--review", type=Path, metavar="FILE", help="the export's review.json (default: in EXPORT)"
    )
    options.add_group_by(back, "pictures that show the same part, by their sources")
    options.add_params(back)
    back.add_argument(
        "--split", type=Path, metavar="FILE", help="the manifest (default: drawn by params.yaml)"
    )


def run_export(arguments: argparse.Namespace) -> int:
    """Write the pictures and their drafts."""
    from magtiles_seg.review.folder import ReviewFolder
    from magtiles_seg.review.handoff import export_review
    from magtiles_seg.review.settings import reasons_of

    folder = ReviewFolder(arguments.folder)
    done = export_review(
        folder,
        arguments.out,
        to=arguments.to,
        reasons=reasons_of(arguments.reasons),
        most=arguments.most,
    )
    for line in done.left_out:
        note(line)
    if arguments.clear:
        folder.remove((*done.names, *done.copies))
    print(f"{done.opened_by}: {counted(len(done.names), 'picture')} to label, with a draft each")
    return options.ACCEPTED


def run_import(arguments: argparse.Namespace) -> int:
    """Write the new part, and name what was refused."""
    from magtiles_seg import pipeline

    params = options.read_params(arguments)
    with bar("compare", "picture") as progress:
        done = pipeline.import_reviewed(
            params,
            arguments.export,
            manifest=arguments.split,
            tool=arguments.tool,
            index=arguments.review,
            group_by=arguments.group_by,
            progress=progress,
        )
    for line in done.notes:
        note(line)
    if done.untouched:
        note(
            f"{len(done.untouched)} of {len(done.new)} labels are the model's drafts as they were "
            "exported: nobody has saved them since, and they are trained on as they are"
        )
    for name, why in done.refused.items():
        note(f"{name}: refused: {why}")
    counts = (
        f"{counted(len(done.new), 'picture')} to train on "
        f"({len(done.corrected)} of them corrected), {len(done.unchanged)} as before, "
        f"{len(done.unlabelled)} not labelled, "
        f"{len(done.refused)} refused"
    )
    print(f"{done.folder or 'nothing new'}: {counts}")
    return options.REJECTED if done.refused else options.ACCEPTED
