"""`magtiles-seg export`: a model for a runtime and in a precision, if it passes parity."""

from __future__ import annotations

import argparse
import tempfile
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from magtiles_seg.commands import options
from magtiles_seg.errors import ConfigError
from magtiles_seg.progress import bar

if TYPE_CHECKING:
    from magtiles_seg.config import Params
    from magtiles_seg.evaluate.decide import Choice
    from magtiles_seg.model.card import ModelCard

_EXAMPLES = """
  magtiles-seg export --model runs/train/model.safetensors --split data/split.json \\
      --out runs/model.onnx                     the one model file, from a checkpoint
  magtiles-seg export --to onnx --precision int8 --data my-tiles/ --out artefacts/
  magtiles-seg export --to rtx --recipe export/rtx-ada.yaml --out artefacts/
"""


def add(verbs: options.Verbs) -> None:
    """Add the verb."""
    verb = options.add_verb(
        verbs,
        "export",
        "write a model for a runtime and in a precision, if it passes parity",
        run,
        examples=_EXAMPLES,
    )
    options.add_params(verb)
    verb.add_argument(
        "--model", type=Path, metavar="FILE", help="checkpoint or fp32 .onnx (default: bundled)"
    )
    verb.add_argument(
        "--out",
        type=Path,
        required=True,
        metavar="PATH",
        help="folder for the artefact and its manifest; NAME.onnx: the one model file",
    )
    verb.add_argument(
        "--to", metavar="TARGET", help="onnx (default), openvino, tensorrt or rtx (engines)"
    )
    verb.add_argument(
        "--precision", help="fp32, fp16 or int8, of the arithmetic (default: the recipe's, or fp32)"
    )
    verb.add_argument("--recipe", type=Path, metavar="FILE", help="the device an engine is for")
    verb.add_argument(
        "--compute-capability",
        metavar="SM86,SM120",
        help="GPUs of an rtx engine, beside the recipe",
    )
    verb.add_argument(
        "--data", type=Path, metavar="DIR", help="calibrate and compare on these real tiles"
    )
    verb.add_argument(
        "--split",
        type=Path,
        metavar="FILE",
        help="calibrate on this manifest's train part, compare on the others; for a checkpoint, "
        "choose the thresholds on its validation part",
    )
    verb.add_argument(
        "--choice",
        type=Path,
        metavar="FILE",
        help="for a checkpoint: thresholds and calibration that `evaluate --folds … --out DIR` "
        "chose (DIR/choice.json)",
    )
    verb.add_argument("--name", help="what people call the model (default: the checkpoint's name)")


def run(arguments: argparse.Namespace) -> int:
    """Export, check and write."""
    params = options.read_params(arguments)
    if arguments.out.suffix.lower() == ".onnx":
        return _run_model_file(arguments, params)
    if arguments.choice is not None:
        raise ConfigError(f"--choice is for --out NAME.onnx, a checkpoint; got {arguments.out}")
    module = options.import_extra("magtiles_seg.export.artefacts", "export")
    order = _order(arguments, params, module)
    proof, calibration = _tiles(arguments, params, order.precision)
    from magtiles_seg.infer.segmenter import BUNDLED_MODEL

    model = arguments.model or BUNDLED_MODEL
    card = _card(arguments, params, None) if model.suffix.lower() == ".safetensors" else None
    with bar("export", "step") as show:
        path, manifest = module.export_artefact(
            model,
            arguments.out,
            order,
            proof=proof,
            calibration=calibration,
            card=card,
            progress=lambda _stage, done, total: show(done, total),
        )
    print(f"{path}: {order.precision}, compared on {proof}")
    for subject, figures in manifest.parity.items():
        if isinstance(figures, dict) and "dice" in figures:
            print(f"  {subject} on {figures['ran_on']}: {_figures(figures)}")
    if "artefact" not in manifest.parity:
        print("  no GPU here that runs the engine: its ONNX graph was compared in its place")
    return options.ACCEPTED


def _figures(figures: dict[str, Any]) -> str:
    return (
        f"Dice {figures['dice']:.5f}, |difference of probability| max {figures['max_abs_diff']:.4f}"
        f" p99.9 {figures['p999_abs_diff']:.4f}, flipped verdicts {figures['flipped_verdicts']} of "
        f"{figures['pictures']}"
    )


