"""`magtiles-seg segment`: pictures, folders or globs."""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from magtiles_seg import errors, inputs
from magtiles_seg.commands import options
from magtiles_seg.names import as_line, as_text, counted, without_secrets
from magtiles_seg.progress import bar, complain, note, print_above

if TYPE_CHECKING:
    from magtiles_seg.infer.segmenter import Segmenter
    from magtiles_seg.result import Segmentation
    from magtiles_seg.tile import TileResult

_EXAMPLES = r"""
  magtiles-seg segment tile.png
  magtiles-seg segment shots/ 'more/*.jpg' --out masks/
  magtiles-seg segment tile.png --json | jq .verdict
  magtiles-seg segment tile.png --threshold 0.3 --mm-per-px 0.05
  magtiles-seg segment shots/ --group-by '(\w+)_light\d'    one verdict a tile

  A name that begins with a dash: magtiles-seg segment -- -1.png. Hidden files and results of
  earlier runs in a folder are left out, with a line on stderr.

  With --group-by a tile's verdict is by its pictures' scores together (mean of their log odds).

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
    options.add_group_by(verb, "one verdict for all pictures of a tile")
    options.add_model(verb)
    options.add_device(verb)
    options.add_screen(verb)
    for name, kind, text in (
        *options.DECISION,
        ("threads", int, "CPU threads (default: all cores)"),
    ):
        metavar = "T" if kind is float else "N"
        verb.add_argument(f"--{name}", type=kind, metavar=metavar, help=text)


def run(arguments: argparse.Namespace) -> int:
    """Segment each picture; a damaged one is named, and the others go on."""
    survey = inputs.Survey()
    pictures = inputs.find_pictures(arguments.paths, survey)
    targets = _targets(pictures, arguments.out)
    groups = _groups(pictures, arguments.group_by, targets)
    for line in (*survey.lines(), *survey.problems()):
        note(line)
    code = options.ERROR if survey.unlisted else options.ACCEPTED
    with options.open_segmenter(arguments) as segmenter, bar("segment", "picture") as progress:
        session = _Session(segmenter, targets, arguments.json, len(pictures), progress)
        if arguments.group_by is None:
            codes = map(session.picture, pictures)
        else:
            codes = map(session.tile, groups)
        code = max((code, *codes))
    _tell_stale(targets)
    return code


@dataclass(frozen=True)
class _Group:
    """A tile's name, its pictures, and the folder and stem of its results."""

    name: str
    pictures: tuple[Path, ...]
    target: tuple[Path, str] | None


@dataclass
class _Session:
    """Segments, writes and prints, and counts what is done."""

    segmenter: Segmenter
    targets: dict[Path, tuple[Path, str]]
    in_json: bool
    total: int
    progress: Callable[[int, int], None]
    done: int = 0

    def picture(self, path: Path) -> int:
        """Answer one picture; return the exit code."""
        result = self._segment(path)
        if result is None:
            return options.ERROR
        print_above(result.to_json() if self.in_json else _describe(result))
        return _code(result.verdict)

    def tile(self, group: _Group) -> int:
        """Answer one tile; return the exit code. Where a picture fails it gets no verdict."""
        found = [self._segment(path) for path in group.pictures]
        exposures = tuple(result for result in found if result is not None)
        if len(exposures) < len(found):
            self._complain_of_tile(group, len(found) - len(exposures))
            return options.ERROR
        from magtiles_seg.tile import TileResult

        tile = TileResult(exposures=exposures, name=as_text(group.name))
        if group.target is not None:
            tile.save(*group.target)
        print_above(tile.to_json() if self.in_json else _describe_tile(tile))
        return _code(tile.verdict)

    def _segment(self, path: Path) -> Segmentation | None:
        """Segment a picture and write its results; one that fails is named, and gives None."""
        self.done += 1
        try:
            result = self.segmenter(path)
        except (errors.ImageError, OSError) as error:
            _complain(error, path, self.targets, in_json=self.in_json)
            return None
        if self.targets:
            result.save(*self.targets[path])
        self.progress(self.done, self.total)
        return result

    def _complain_of_tile(self, group: _Group, failed: int) -> None:
        text = (
            f"tile {as_line(group.name)} has no verdict: {failed} of its {len(group.pictures)} "
            "pictures could not be segmented"
        )
        note(text)
        if self.in_json:
            print_above(json.dumps({"name": as_text(group.name), "error": as_text(text)}))
        if group.target is not None:
            from magtiles_seg.writing import discard_result

            discard_result(*group.target, of_tile=True)


def _code(verdict: str) -> int:
    return options.ACCEPTED if verdict == "accept" else options.REJECTED


def _groups(
    pictures: dict[Path, Path], group_by: str | None, targets: dict[Path, tuple[Path, str]]
) -> tuple[_Group, ...]:
    """Return the tiles that pictures show, where their results are free to be written."""
    if group_by is None:
        return ()
    from magtiles_seg.dataset.grouping import group_pictures
    from magtiles_seg.writing import check_free

    groups: list[_Group] = []
    taken: dict[tuple[Path, str], str] = {}
    for found in group_pictures([str(path) for path in pictures], group_by):
        paths = tuple(Path(name) for name in found.pictures)
        target = None
        if targets:
            target = (targets[paths[0]][0], found.name.rpartition("/")[2])
            check_free(*target, of_tile=True)
            other = taken.setdefault(target, found.name)
            if other != found.name:
                raise errors.ConfigError(
                    f"the tiles {other!r} and {found.name!r} would be written to the same files; "
                    "segment each with an --out of its own, or group by another pattern"
                )
        groups.append(_Group(found.name, paths, target))
    return tuple(groups)


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
    lines = [f"{name}: {result.verdict}, score {result.score:.3f}, {counted(count, 'defect')}"]
    for defect in result.defects:
        size = f"{defect.area_px} px, {defect.length_px:.0f} x {defect.width_px:.0f} px"
        if defect.length_mm is not None and defect.width_mm is not None:
            size += f" ({defect.length_mm:.2f} x {defect.width_mm:.2f} mm)"
        x, y = defect.centroid_xy_px
        lines.append(f"  {defect.label} {defect.score:.2f} at ({x:.0f}, {y:.0f}): {size}")
    return "\n".join(lines)


def _describe_tile(tile: TileResult) -> str:
    count = len(tile.exposures)
    pictures = counted(count, "picture") + (" together" if count > 1 else "")
    head = f"tile {as_line(str(tile.name))}: {tile.verdict}, score {tile.score:.3f}, {pictures}"
    lines = [line for exposure in tile.exposures for line in _describe(exposure).splitlines()]
    return "\n".join([head, *(f"  {line}" for line in lines)])
