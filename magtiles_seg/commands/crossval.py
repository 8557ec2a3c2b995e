"""`magtiles-seg crossval`: train and evaluate all folds of a data set."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import TYPE_CHECKING, Any

from magtiles_seg.commands import options
from magtiles_seg.errors import ConfigError
from magtiles_seg.files import Lock
from magtiles_seg.progress import bar, remark

if TYPE_CHECKING:
    from collections.abc import Sequence

    from magtiles_seg.config import Params
    from magtiles_seg.dataset.samples import Sample

_EXAMPLES = """
  magtiles-seg crossval --out runs/T
  magtiles-seg crossval --out runs/T-seed1 --set train.seed=1 --device cuda --parallel 5

  Stopped at any moment and started again, it goes on. OUT/f0, f1 … are runs, OUT/joined holds the
  figures of all folds together, as `evaluate --folds OUT/f*` writes them.
"""

_TAKEN_OVER = (
    "every fold starts from, or is taught by, one and the same model (train.start, "
    "train.teacher): if that was trained on these data, it knows what the folds hold out, and "
    "their figures look better than they are"
)


def add(verbs: options.Verbs) -> None:
    """Add the verb."""
    verb = options.add_verb(
        verbs, "crossval", "train every fold of the data and join their figures", run,
        examples=_EXAMPLES,
    )  # fmt: skip
    options.add_params(verb)
    options.add_train_device(verb)
    verb.add_argument(
        "--out",
        type=Path,
        default=Path("runs/crossval"),
        metavar="DIR",
        help="a folder for each fold, and `joined` (default: runs/crossval)",
    )
    verb.add_argument(
        "--parallel",
        type=int,
        default=0,
        metavar="N",
        help="folds at a time (default: as many as cores and devices allow)",
    )
    verb.add_argument("--protocol", metavar="NAME", help="of the figures (evaluate.protocol)")
    verb.add_argument("--triptychs", type=int, default=0, metavar="N", help="as of `evaluate`")


def run(arguments: argparse.Namespace) -> int:
    """Train what is not trained yet, and print the joined figures."""
    from magtiles_seg import pipeline
    from magtiles_seg.evaluate.protocols import get_protocol

    crossval = options.import_extra("magtiles_seg.train.crossval", "train")
    params = options.read_params(arguments)
    get_protocol(arguments.protocol or params.evaluate.protocol)
    for name in ("parallel", "triptychs"):
        if (number := getattr(arguments, name)) < 0:
            raise ConfigError(f"--{name} is {number}; expected 0 or more")
    options.check_output(arguments.out)
    samples = pipeline.samples_of(params)
    arguments.out.mkdir(parents=True, exist_ok=True)
    taken = f"another cross-validation in {arguments.out} is under way: wait, or name another --out"
    with Lock(arguments.out / ".lock", taken=taken), options.interrupted_once():
        return _train_and_join(crossval, samples, arguments, params)


def _train_and_join(
    crossval: Any,  # noqa: ANN401  (a module of an extra)
    samples: Sequence[Sample],
    arguments: argparse.Namespace,
    params: Params,
) -> int:
    from magtiles_seg.commands import runs

    folders = crossval.write_splits(samples, params.data_split, arguments.out)
    if params.train.start or params.train.teacher:
        remark(_TAKEN_OVER)
    words = [f"--set={setting}" for setting in arguments.set]
    if arguments.params is not None:
        words.append(f"--params={arguments.params}")
    with bar("train", "fold") as progress:
        crossval.train_folds(
            folders, params.train, words, parallel=arguments.parallel, progress=progress
        )
    arguments.folds, arguments.json = list(folders), None
    arguments.out = arguments.out / "joined"
    return runs.join(arguments, params)
