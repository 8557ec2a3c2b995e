"""`magtiles-seg train`: a network, on the split's training part."""

from __future__ import annotations

import argparse
from pathlib import Path

from magtiles_seg.commands import options
from magtiles_seg.progress import remark, wrap

_EXAMPLES = """
  magtiles-seg train
  magtiles-seg train --out runs/nano --set train.architecture=nano --set train.epochs=5
  magtiles-seg train --device cuda

  Stopped at any moment and started again, it goes on from the last whole epoch.
"""


def add(verbs: options.Verbs) -> None:
    """Add the verb."""
    verb = options.add_verb(
        verbs, "train", "train a network on the split's training part", run, examples=_EXAMPLES
    )
    options.add_params(verb)
    options.add_train_device(verb)
    options.add_manifest(verb, "--split", "the split manifest")
    verb.add_argument(
        "--out",
        type=Path,
        default=Path("runs/train"),
        metavar="DIR",
        help="checkpoint and state (default: runs/train)",
    )
    verb.add_argument("--logs", type=Path, metavar="DIR", help="curves (default: OUT/dvclive)")
    verb.add_argument(
        "--restart",
        action="store_true",
        help="forget what OUT holds, unless it is this very run: same data, parameters, code",
    )


def run(arguments: argparse.Namespace) -> int:
    """Train, or go on with a stopped run, and print the checkpoint's path."""
    from magtiles_seg import pipeline

    params = options.read_params(arguments)
    options.check_output(arguments.out)
    if arguments.logs is not None:
        options.check_output(arguments.logs, instead="name other --logs")
    devices = options.import_extra("magtiles_seg.train.devices", "train")
    options.import_extra("dvclive", "train")
    checkpoint = pipeline.train(
        params,
        arguments.split,
        arguments.out,
        logs=arguments.logs,
        restart=arguments.restart,
        progress=wrap,
        note=remark,
    )
    if devices.is_first():  # the processes that it started do not speak
        print(checkpoint)
    return options.ACCEPTED
