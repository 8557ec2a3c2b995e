"""`magtiles-seg segment`: pictures, folders or globs."""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import TYPE_CHECKING

from magtiles_seg import errors, inputs
from magtiles_seg.commands import options
from magtiles_seg.names import as_line, as_text, without_secrets
from magtiles_seg.progress import bar, complain, note, print_above

if TYPE_CHECKING:
    from magtiles_seg.result import Segmentation

_EXAMPLES = """
  magtiles-seg segment tile.png
  magtiles-seg segment shots/ 'more/*.jpg' --out masks/
  magtiles-seg segment tile.png --json | jq .verdict
  magtiles-seg segment tile.png --threshold 0.3 --mm-per-px 0.05

  A name that begins with a dash: magtiles-seg segment -- -1.png. Hidden files and results of
  earlier runs in a folder are left out, with a line on stderr.

  Exit code: 0 all accepted, 1 some rejected or to be reviewed, 2 an error, 70 a bug.
"""


def add(verbs: options.Verbs) -> None:
    """Add the verb."""
    verb = options.add_verb(
        verbs, "segment", "segment pictures, folders or globs", run, examples=_EXAMPLES
    )
    verb.add_argument("paths", nargs="+", metavar="PATH", help="picture, folder or quoted glob")
    verb.add_argument(
        "--out",
        type=options.folder,
        metavar="DIR",
        help="write mask, overlay and JSON here",
    )
    verb.add_argument("--json", action="store_true", help="print one line of JSON per picture")
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
    survey = inputs.Survey()
    pictures = inputs.find_pictures(arguments.paths, survey)
    targets = _targets(pictures, arguments.out)
    for line in (*survey.lines(), *survey.problems()):
        note(line)
    code = options.ERROR if survey.unlisted else options.ACCEPTED
    with options.open_segmenter(arguments) as segmenter, bar("segment", "picture") as progress:
        for done, path in enumerate(pictures, start=1):
            try:
                result = segmenter(path)
            except (errors.ImageError, OSError) as error:
                _complain(error, path, targets, in_json=arguments.json)
                code = options.ERROR
                continue
            if targets:
                result.save(*targets[path])
            print_above(result.to_json() if arguments.json else _describe(result))
            if result.verdict != "accept":
                code = max(code, options.REJECTED)
            progress(done, len(pictures))
    _tell_stale(targets)
    return code


def _targets(pictures: dict[Path, Path], out: Path | None) -> dict[Path, tuple[Path, str]]:
    """Return folder and stem for each picture's results, all of them free to be written."""
    if out is None:
        return {}
    from magtiles_seg.writing import check_free

    targets = {
        picture: (out / folder, stem)
        for picture, (folder, stem) in inputs.output_names(pictures).items()
    }
    for target in targets.values():
        check_free(*target)
    options.check_output(out)
    return targets


def _complain(
    error: Exception, path: Path, targets: dict[Path, tuple[Path, str]], *, in_json: bool
) -> None:
    """Say that a picture failed; an older result of it must not pass for its answer."""
    complain(error)
    if in_json:
        said = {"source": as_text(str(path)), "error": as_text(without_secrets(str(error)))}
        print_above(json.dumps(said))
    if targets:
        from magtiles_seg.writing import discard_result

        discard_result(*targets[path])


def _tell_stale(targets: dict[Path, tuple[Path, str]]) -> None:
    """Say where results of pictures that are gone lie among those of this run."""
    if not targets:
        return
    from magtiles_seg.writing import stale_results

    written = {folder / f"{stem}_result.json" for folder, stem in targets.values()}
    folders = {path.parent for path in written}
    stale = [path for folder in folders for path in stale_results(folder, written)]
    if stale:
        note(
            f"{len(stale)} older results are of pictures that are gone, such as {min(stale)}; "
            "delete them if they are not wanted"
        )


def _describe(result: Segmentation) -> str:
    count = len(result.defects)
    name = as_line(str(result.source))
    lines = [f"{name}: {result.verdict}, score {result.score:.3f}, {count} defects"]
    for defect in result.defects:
        size = f"{defect.area_px} px, {defect.length_px:.0f} x {defect.width_px:.0f} px"
        if defect.length_mm is not None and defect.width_mm is not None:
            size += f" ({defect.length_mm:.2f} x {defect.width_mm:.2f} mm)"
        x, y = defect.centroid_xy_px
        lines.append(f"  {defect.label} {defect.score:.2f} at ({x:.0f}, {y:.0f}): {size}")
    return "\n".join(lines).replace(", 1 defects", ", 1 defect")
