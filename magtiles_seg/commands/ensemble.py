"""`magtiles-seg ensemble`: trained networks as one model."""

from __future__ import annotations

import argparse
from pathlib import Path

from magtiles_seg.commands import options

_EXAMPLES = """
  magtiles-seg ensemble runs/lite0 runs/small --shares 0.8 0.2 --out runs/both
  magtiles-seg evaluate --model runs/both/model.safetensors --split data/split.json
  magtiles-seg export --model runs/both/model.safetensors --out both.onnx

  It finds more than any of its members, in the time of all of them together. Members that were
  trained with other seeds or architectures help most.

  magtiles-seg ensemble runs/small --round --out runs/small8

  One RUN alone stays the network that it is, with its weights rounded.
"""


def add(verbs: options.Verbs) -> None:
    """Add the verb."""
    verb = options.add_verb(
        verbs, "ensemble", "join trained networks to one model", run, examples=_EXAMPLES
    )
    verb.add_argument(
        "runs",
        type=options.folder,
        nargs="+",
        metavar="RUN",
        help="folders that `train` wrote, of the same classes; the first one's network tells the "
        "class of a defect, and its split.json, if it holds one, is taken along",
    )
    verb.add_argument(
        "--shares",
        type=float,
        nargs="+",
        metavar="X",
        help="each network's part of the defect logit, above 0 (default: the same for all)",
    )
    verb.add_argument(
        "--round",
        action="store_true",
        help="round large weights to 8 bits: exported files become half as large, the arithmetic "
        "stays fp32; evaluate what comes out",
    )
    verb.add_argument(
        "--out", type=Path, required=True, metavar="DIR", help="gets model.safetensors"
    )


def run(arguments: argparse.Namespace) -> int:
    """Join the networks."""
    ensemble = options.import_extra("magtiles_seg.train.ensemble", "train")
    options.check_output(arguments.out)
    shares = arguments.shares or [1.0] * len(arguments.runs)
    joined = ensemble.join(arguments.runs, arguments.out, shares=shares, rounded=arguments.round)
    said = [joined.architecture]
    if len(shares) > 1:
        parts = ", ".join(f"{100 * share:.3g}%" for share in joined.shares.tolist())
        said.append(f"with shares of {parts}")
    if arguments.round:
        said.append("rounded to 8 bits")
    print(f"{arguments.out}: {', '.join(said)}")
    return options.ACCEPTED
