"""`magtiles-seg export`: a checkpoint as one ONNX file, if it passes parity."""

from __future__ import annotations

import argparse
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from magtiles_seg.commands import options

if TYPE_CHECKING:
    from magtiles_seg.config import Params
    from magtiles_seg.model.card import ModelCard

_EXAMPLES = """
  magtiles-seg export --model runs/train/model.safetensors --split data/split.json \\
      --out runs/model.onnx
"""


def add(verbs: options.Verbs) -> None:
    """Add the verb."""
    verb = options.add_verb(
        verbs,
        "export",
        "write a checkpoint as one ONNX file, if it passes parity",
        run,
        examples=_EXAMPLES,
    )
    options.add_params(verb)
    verb.add_argument(
        "--model", type=Path, required=True, metavar="FILE", help="a .safetensors checkpoint"
    )
    verb.add_argument("--out", type=Path, required=True, metavar="FILE", help="the .onnx to write")
    verb.add_argument(
        "--split",
        type=Path,
        metavar="FILE",
        help="choose the thresholds on this manifest's validation part",
    )
    verb.add_argument("--name", help="what people call the model (default: the checkpoint's name)")


def run(arguments: argparse.Namespace) -> int:
    """Export, check and write."""
    params = options.read_params(arguments)
    graph = options.import_extra("magtiles_seg.export.graph", "export")
    tolerance = options.import_extra("magtiles_seg.export.parity", "export").Tolerance(
        min_dice=params.export.min_dice,
        max_abs_diff=params.export.max_abs_diff,
        max_flipped_fraction=params.export.max_flipped_fraction,
    )
    card = _card(arguments, params)
    precision = params.export.precision
    report = graph.export_onnx(
        arguments.model, arguments.out, card=card, precision=precision, tolerance=tolerance
    )
    print(f"{arguments.out}: {report}\n{card.decision}")
    return options.ACCEPTED


def _card(arguments: argparse.Namespace, params: Params) -> ModelCard:
    """Return the checkpoint's card, with thresholds chosen on the split's validation part."""
    from magtiles_seg import stages
    from magtiles_seg.environment import git_revision
    from magtiles_seg.evaluate.thresholds import choose_decision

    with options.open_segmenter(arguments) as segmenter:
        card: ModelCard = replace(segmenter.spec.card, git_revision=git_revision())
        if arguments.name:
            card = replace(card, name=arguments.name)
        if arguments.split is None:
            return card
        origin = stages.read_manifest(arguments.split).origin
        decision = choose_decision(
            segmenter,
            stages.split_parts(arguments.split, params)["validation"],
            recall=params.evaluate.recall,
            protocol=params.train.protocol,
            labels=card.labels,
        )
    return replace(card, decision=decision, training={**card.training, "split": origin})