def _order(arguments: argparse.Namespace, params: Params, module: Any) -> Any:  # noqa: ANN401
    """Return what is to be made, by options, recipe and parameters."""
    from magtiles_seg.export import parity

    recipe = None
    if arguments.recipe is not None:
        recipe = options.import_extra("magtiles_seg.export.engine", "export").load_recipe(
            arguments.recipe
        )
    precision = arguments.precision or (recipe.precision if recipe else "fp32")
    wanted = arguments.compute_capability
    return module.Order(
        target=arguments.to or "onnx",
        precision=precision,
        recipe=recipe,
        compute_capabilities=tuple(wanted.split(",")) if wanted else (),
        tolerance=parity.Tolerance.of(params.export, precision),
    )


def _tiles(arguments: argparse.Namespace, params: Params, precision: str) -> tuple[Any, Any]:
    """Return the tiles to compare on, and those to calibrate on or None."""
    from magtiles_seg import stages
    from magtiles_seg.export import parity as tilesets

    many, few = params.export.parity_per_class, params.export.calibration_per_class
    wanted = precision == "int8"
    if arguments.split is not None:
        parts = stages.split_parts(arguments.split, params)
        held_out, train = [*parts["validation"], *parts["test"]], parts["train"]
    elif arguments.data is not None:
        train, held_out = tilesets.halves(stages.samples_of(params, arguments.data))
    else:
        calibration = tilesets.synthetic_tiles(few, calibration=True) if wanted else None
        return tilesets.synthetic_tiles(min(many, 4)), calibration
    return tilesets.real_tiles(held_out, many), (
        tilesets.real_tiles(train, few) if wanted else None
    )


def _run_model_file(arguments: argparse.Namespace, params: Params) -> int:
    """Write a checkpoint as the one model file."""
    if arguments.model is None:
        raise ConfigError("--out NAME.onnx writes a checkpoint as the one model file: name --model")
    for option in ("to", "precision", "recipe", "compute_capability", "data"):
        if getattr(arguments, option) is not None:
            raise ConfigError(
                f"--{option.replace('_', '-')} is for an artefact: give --out a folder, "
                f"got {arguments.out}"
            )
    from magtiles_seg.export import parity

    graph = options.import_extra("magtiles_seg.export.graph", "export")
    choice = _choice(arguments)
    with tempfile.TemporaryDirectory() as folder:
        if choice is not None:
            from magtiles_seg.model.checkpoint import calibrate_checkpoint

            calibrated = Path(folder) / "calibrated.safetensors"
            calibrate_checkpoint(
                arguments.model, calibrated, scale=choice.pixel.scale, bias=choice.pixel.bias
            )
            arguments.model = calibrated
        card = _card(arguments, params, choice)
        report = graph.export_onnx(
            arguments.model,
            arguments.out,
            card=card,
            precision=params.export.precision,
            tolerance=parity.Tolerance.of(params.export, "fp32"),
        )
    print(f"{arguments.out}: {_figures(report.to_dict())}\n{card.decision}")
    return options.ACCEPTED


def _choice(arguments: argparse.Namespace) -> Choice | None:
    if arguments.choice is None:
        return None
    from magtiles_seg.evaluate.decide import Choice

    return Choice.from_json(arguments.choice.read_text(encoding="utf-8"))


def _card(arguments: argparse.Namespace, params: Params, choice: Choice | None) -> ModelCard:
    """Return the checkpoint's card, with thresholds as chosen, or of the split's validation part.

    A choice holds for the calibrated checkpoint, which `arguments.model` names then.
    """
    from magtiles_seg import stages
    from magtiles_seg.environment import git_revision
    from magtiles_seg.evaluate.decide import choose_decision

    with options.open_segmenter(arguments) as segmenter:
        card: ModelCard = replace(segmenter.spec.card, git_revision=git_revision())
        if arguments.name:
            card = replace(card, name=arguments.name)
        if arguments.split is not None:
            origin = stages.read_manifest(arguments.split).origin
            card = replace(card, training={**card.training, "split": origin})
        if choice is not None:
            return replace(card, decision=choice.decision)
        if arguments.split is None:
            return card
        decision = choose_decision(
            segmenter,
            stages.split_parts(arguments.split, params)["validation"],
            recall=params.evaluate.recall,
            protocol=params.train.protocol,
            labels=card.labels,
        )
    return replace(card, decision=decision)
