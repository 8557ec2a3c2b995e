"""`magtiles-seg parity`: how far one model's answers are from another's."""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import TYPE_CHECKING

from magtiles_seg.commands import options
from magtiles_seg.errors import ParityError
from magtiles_seg.progress import bar, complain, remark

if TYPE_CHECKING:
    from magtiles_seg.config import Params
    from magtiles_seg.export.parity import ParityReport, TileSet
    from magtiles_seg.model.card import ModelCard

_EXAMPLES = """
  magtiles-seg parity model.onnx artefacts/model-int8.onnx --data my-tiles/
  magtiles-seg parity model.safetensors model.engine --precision fp16 --json
  magtiles-seg parity model.onnx model.onnx --precision bf16    what bf16 of this CPU changes

  Exit code: 0 the second answers as the first, 1 it does not, 2 an error.
"""


def add(verbs: options.Verbs) -> None:
    """Add the verb."""
    verb = options.add_verb(
        verbs, "parity", "compare the answers of two models", run, examples=_EXAMPLES
    )
    verb.add_argument("reference", type=Path, metavar="A", help="the model that is right")
    verb.add_argument("candidate", type=Path, metavar="B", help="the model under test")
    options.add_params(verb)
    options.add_tiles(
        verb,
        data="compare on every one of these tiles",
        split="compare on this manifest's validation and test parts",
    )
    verb.add_argument(
        "--precision",
        default="fp32",
        help="whose tolerance: fp32 (default), fp16, int8, or bf16, in which OpenVINO then runs B",
    )
    verb.add_argument("--device", help="where B runs: cpu (default), cuda (an engine's) or cuda:N")
    verb.add_argument("--backend", help="what runs B (default: by its suffix)")
    verb.add_argument("--json", action="store_true", help="print one JSON object")


def run(arguments: argparse.Namespace) -> int:
    """Compare and print."""
    from magtiles_seg.export.parity import Tolerance, check, compare, fit_to_engine
    from magtiles_seg.infer.backends import default_device
    from magtiles_seg.infer.segmenter import Segmenter

    params = options.read_params(arguments)
    tolerance = Tolerance.of(params.export, arguments.precision)
    first, second = arguments.reference, arguments.candidate
    device = arguments.device or default_device(second)
    is_bf16 = arguments.precision == "bf16"
    backend = arguments.backend or ("openvino" if is_bf16 else None)
    precision = "bf16" if is_bf16 else None
    with (
        Segmenter(first, device=default_device(first)) as reference,
        Segmenter(second, device=device, backend=backend, precision=precision) as candidate,
        bar("parity", "picture") as progress,
    ):
        tiles = _tiles(arguments, params, reference.spec.card)
        report = compare(
            reference.backend,
            candidate.backend,
            fit_to_engine(fit_to_engine(tiles.pictures, first), second),
            classes=tiles.classes,
            progress=progress,
        )
    try:
        check(report, tolerance)
        failure = None
    except ParityError as error:
        failure = error
    if arguments.json:
        facts = {"tiles": str(tiles), "passed": failure is None, **report.to_dict()}
        print(json.dumps(facts, indent=2))
    else:
        print(f"{tiles}, tolerance of {arguments.precision}\n{_table(report)}")
    if failure is not None:
        complain(failure)
    return options.ACCEPTED if failure is None else options.REJECTED


def _tiles(arguments: argparse.Namespace, params: Params, card: ModelCard) -> TileSet:
    from magtiles_seg import pipeline
    from magtiles_seg.export.parity import DRAWN_PER_CLASS, real_tiles, synthetic_tiles
    from magtiles_seg.export.unseen import known_parts

    if arguments.split is not None:
        _, samples = known_parts(arguments.split, params, card, note=remark)
    elif arguments.data is not None:
        samples = list(pipeline.samples_of(params, arguments.data))
    else:
        return synthetic_tiles(DRAWN_PER_CLASS)
    return real_tiles(samples, len(samples))


def _table(report: ParityReport) -> str:
    """Return the figures, a line for each class and one for all."""
    heads = ("class", "pictures", "Dice", "max |dp|", "p99.9 |dp|", "same class", "flipped")
    lines = ["{:<12}{:>9}{:>10}{:>10}{:>12}{:>12}{:>9}".format(*heads)]
    for name, figures in (*report.per_class.items(), ("all", report.to_dict())):
        lines.append(
            "{:<12}{pictures:>9}{dice:>10.5f}{max_abs_diff:>10.5f}{p999_abs_diff:>12.6f}"
            "{class_agreement:>12.5f}{flipped_verdicts:>9}".format(name, **figures)
        )
    return "\n".join(lines)
