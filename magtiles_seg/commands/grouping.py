"""`magtiles-seg data group`, and `data check --surface`: pictures of one surface, by looking."""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from magtiles_seg.commands import options
from magtiles_seg.progress import bar, remark

if TYPE_CHECKING:
    from magtiles_seg.dataset.matching import Matches

_GROUP = """
  magtiles-seg data group photos/ --out proposal
  magtiles-seg data group --out proposal                   the data set of params.yaml

  Writes proposal/groups.csv, pairs.csv and index.html, the page of the pairs in doubt. Look at the
  page, correct groups.csv, and put it beside images/.
"""
_SHOWN = 20


def add(verbs: options.Verbs) -> None:
    """Add the verb."""
    verb = options.add_verb(
        verbs,
        "group",
        "propose groups: which pictures show the same surface",
        run,
        examples=_GROUP,
    )
    options.add_params(verb)
    verb.add_argument(
        "pictures",
        nargs="?",
        type=Path,
        metavar="LIST",
        help="a folder of pictures, or a file with a path a line (default: the data set)",
    )
    verb.add_argument(
        "--out", type=options.folder, required=True, metavar="DIR", help="where to write it"
    )


def run(arguments: argparse.Namespace) -> int:
    """Write the proposal."""
    from magtiles_seg import pipeline
    from magtiles_seg.dataset.leakage import read_list
    from magtiles_seg.dataset.proposal import save_proposal, summary_of

    params = options.read_params(arguments)
    options.check_output(arguments.out)
    if arguments.pictures is None:
        paths = [sample.image_path for sample in pipeline.samples_of(params)]
    else:
        paths = [Path(name) for name in dict.fromkeys(read_list(arguments.pictures))]
    found = _matches(paths)
    groups, pairs, page = save_proposal(found, arguments.out)
    print(f"{summary_of(found)}: {groups}, {pairs}, {page}")
    return options.ACCEPTED


def check(arguments: argparse.Namespace) -> int:
    """Print which pictures show a surface that was trained on, and say whether there is one."""
    from magtiles_seg.dataset.leakage import report_leaks
    from magtiles_seg.dataset.matching import leaking_pairs

    train, validation, test = _parts(arguments)
    paths = list(dict.fromkeys((*train, *validation, *test)))
    found = _matches(paths)
    number_of = dict(zip(map(str, paths), found.groups(), strict=True))
    names = ([str(path) for path in part] for part in (train, validation, test))
    report = report_leaks((next(names), next(names), next(names)), number_of)
    pairs = leaking_pairs(found, train, (*validation, *test))
    if arguments.json:
        rows = [
            {
                "train": str(seen),
                "test": str(tested),
                "certainty": round(match.certainty, 4),
                "relation": match.relation,
            }
            for seen, tested, match in pairs
        ]
        print(json.dumps({**report.to_dict(), "pairs": rows}))
    else:
        print(report.summary())
        for seen, tested, match in pairs[:_SHOWN]:
            print(f"  {tested} shows {seen}: {match.relation}, certainty {match.certainty:.2f}")
        if len(pairs) > _SHOWN:
            print(f"  and {len(pairs) - _SHOWN} more pairs: --json names all")
    return options.ACCEPTED if report.clean else options.REJECTED


def _parts(arguments: argparse.Namespace) -> tuple[Sequence[Path], Sequence[Path], Sequence[Path]]:
    """Return the pictures of the training, validation and test part of a manifest or two lists."""
    from magtiles_seg import pipeline
    from magtiles_seg.dataset.leakage import read_list

    if arguments.train is not None:
        lists = (read_list(arguments.train), read_list(arguments.test))
        seen, tested = ([Path(name) for name in names] for names in lists)
        return seen, [], tested
    parts = pipeline.split_parts(arguments.manifest, options.read_params(arguments))
    train, validation, test = (
        [sample.image_path for sample in parts[name]] for name in ("train", "validation", "test")
    )
    return train, validation, test


def _matches(paths: Sequence[Path]) -> Matches:
    """Compare the pictures, with a bar for each step; say what is to be known of the result."""
    from magtiles_seg.dataset.matching import find_matches

    with _bars() as progress:
        found = find_matches(paths, progress=progress)
    for text in found.remarks:
        remark(text)
    return found


@contextmanager
def _bars() -> Iterator[Callable[[str, int, int | None], None]]:
    """Give a function `(step, done, total)` that draws a bar for each step."""
    units = {"read": "picture", "search": "table", "verify": "pair"}
    with ExitStack() as stack:
        drawn: dict[str, Callable[[int, int | None], None]] = {}

        def show(step: str, done: int, total: int | None) -> None:
            if step not in drawn:
                drawn[step] = stack.enter_context(bar(step, units[step]))
            drawn[step](done, total)

        yield show
