"""Review pictures out to a labelling tool, and the corrected labels back into the data set."""

from __future__ import annotations

import json
from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from magtiles_seg.dataset import formats
from magtiles_seg.dataset.copies import find_copies
from magtiles_seg.dataset.grouping import group_pictures
from magtiles_seg.dataset.reviewed import Reviewed, latest, read_parts, write_part
from magtiles_seg.dataset.samples import CAPTURE_NAME, Sample
from magtiles_seg.dataset.tiles import group_tiles
from magtiles_seg.decision import count
from magtiles_seg.errors import ConfigError, DataError
from magtiles_seg.files import sha256_of, staged_folder, write_json
from magtiles_seg.labels import IGNORE
from magtiles_seg.names import counted, timestamp
from magtiles_seg.review.folder import REASONS

if TYPE_CHECKING:
    from magtiles_seg.dataset.formats import LabelledPicture
    from magtiles_seg.dataset.splits import Split
    from magtiles_seg.review.folder import ReviewFolder

TOOLS = ("label-studio", "cvat", "labelme", "coco")
INDEX = "review.json"
"""Beside the pictures of an export: the lineage of each, by which labels find their way back."""

_SCHEMA_VERSION = 1
_SHOWN = 20


@dataclass(frozen=True, kw_only=True)
class Exported:
    """What was handed to a labelling tool.

    Attributes:
        opened_by: The file or folder that the tool opens.
        names: Of the pictures.
        copies: Names of those that are the same pictures, kept once more.
        left_out: A line for each that could not be.
    """

    opened_by: Path
    names: tuple[str, ...]
    copies: tuple[str, ...]
    left_out: tuple[str, ...]


def export_review(
    folder: ReviewFolder,
    out: Path,
    *,
    to: str,
    reasons: Sequence[str] = (),
    most: int | None = None,
    tolerance_px: float = 1.0,
) -> Exported:
    """Write what waits for review as a labelling tool reads it, the model's mask as a first draft.

    A picture that was kept twice is written once. Nothing is removed from the review folder.

    Args:
        folder: The review folder.
        out: A folder, which is empty or not there yet.
        to: One of `TOOLS`.
        reasons: Only those; empty: all.
        most: At most so many, the most interesting first; None: all.
        tolerance_px: How far the outline of a draft may stray from the mask's pixels.

    Raises:
        ConfigError: The tool or a reason is unknown, or `most` is below 1.
        DataError: `out` holds something, or there is nothing to export.
        FileNotFoundError: There is no review folder.
    """
    if most is not None:
        count("most", most)
    if unknown := [reason for reason in reasons if reason not in REASONS]:
        raise ConfigError(f"unknown reason {unknown[0]!r}; expected some of {', '.join(REASONS)}")
    if to not in TOOLS:
        raise ConfigError(f"unknown tool {to!r}; expected one of {', '.join(TOOLS)}")
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        what = "is not empty" if out.is_dir() else "is a file"
        raise DataError(f"{out} {what}; expected a new folder, so that no label is lost")
    if not folder.path.is_dir():
        raise FileNotFoundError(f"no review folder {folder.path}; `--review-dir` makes one")
    records, drafts, copies, left_out = _drafts(folder, reasons, most)
    if not drafts:
        said = "".join(f"\n  {line}" for line in left_out)
        raise DataError(f"{folder.path} holds no picture to export{said}")
    labels = tuple(dict.fromkeys(name for one in records.values() for name in one["labels"]))
    more: dict[str, Any] = {"as_predictions": True} if to == "label-studio" else {}
    with staged_folder(out, last=INDEX) as stage:
        opened = formats.FORMATS[to].write(drafts, stage, labels, tolerance_px=tolerance_px, **more)
        index = {
            "schema_version": _SCHEMA_VERSION,
            "tool": to,
            "pictures": records,
            "drafts": _draft_files(stage, opened, records),
        }
        write_json(stage / INDEX, index)
    return Exported(
        opened_by=out / opened.relative_to(stage),
        names=tuple(records),
        copies=tuple(copies),
        left_out=tuple(left_out),
    )


