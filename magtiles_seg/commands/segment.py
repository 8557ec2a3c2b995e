"""`magtiles-seg segment`: pictures, folders or globs."""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import TYPE_CHECKING

from magtiles_seg import errors, inputs
from magtiles_seg.commands import options
from magtiles_seg.progress import bar, complain, print_above

if TYPE_CHECKING:
    from magtiles_seg.result import Segmentation

_EXAMPLES = """
  magtiles-seg segment tile.png
  magtiles-seg segment shots/ 'more/*.jpg' --out masks/
  magtiles-seg segment tile.png --json | jq .verdict
  magtiles-seg segment tile.png --threshold 0.3 --mm-per-px 0.05

  Exit code: 0 all accepted, 1 some rejected or to be reviewed, 2 an error.
"""


def add(verbs: options.Verbs) -> None:
    """Add the verb."""
    verb = options.add_verb(
        verbs, "segment", "segment pictures, folders or globs", run, examples=_EXAMPLES
    )
    verb.add_argument("paths", nargs="+", metavar="PATH", help="picture, folder or quoted glob")
    verb.add_argument("--out", type=Path, metavar="DIR", help="write mask, overlay and JSON here")
    verb.add_argument("--json", action="store_true", help="print one JSON object a picture, a line")
    options.add_model(verb)
    options.add_device(verb)
    for name, kind, text in (
        ("threshold", float, "a pixel of at least this probability is defect"),
        ("min-area-px", int, "smaller connected regions are dropped"),
        ("reject-score", float, "a picture of at least this score is rejected"),
        ("review-score", float, "from this score on a picture wants review"),
        ("mm-per-px", float, "scale of the pictures, for sizes in mm"),
        ("threads", int, "CPU threads (default: all cores)"),
    ):
        metavar = "T" if kind is float else "N"
        verb.add_argument(f"--{name}", type=kind, metavar=metavar, help=text)


def run(arguments: argparse.Namespace) -> int:
    """Segment each picture; a damaged one is named, and the others go on."""
    pictures = inputs.find_pictures(arguments.paths)
    targets = inputs.output_names(pictures) if arguments.out else {}
    code = options.ACCEPTED
    with options.open_segmenter(arguments) as segmenter, bar("segment", "picture") as progress:
        for done, path in enumerate(pictures, start=1):
            try:
                result = segmenter(path)
            except (errors.ImageError, OSError) as error:
                complain(error)
                if arguments.json:
                    print_above(json.dumps({"source": str(path), "error": str(error)}))
                code = options.ERROR
                continue
            if arguments.out:
                folder, stem = targets[path]
                result.save(arguments.out / folder, stem)
            print_above(result.to_json() if arguments.json else _describe(result))
            if result.verdict != "accept":
                code = max(code, options.REJECTED)
            progress(done, len(pictures))
    return code


def _describe(result: Segmentation) -> str:
    count = len(result.defects)
    lines = [f"{result.source}: {result.verdict}, score {result.score:.3f}, {count} defects"]
    for defect in result.defects:
        size = f"{defect.area_px} px, {defect.length_px:.0f} x {defect.width_px:.0f} px"
        if defect.length_mm is not None and defect.width_mm is not None:
            size += f" ({defect.length_mm:.2f} x {defect.width_mm:.2f} mm)"
        x, y = defect.centroid_xy_px
        lines.append(f"  {defect.label} {defect.score:.2f} at ({x:.0f}, {y:.0f}): {size}")
    return "\n".join(lines).replace(", 1 defects", ", 1 defect")
