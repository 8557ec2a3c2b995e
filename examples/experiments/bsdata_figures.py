"""Count the figures of BSData with and without what is doubtful in it: those of docs/results.md.

    magtiles-seg evaluate --params bs.yaml --folds f0 f1 f2 f3 f4 --out joined
    python examples/experiments/bsdata_figures.py joined/pictures.csv --published image_data.json

The names of its pictures tell place and time. Two places, 395000_270 and 397500_315, lie 2.5 mm and
45 degrees apart and show the same pit. Pictures of a place without a label, taken after the place
was labelled first, are suspect, and so are those of the day before. `image_data.json` of the
repository names the authors' test part: a row tells what the folds say of its pictures.
"""

from __future__ import annotations

import argparse
import json
import re
import sys
from dataclasses import replace
from datetime import datetime, timedelta
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from magtiles_seg.errors import ConfigError, DataError, MagtilesError
from magtiles_seg.evaluate.compare import read_pictures_of
from magtiles_seg.evaluate.metrics import iou
from magtiles_seg.evaluate.scoring import Records
from magtiles_seg.evaluate.summary import estimate

GROUP = re.compile(r"^01_\d+_(\d\d)|^(KGT\d+)-")
NAME = re.compile(r"^01_(?P<time>\d{12})_(?P<place>\d+_\d+)_crop")
COLUMNS = {
    "auroc": "AUROC",
    "false_reject_at_95_recall": "sound rejected at 95 % recall",
    "iou": "pooled IoU",
    "macro_picture_dice": "macro Dice",
}


def main() -> int:
    """Print the table, a row for each variant."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("pictures", type=Path, help="pictures.csv of `evaluate --folds … --out`")
    parser.add_argument(
        "--leaked", nargs="*", default=[], help="places whose neighbour was trained"
    )
    parser.add_argument("--published", type=Path, help="image_data.json of the repository")
    try:
        _print_table(parser.parse_args())
    except (MagtilesError, OSError) as error:
        print(error, file=sys.stderr)
        return 2
    return 0


def _print_table(arguments: argparse.Namespace) -> None:
    records = _grouped(read_pictures_of(arguments.pictures))
    if unknown := set(arguments.leaked) - {_place(name) for name in records.ids}:
        raise ConfigError(f"--leaked: no scored picture is of {', '.join(sorted(unknown))}")
    leaked = np.array([_place(name) in arguments.leaked for name in records.ids])
    after, before = _suspects(records)
    variants = {
        "all": np.ones(len(records), bool),
        "without the places whose neighbour was trained on": ~leaked,
        "and without the unlabelled pictures of labelled places": ~leaked & ~after,
        "and without those of the day before": ~leaked & ~after & ~before,
    }
    if arguments.published:
        tested = np.isin(records.ids, _published(arguments.published))
        if not tested.any():
            raise DataError(f"{arguments.published}: none of its test pictures is a scored one")
        variants["the authors' test pictures"] = tested
    print(f"| | pictures | sound | {' | '.join(COLUMNS.values())} | mean IoU of labelled ones |")
    print(f"|---|{'---:|' * (len(COLUMNS) + 3)}")
    for name, kept in variants.items():
        print(_row(name, records.where(kept)))


def _row(name: str, records: Records) -> str:
    verdict = () if records.is_defect.all() else ("verdict",)
    values, ranges = estimate(records, ("binary", "pictures", *verdict), resamples=1000)
    cells = [name, str(len(records)), str(int((~records.is_defect).sum()))]
    for figure in COLUMNS:
        low, high = ranges.get(figure, (0.0, 0.0))
        cells.append(f"{values[figure]:.3f} ({low:.3f}-{high:.3f})" if figure in values else "")
    cells.append(f"{iou(records.counts[records.is_defect]).mean():.3f}")
    return f"| {' | '.join(cells)} |"


def _grouped(records: Records) -> Records:
    """Return the records under one group for each centimetre of the screw, or spindle.

    Raises:
        DataError: A name tells no place: it is no picture of BSData.
    """
    found = [(name, GROUP.search(name)) for name in records.ids]
    if strange := [name for name, match in found if not match]:
        raise DataError(
            f"{len(strange)} of {len(found)} pictures have no name of BSData, such as {strange[0]}"
        )
    names = ["".join(filter(None, match.groups())) for _, match in found if match]
    return replace(records, group=np.unique(names, return_inverse=True)[1].astype(np.int64))


def _suspects(records: Records) -> tuple[NDArray[np.bool_], NDArray[np.bool_]]:
    """Return which sound pictures come after their place's first label, and up to a day before."""
    first: dict[str, datetime] = {}
    for name in records.ids[records.is_defect]:
        if when := _time(name):
            place = _place(name)
            first[place] = min(when, first.get(place, when))
    after, before = (np.zeros(len(records), bool) for _ in range(2))
    for row in np.flatnonzero(~records.is_defect):
        name = records.ids[row]
        when, start = _time(name), first.get(_place(name))
        if when and start:
            after[row] = when > start
            before[row] = start - timedelta(days=1) <= when < start
    return after, before


def _published(path: Path) -> list[str]:
    try:
        listed = json.loads(path.read_text(encoding="utf-8"))["images"]
        return [Path(one["filename"]).stem for one in listed if one["train_test_split"] == "test"]
    except (KeyError, TypeError, ValueError) as error:
        raise DataError(f"{path} is no image_data.json of BSData: {error!r}") from error


def _place(name: str) -> str:
    match = NAME.match(name)
    return match["place"] if match else ""


def _time(name: str) -> datetime | None:
    match = NAME.match(name)
    return datetime.strptime(match["time"], "%y%m%d%H%M%S") if match else None


if __name__ == "__main__":
    sys.exit(main())