def _drafts(
    folder: ReviewFolder, reasons: Sequence[str], most: int | None
) -> tuple[dict[str, dict[str, Any]], list[LabelledPicture], list[str], list[str]]:
    """Return lineage and draft of each picture, its copies, and a line for each damaged one."""
    records: dict[str, dict[str, Any]] = {}
    drafts: list[LabelledPicture] = []
    copies: list[str] = []
    left_out: list[str] = []
    seen: set[str] = set()
    entries = [entry for entry in folder.entries() if not reasons or entry.reason in reasons]
    for entry in sorted(entries, key=lambda entry: (-entry.interest, entry.name)):
        try:
            record = folder.record(entry.name)
            if record["sha256"] in seen:
                copies.append(entry.name)
            elif len(drafts) != most:
                draft = folder.draft(entry.name, record)
                path = folder.path / f"{entry.name}.png"
                drafts.append(formats.from_target(entry.name, path, draft, record["labels"]))
                records[entry.name] = record
                seen.add(record["sha256"])
        except (DataError, KeyError, IndexError, TypeError) as error:
            if len(drafts) != most:
                left_out.append(str(error))
    return records, drafts, copies, left_out


def _draft_files(out: Path, opened: Path, names: Iterable[str]) -> dict[str, dict[str, str]]:
    """Return, of each picture, the file that holds its draft, and the SHA-256 of that."""
    drafts = {}
    for name in names:
        own = out / f"{name}.json"
        path = own if own.is_file() else opened
        drafts[name] = {"path": path.relative_to(out).as_posix(), "sha256": sha256_of(path)}
    return drafts


@dataclass(frozen=True, kw_only=True)
class Imported:
    """What became of labels.

    Attributes:
        folder: The new part of the data set; None: there was nothing new.
        new: Names of the pictures that came in.
        corrected: Of those, the ones that had another label before.
        unchanged: Names of those that are in the data set by the same label.
        unlabelled: Names of those that nobody has labelled yet.
        refused: By name, why a picture may not be trained on.
        untouched: Names of those new ones whose label is the file of the model's draft as it was
            exported: nobody has saved it since.
        notes: A line for each thing that somebody should know of.
    """

    folder: Path | None
    new: tuple[str, ...] = ()
    corrected: tuple[str, ...] = ()
    unchanged: tuple[str, ...] = ()
    unlabelled: tuple[str, ...] = ()
    refused: Mapping[str, str] = field(default_factory=dict)
    untouched: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()


