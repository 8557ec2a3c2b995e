"""`magtiles-seg export`: a model for a runtime and in a precision, if it passes parity."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import TYPE_CHECKING, Any

from magtiles_seg.commands import options
from magtiles_seg.errors import ConfigError
from magtiles_seg.progress import bar, remark

if TYPE_CHECKING:
    from magtiles_seg.config import Params

_EXAMPLES = """
  magtiles-seg export --model runs/train/model.safetensors --split data/split.json \\
      --out runs/model.onnx                     the one model file, from a checkpoint
  magtiles-seg export --to onnx --precision int8 --data my-tiles/ --out artefacts/
  magtiles-seg export --to triton --with-decision --out repository/
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
        "--model",
        type=Path,
        metavar="FILE",
        help="checkpoint, fp32 .onnx, or bundled model by name (default: lite0)",
    )
    verb.add_argument(
        "--out",
        type=Path,
        required=True,
        metavar="PATH",
        help="folder for the artefact and its manifest; NAME.onnx: the one model file",
    )
    verb.add_argument(
        "--to",
        metavar="TARGET",
        help="onnx (default), openvino, tensorrt or rtx (engines), triton or ovms (a folder for "
        "NVIDIA Triton or OpenVINO Model Server)",
    )
    verb.add_argument(
        "--precision", help="fp32, fp16 or int8, of the arithmetic (default: the recipe's, or fp32)"
    )
    verb.add_argument(
        "--with-decision",
        action="store_true",
        help="let the graph give mask, score and verdict as well, for programs without this "
        "library (smallest area left out)",
    )
    verb.add_argument("--recipe", type=Path, metavar="FILE", help="the device an engine is for")
    verb.add_argument(
        "--compute-capability",
        metavar="SM86,SM120",
        help="GPUs of an rtx engine, beside the recipe",
    )
    verb.add_argument("--device", help="GPU an engine is built and compared on: cuda or cuda:N")
    options.add_tiles(
        verb,
        data="tiles that the model was not trained on, a data set or plain photographs: int8 takes "
        "its ranges from half of them, the others are compared",
        split="the split that the model was trained by: int8 takes its ranges from its training "
        "part, the others are compared; for a checkpoint, choose the thresholds on its validation "
        "part",
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
    options.check_output(arguments.out)
    module = options.import_extra("magtiles_seg.export.artefacts", "export")
    order = _order(arguments, params, module)
    from magtiles_seg import pipeline

    with bar("export", "step") as show:
        made = pipeline.export_artefact(
            params,
            arguments.model,
            arguments.out,
            order,
            manifest=arguments.split,
            data=arguments.data,
            name=arguments.name,
            progress=lambda _stage, done, total: show(done, total),
            note=remark,
        )
    manifest = made.manifest
    print(f"{made.path}: {order.precision}, compared on {made.proof}")
    for subject, figures in manifest.parity.items():
        if isinstance(figures, dict) and "dice" in figures:
            print(f"  {subject} on {figures['ran_on']}: {_figures(figures)}")
            print(f"    Dice by class: {_by_class(figures['per_class'])}")
    if "times_fp32" in manifest.parity:
        print(f"  {manifest.parity['times_fp32']:.2f} times the speed of fp32 on one core here")
    if "artefact" not in manifest.parity:
        print("  no GPU here that runs the engine: its ONNX graph was compared in its place")
    return options.ACCEPTED


def _figures(figures: dict[str, Any]) -> str:
    return (
        f"Dice {figures['dice']:.5f}, |difference of probability| max {figures['max_abs_diff']:.4f}"
        f" p99.9 {figures['p999_abs_diff']:.4f}, flipped verdicts {figures['flipped_verdicts']} of "
        f"{figures['pictures']}"
    )


def _by_class(per_class: dict[str, dict[str, float]]) -> str:
    return ", ".join(
        f"{name} {figures['dice']:.4f} ({figures['pictures']})"
        for name, figures in per_class.items()
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
        with_decision=arguments.with_decision,
        compute_capabilities=tuple(wanted.split(",")) if wanted else (),
        tolerance=parity.Tolerance.of(params.export, precision),
        min_speedup=params.export.int8_min_speedup if precision == "int8" else 0.0,
        **({} if arguments.device is None else {"device": arguments.device}),
    )


def _run_model_file(arguments: argparse.Namespace, params: Params) -> int:
    """Write a checkpoint as the one model file."""
    if arguments.model is None:
        raise ConfigError("--out NAME.onnx writes a checkpoint as the one model file: name --model")
    for option in ("to", "precision", "recipe", "compute_capability", "data", "device"):
        if getattr(arguments, option) is not None:
            raise ConfigError(
                f"--{option.replace('_', '-')} is for an artefact: give --out a folder, "
                f"got {arguments.out}"
            )
    options.check_output_file(arguments.out, ".onnx")
    options.import_extra("magtiles_seg.export.graph", "export")
    from magtiles_seg import pipeline

    made = pipeline.export(
        params,
        arguments.model,
        arguments.out,
        manifest=arguments.split,
        choice=arguments.choice,
        name=arguments.name,
        with_decision=arguments.with_decision,
        note=remark,
    )
    print(f"{made.path}: {_figures(made.parity.to_dict())}\n{made.card.decision}")
    return options.ACCEPTED
