"""`magtiles-seg screen`: a small network that tells a model where to look."""

from __future__ import annotations

import argparse
from pathlib import Path

from magtiles_seg.commands import options
from magtiles_seg.progress import remark, wrap

_EXAMPLES = """
  magtiles-seg screen --model runs/model.onnx --out runs/screen.onnx
  magtiles-seg screen --model lite0 --split data/split.json --kept 0.995 --out screen.onnx
  magtiles-seg stream web/ --model runs/model.onnx --screen runs/screen.onnx

  It prints what was kept and passed on, on the split's validation part. The less is passed on, the
  more a screen saves: on a clean surface much, on a rough one nothing.
"""


def add(verbs: options.Verbs) -> None:
    """Add the verb."""
    verb = options.add_verb(
        verbs,
        "screen",
        "train a screen, which tells a model where to look",
        run,
        examples=_EXAMPLES,
    )
    options.add_model(verb)
    options.add_params(verb)
    options.add_manifest(verb, "--split", "the split manifest")
    verb.add_argument("--out", type=Path, required=True, metavar="FILE", help="NAME.onnx")
    verb.add_argument(
        "--kept",
        type=float,
        default=0.99,
        metavar="X",
        help="share of the defects that the model finds which must stay found (default: 0.99)",
    )
    verb.add_argument(
        "--threshold",
        type=float,
        metavar="X",
        help="of a cell's probability, instead of one chosen by --kept; lower passes on more",
    )
    verb.add_argument(
        "--epochs", type=int, default=150, metavar="N", help="of 640 crops each (default: 150)"
    )


def run(arguments: argparse.Namespace) -> int:
    """Train the screen and print what it does."""
    from magtiles_seg import pipeline

    options.check_output_file(arguments.out, ".onnx")
    params = options.read_params(arguments)
    options.import_extra("magtiles_seg.train.screen", "train")
    options.import_extra("magtiles_seg.export.screen", "export")
    card = pipeline.screen(
        params,
        arguments.model,
        arguments.split,
        arguments.out,
        kept=arguments.kept,
        threshold=arguments.threshold,
        epochs=arguments.epochs,
        progress=wrap,
        note=remark,
    )
    figures = card.metrics[0]["figures"]
    print(
        f"{arguments.out}: threshold {card.decision.threshold:.4f}; on the validation part it "
        f"keeps {figures['kept']:.1%} of the labelled defects that the model finds and "
        f"{figures['kept_all']:.1%} of all that it finds, and passes on {figures['passed']:.1%} of "
        "the sound pictures"
    )
    return options.ACCEPTED