def import_labels(
    export: Path,
    directory: Path,
    *,
    labels: Sequence[str],
    samples: Sequence[Sample],
    split: Split,
    tool: str | None = None,
    index: Path | None = None,
    group_by: str | None = None,
    progress: Callable[[int, int], None] | None = None,
) -> Imported:
    """Take corrected labels in as a new part of a data set; the same ones again change nothing.

    Pictures are trained on alone. One that shows a part that is validated or tested on is refused,
    with all of its group: a copy of such a picture (turned, mirrored or saved again, too), or,
    where its source has the name of a capture, another exposure of that tile.

    Args:
        export: What the tool wrote: a folder with the pictures of the export.
        directory: `data_load.directory`, which gets the part.
        labels: Class names by index, background first.
        samples: The data set, without reviewed parts.
        split: Of these samples.
        tool: What wrote it; None: that which the pictures were exported for.
        index: The export's review.json; None: in `export`.
        group_by: Which pictures show the same part, by their sources, as of
            `dataset.grouping.group_pictures`; None: those of one web, or of one request.
        progress: Told pictures that were compared with the data set.

    Raises:
        DataError: A label is of an unknown picture or class, or files are damaged; names all.
        ConfigError: `group_by` is invalid.
        OSError: The part cannot be written.
    """
    records, drafts, written_for = _read_index(export, index)
    name_of_tool = tool or written_for
    found = formats.read(name_of_tool, export)
    pictures, problems = found.kept()
    tagged = formats.check_tags(pictures, set(labels[1:]).__contains__)
    _raise(export, [*found.problems, *problems, *tagged, *_unknown(pictures, records, labels)])
    labelled = {one.id: one for one in pictures if one.labelled}
    if not labelled:
        _check_tool(export, name_of_tool)
    groups = _groups({name: records[name] for name in labelled}, group_by)
    joins = _joins(labelled, records, samples, progress)
    refused = _refused(groups, joins, samples, split)
    known = latest(read_parts(directory))
    new, unchanged = list[Reviewed](), list[str]()
    for name, picture in sorted(labelled.items()):
        if name in refused:
            continue
        one = Reviewed(
            name=name,
            image_path=picture.path,
            sha256=records[name]["sha256"],
            target=picture.target(labels),
            group=groups[name],
            joins=joins.get(name),
            lineage=records[name],
        )
        before = known[name].pictures[name] if name in known else {}
        if before.get("mask_sha256") == sha256_of(one.mask_png):
            unchanged.append(name)
        else:
            new.append(one)
    folder = None
    if new:
        origin = {"tool": name_of_tool, "split_sha256": split.sha256, "refused": refused}
        folder = write_part(directory, new, labels, created=timestamp(), origin=origin)
    names = [one.name for one in new]
    return Imported(
        folder=folder,
        new=tuple(names),
        corrected=tuple(name for name in names if name in known),
        unchanged=tuple(unchanged),
        unlabelled=tuple(sorted(records.keys() - labelled.keys())),
        refused=refused,
        untouched=tuple(name for name in names if _is_untouched(export, drafts.get(name, {}))),
        notes=tuple(found.notes.lines()),
    )


def _is_untouched(export: Path, draft: Mapping[str, str]) -> bool:
    path = export / draft.get("path", "")
    return path.is_file() and sha256_of(path) == draft["sha256"]


def _read_index(
    export: Path, index: Path | None
) -> tuple[dict[str, dict[str, Any]], dict[str, dict[str, str]], str]:
    """Return the pictures' lineage and drafts by name, and the tool they were written for."""
    path = export / INDEX if index is None else index
    try:
        content = json.loads(path.read_bytes())
        records, tool = content["pictures"], str(content["tool"])
        for record in records.values():
            _ = (record["sha256"], record["group"], record["source"])
        drafts = content.get("drafts", {})  # not in an export of 0.1
        for draft in drafts.values():
            _ = Path(draft["path"]), draft["sha256"]
    except (FileNotFoundError, NotADirectoryError):
        raise DataError(
            f"{path} is missing: it tells which pictures were exported; expected it as `loop "
            "export` wrote it: name it by --review"
        ) from None
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise DataError(f"{path} is damaged: {error!r:.200}; export again") from error
    return records, drafts, tool


def _check_tool(export: Path, tool: str) -> None:
    """Tell an export that nobody has labelled from one of another tool.

    Raises:
        DataError: The folder holds nothing that the tool wrote.
    """
    seen = formats.detect(export)
    if tool not in seen:
        looks = f"it looks like {' and '.join(seen)}" if seen else "it holds no labels"
        raise DataError(
            f"{export} is no export of {tool}: {looks}; name the tool by --from, or the folder "
            "into which it wrote its labels"
        )


