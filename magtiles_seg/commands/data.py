"""`magtiles-seg data …`: fetch, split, check or synthesize a data set."""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import TYPE_CHECKING

from magtiles_seg.commands import audit, grouping, options
from magtiles_seg.dataset.layouts import FORMAT_NAMES
from magtiles_seg.errors import ConfigError
from magtiles_seg.names import counted
from magtiles_seg.progress import bar, remark

if TYPE_CHECKING:
    from magtiles_seg.dataset.leakage import LeakReport

_LOAD = """
  magtiles-seg data load
  magtiles-seg data load --set data_load.source=Downloads/master.zip
  magtiles-seg data load --set data_load.source=synthetic:tiles=10,seed=1
"""
_SPLIT = """
  magtiles-seg data split
  magtiles-seg data split --set data_split.fold=2 --out data/fold2.json
"""
_CHECK = r"""
  magtiles-seg data check data/split.json
  magtiles-seg data check --train published-list.txt       all other pictures are tested
  magtiles-seg data check --train a.txt --test b.txt --group-by '_(\d+_\d+)_crop'
  magtiles-seg data check --train train/ --test test/ --copies
  magtiles-seg data check --train train/ --test test/ --surface
  magtiles-seg data check data/split.json --surface        whatever the groups say

  Exit code: 0 no physical tile stands in two parts, 1 one does, 2 an error.
"""
_LEAK = """
  magtiles-seg data leak random/pictures.csv grouped/pictures.csv
"""
_AGREEMENT = """
  magtiles-seg data agreement
  magtiles-seg data agreement --mask-rule gt0

  The figures of one exposure's mask as the answer to another exposure of the same tile.
"""
_CONVERT = """
  magtiles-seg data convert labelme-folder coco-folder --to coco
  magtiles-seg data convert cloth yolo --to yolo --set 'data_load.labels=[background, stain, cut]'

  The classes keep their names unless data_load.labels or data_load.class_map is set.
"""
_SYNTH = """
  magtiles-seg data synth out/tiles --tiles 20 --seed 3
"""


def add(verbs: options.Verbs) -> None:
    """Add the verbs."""
    data = verbs.add_parser("data", help="fetch, split, check or synthesize a data set")
    parts = data.add_verbs()
    load = options.add_verb(
        parts, "load", "fetch, verify and unpack the data set", run_load, examples=_LOAD
    )
    options.add_params(load)
    split = options.add_verb(parts, "split", "write a split manifest", run_split, examples=_SPLIT)
    options.add_params(split)
    options.add_manifest(split, "--out", "where to write it")
    check = options.add_verb(
        parts, "check", "report the leaks of a split, or of lists", run_check, examples=_CHECK
    )
    options.add_params(check)
    check.add_argument(
        "manifest", nargs="?", type=Path, metavar="MANIFEST", help="a file by `data split`"
    )
    check.add_argument(
        "--train", type=Path, metavar="LIST", help="training pictures: a name a line, or a folder"
    )
    check.add_argument(
        "--test", type=Path, metavar="LIST", help="test pictures (default: all others of the data)"
    )
    told = check.add_mutually_exclusive_group()
    options.add_group_by(told, "tiles by the names of --train and --test alone")
    told.add_argument(
        "--copies", action="store_true", help="tiles by pixels: copies, also turned or mirrored"
    )
    told.add_argument(
        "--surface",
        action="store_true",
        help="tiles by their fine texture: any two pictures of one surface; names each pair",
    )
    check.add_argument("--json", action="store_true", help="print one JSON object")
    _add_convert(parts)
    grouping.add(parts)
    _add_judgements(parts)
    synth = options.add_verb(
        parts, "synth", "write a data set of synthetic tiles", run_synth, examples=_SYNTH
    )
    synth.add_argument("directory", type=Path, metavar="DIR", help="where to write it")
    synth.add_argument("--tiles", type=int, default=50, metavar="N", help="default: 50")
    synth.add_argument("--seed", type=int, default=0, metavar="N", help="default: 0")


def _add_convert(parts: options.Verbs) -> None:
    """Add the verb that writes a data set as another tool reads it."""
    convert = options.add_verb(
        parts, "convert", "write a data set in another format", run_convert, examples=_CONVERT
    )
    options.add_params(convert)
    convert.add_argument("source", type=Path, metavar="FROM", help="a folder in any format")
    convert.add_argument("out", type=Path, metavar="TO", help="a new folder")
    convert.add_argument("--to", required=True, choices=FORMAT_NAMES, help="the format to write")
    convert.add_argument(
        "--polygons",
        action=argparse.BooleanOptionalAction,
        default=None,
        help="masks as polygons, or not; default: as the format's own tool draws",
    )
    convert.add_argument(
        "--tolerance",
        type=float,
        default=0.0,
        metavar="PX",
        help="how far a polygon may stray from a mask, to have fewer points (default: 0)",
    )


def _add_judgements(parts: options.Verbs) -> None:
    """Add the verbs that judge labels and splits by what models or masks say."""
    audit.add(parts)
    leak = options.add_verb(
        parts, "leak", "tell what a random split flatters", run_leak, examples=_LEAK
    )
    for name in ("random", "grouped"):
        leak.add_argument(
            name, type=Path, metavar=f"{name.upper()}.csv", help="pictures.csv of evaluate --out"
        )
    agree = options.add_verb(
        parts,
        "agreement",
        "tell how far the masks of one tile agree",
        run_agreement,
        examples=_AGREEMENT,
    )
    options.add_params(agree)
    agree.add_argument(
        "--mask-rule",
        choices=["ge128", "gt0"],
        default="ge128",
        help="which mask pixels are defect (default: ge128)",
    )


