"""`magtiles-seg data …`: fetch, split, check or synthesize a data set."""

from __future__ import annotations

import argparse
import json
from dataclasses import asdict
from pathlib import Path

from magtiles_seg.commands import options
from magtiles_seg.progress import bar

_LOAD = """
  magtiles-seg data load
  magtiles-seg data load --set data_load.source=Downloads/master.zip
  magtiles-seg data load --set data_load.source=synthetic:tiles=10,seed=1
"""
_SPLIT = """
  magtiles-seg data split
  magtiles-seg data split --set data_split.fold=2 --out data/fold2.json
"""
_CHECK = """
  magtiles-seg data check data/split.json

  Exit code: 0 no physical tile stands in two parts, 1 one does, 2 an error.
"""
_SYNTH = """
  magtiles-seg data synth out/tiles --tiles 20 --seed 3
"""


def add(verbs: options.Verbs) -> None:
    """Add the verbs."""
    data = verbs.add_parser("data", help="fetch, split, check or synthesize a data set")
    parts = data.add_subparsers(metavar="VERB", required=True)
    load = options.add_verb(
        parts, "load", "fetch, verify and unpack the data set", run_load, examples=_LOAD
    )
    options.add_params(load)
    split = options.add_verb(parts, "split", "write a split manifest", run_split, examples=_SPLIT)
    options.add_params(split)
    options.add_manifest(split, "--out", "where to write it")
    check = options.add_verb(
        parts, "check", "report the leaks of a split manifest", run_check, examples=_CHECK
    )
    options.add_params(check)
    check.add_argument("manifest", type=Path, metavar="MANIFEST", help="a file by `data split`")
    check.add_argument("--json", action="store_true", help="print one JSON object")
    synth = options.add_verb(
        parts, "synth", "write a data set of synthetic tiles", run_synth, examples=_SYNTH
    )
    synth.add_argument("directory", type=Path, metavar="DIR", help="where to write it")
    synth.add_argument("--tiles", type=int, default=50, metavar="N", help="default: 50")
    synth.add_argument("--seed", type=int, default=0, metavar="N", help="default: 0")


def run_load(arguments: argparse.Namespace) -> int:
    """Fetch, verify and unpack."""
    from magtiles_seg.dataset.archive import fetch, note_folder, verify

    load = options.read_params(arguments).data_load
    unit = "tile" if load.source.startswith("synthetic:") else "B"
    with bar("fetch", unit) as progress:
        root = fetch(load.source, Path(load.directory), sha256=load.sha256, progress=progress)
    with bar("verify", "picture") as progress:
        samples = verify(root, layout=load.layout, labels=load.labels, progress=progress)
    if Path(load.source).is_dir():
        note_folder(Path(load.directory), samples)
    groups = len({sample.group for sample in samples})
    print(f"{root}: {len(samples)} pictures of {groups} tiles, all whole")
    return options.ACCEPTED


def run_split(arguments: argparse.Namespace) -> int:
    """Write the manifest."""
    from magtiles_seg import stages
    from magtiles_seg.dataset.splits import PARTS, make_split

    params = options.read_params(arguments)
    split = make_split(stages.samples_of(params), **asdict(params.data_split))
    arguments.out.parent.mkdir(parents=True, exist_ok=True)
    arguments.out.write_text(split.to_json(), encoding="utf-8")
    parts = ", ".join(f"{len(getattr(split, part))} {part}" for part in PARTS)
    print(f"{arguments.out}: rule {split.rule}, seed {split.seed}, fold {split.fold}: {parts}")
    return options.ACCEPTED


def run_check(arguments: argparse.Namespace) -> int:
    """Print the report, and say whether the split is clean."""
    from magtiles_seg import stages
    from magtiles_seg.dataset.leakage import leaks

    params = options.read_params(arguments)
    report = leaks(stages.read_manifest(arguments.manifest), stages.samples_of(params))
    print(json.dumps(report.to_dict()) if arguments.json else report.summary())
    return options.ACCEPTED if report.clean else options.REJECTED


def run_synth(arguments: argparse.Namespace) -> int:
    """Write the tiles."""
    from magtiles_seg.dataset.synthetic import write_dataset

    with bar("data synth", "tile") as progress:
        root = write_dataset(
            arguments.directory, tiles=arguments.tiles, seed=arguments.seed, progress=progress
        )
    print(f"{root}: {arguments.tiles} synthetic tiles, six pictures each")
    return options.ACCEPTED