def _unknown(
    pictures: Sequence[LabelledPicture],
    records: Mapping[str, Mapping[str, Any]],
    labels: Sequence[str],
) -> list[str]:
    """Return a line for each label that cannot be taken: of a strange picture, or of no class."""
    problems = []
    for one in pictures:
        record = records.get(one.id)
        if record is None:
            problems.append(f"{one.path}: a label of an unknown picture, {one.id!r}")
        elif sha256_of(one.content()) != record["sha256"]:
            problems.append(f"{one.path}: another picture than the one that was exported")
        names = {region.label for region in one.regions} - {*labels[1:], IGNORE}
        if names:
            problems.append(
                f"{one.path}: class {', '.join(map(repr, sorted(names)))} is none of "
                f"{', '.join(labels[1:])}; a new class is added at the end of data_load.labels"
            )
    return problems


def _raise(export: Path, problems: Sequence[str]) -> None:
    problems = list(dict.fromkeys(problems))
    if problems:
        more = [f"and {len(problems) - _SHOWN} more"] if len(problems) > _SHOWN else []
        lines = "\n  ".join([*problems[:_SHOWN], *more])
        what = counted(len(problems), "problem")
        raise DataError(f"{export}: nothing is imported, {what}:\n  {lines}")


def _groups(records: Mapping[str, Mapping[str, Any]], group_by: str | None) -> dict[str, str]:
    """Return the name of each picture's group."""
    if group_by is None:
        return {name: str(record["group"] or name) for name, record in records.items()}
    by_source: dict[str, list[str]] = defaultdict(list)
    for name, record in records.items():
        by_source[str(record["source"] or name)].append(name)
    grouped = group_pictures(list(by_source), group_by)
    return {
        name: group.name
        for group in grouped
        for source in group.pictures
        for name in by_source[source]
    }


def _joins(
    pictures: Mapping[str, LabelledPicture],
    records: Mapping[str, Mapping[str, Any]],
    samples: Sequence[Sample],
    progress: Callable[[int, int], None] | None,
) -> dict[str, str]:
    """Return, for pictures of a part that the data set shows already, a sample of that part."""
    names = list(pictures)
    paths = [*(sample.image_path for sample in samples), *(pictures[n].path for n in names)]
    same = find_copies(paths, progress=progress)
    first = {number: sample.id for number, sample in zip(same, samples, strict=False)}
    joins = {
        name: first[number]
        for name, number in zip(names, same[len(samples) :], strict=True)
        if number in first
    }
    return {**_same_tiles(records, names, samples), **joins}


def _same_tiles(
    records: Mapping[str, Mapping[str, Any]], names: Sequence[str], samples: Sequence[Sample]
) -> dict[str, str]:
    """Return the samples whose capture numbers are of the same physical tile as a source's."""
    captured = [sample for sample in samples if sample.num is not None]
    stems = {name: Path(str(records[name]["source"] or "")).stem for name in names}
    found = {
        name: int(match["num"])
        for name, stem in stems.items()
        if (match := CAPTURE_NAME.fullmatch(stem))
    }
    if not captured or not found:
        return {}
    nums = [sample.num or 0 for sample in captured]
    tiles = group_tiles([*nums, *found.values()])
    shown = {tile: sample.id for tile, sample in zip(tiles, captured, strict=False)}
    return {
        name: shown[tile]
        for name, tile in zip(found, tiles[len(captured) :], strict=True)
        if tile in shown
    }


def _refused(
    groups: Mapping[str, str], joins: Mapping[str, str], samples: Sequence[Sample], split: Split
) -> dict[str, str]:
    """Return why pictures may not be trained on: they, or others of their group, are held out."""
    part_of = {name: part for part in ("validation", "test") for name in getattr(split, part)}
    group_of = {sample.id: sample.group for sample in samples}
    part_of_group = {group_of[name]: part for name, part in part_of.items() if name in group_of}
    held: dict[str, str] = {}
    for name, group in groups.items():
        sample = joins.get(name)
        part = None if sample is None else part_of_group.get(group_of[sample])
        if part is not None:
            held.setdefault(group, f"it shows the same part as {sample} of the {part} part")
    return {name: held[group] for name, group in groups.items() if group in held}