def run_load(arguments: argparse.Namespace) -> int:
    """Fetch, verify and unpack."""
    from magtiles_seg import pipeline
    from magtiles_seg.dataset.synthetic import SYNTHETIC

    params = options.read_params(arguments)
    unit = "tile" if params.data_load.source.startswith(SYNTHETIC) else "B"
    with bar("fetch", unit) as on_fetch, bar("verify", "picture") as on_verify:
        loaded = pipeline.load(params, on_fetch=on_fetch, on_verify=on_verify, note=remark)
    if loaded.summary:
        print(loaded.summary)
    tiles = pipeline.count_tiles(loaded, params)
    pictures = counted(len(loaded.samples), "picture")
    print(f"{loaded.root}: {pictures} of {counted(tiles, 'tile')}, all whole")
    return options.ACCEPTED


def run_convert(arguments: argparse.Namespace) -> int:
    """Read a data set in one format and write it in another."""
    from magtiles_seg.dataset.formats.convert import Wanted, rewrite

    options.check_output(arguments.out, instead="name another folder")
    wanted = Wanted.of(options.read_params(arguments).data_load)
    with bar("data convert", "picture") as progress:
        said = rewrite(
            arguments.source,
            arguments.out,
            arguments.to,
            wanted,
            as_polygons=arguments.polygons,
            tolerance_px=arguments.tolerance,
            progress=progress,
        )
    print(f"{said}\n{arguments.out}: {arguments.to}")
    return options.ACCEPTED


def run_split(arguments: argparse.Namespace) -> int:
    """Write the manifest."""
    from magtiles_seg import pipeline
    from magtiles_seg.dataset.splits import PARTS

    split = pipeline.split(options.read_params(arguments), arguments.out)
    parts = ", ".join(f"{len(getattr(split, part))} {part}" for part in PARTS)
    print(f"{arguments.out}: rule {split.rule}, seed {split.seed}, fold {split.fold}: {parts}")
    return options.ACCEPTED


def run_check(arguments: argparse.Namespace) -> int:
    """Print the report, and say whether the split is clean."""
    from magtiles_seg import pipeline
    from magtiles_seg.dataset.leakage import leaks, leaks_of_lists, read_list

    _check_asked(arguments)
    if arguments.surface:
        return grouping.check(arguments)
    if arguments.group_by is not None or arguments.copies:
        report = _leaks_by_names_or_pixels(arguments)
    else:
        samples = pipeline.samples_of(options.read_params(arguments))
        if arguments.train is None:
            report = leaks(pipeline.read_split(arguments.manifest), samples)
        else:
            test = None if arguments.test is None else read_list(arguments.test)
            report = leaks_of_lists(read_list(arguments.train), test, samples)
    print(json.dumps(report.to_dict()) if arguments.json else report.summary())
    return options.ACCEPTED if report.clean else options.REJECTED


def _check_asked(arguments: argparse.Namespace) -> None:
    """Refuse words of `data check` that do not go together."""
    alone = arguments.group_by is not None or arguments.copies
    if (arguments.manifest is None) == (arguments.train is None):
        raise ConfigError("expected a MANIFEST or --train LIST, and not both")
    if arguments.test is not None and arguments.train is None:
        raise ConfigError("--test goes with --train; a manifest names its own test part")
    if alone and (arguments.train is None or arguments.test is None):
        raise ConfigError("--group-by and --copies compare two lists: give --train and --test")
    if arguments.surface and arguments.train is not None and arguments.test is None:
        raise ConfigError("--surface compares two lists, or the parts of a MANIFEST: give --test")


def _leaks_by_names_or_pixels(arguments: argparse.Namespace) -> LeakReport:
    """Report the leaks of two lists, whatever data set they are of."""
    from magtiles_seg.dataset.copies import find_copies
    from magtiles_seg.dataset.grouping import group_pictures
    from magtiles_seg.dataset.leakage import read_list, report_leaks

    train, test = read_list(arguments.train), read_list(arguments.test)
    names = list(dict.fromkeys((*train, *test)))
    if arguments.copies:
        with bar("read", "picture") as progress:
            numbers = find_copies([Path(name) for name in names], progress=progress)
        group_of = dict(zip(names, numbers, strict=True))
    else:
        groups = group_pictures(names, arguments.group_by)
        group_of = {name: index for index, group in enumerate(groups) for name in group.pictures}
    return report_leaks((train, (), test), group_of)


def run_leak(arguments: argparse.Namespace) -> int:
    """Print the difference."""
    from magtiles_seg.evaluate.compare import compare, read_pictures_of
    from magtiles_seg.evaluate.folds import leak_to_markdown

    grouped, random = map(read_pictures_of, (arguments.grouped, arguments.random))
    print(leak_to_markdown(compare(grouped, random)))
    return options.ACCEPTED


def run_agreement(arguments: argparse.Namespace) -> int:
    """Print the table."""
    from magtiles_seg import pipeline
    from magtiles_seg.evaluate.labels.agreement import agreement

    samples = pipeline.samples_of(options.read_params(arguments))
    with bar("agreement", "tile") as progress:
        found = agreement(samples, rule=arguments.mask_rule, progress=progress)
    print(found.to_markdown())
    return options.ACCEPTED


def run_synth(arguments: argparse.Namespace) -> int:
    """Write the tiles."""
    from magtiles_seg.dataset.synthetic import write_dataset

    options.check_output(arguments.directory, instead="name another folder")
    with bar("data synth", "tile") as progress:
        root = write_dataset(
            arguments.directory, tiles=arguments.tiles, seed=arguments.seed, progress=progress
        )
    print(f"{root}: {arguments.tiles} synthetic tiles, six pictures each")
    return options.ACCEPTED
