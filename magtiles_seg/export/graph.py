"""The self-contained ONNX file: grey bytes in, answer out, the card inside."""

from __future__ import annotations

import contextlib
import copy
import io
import logging
import os
import warnings
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import numpy.typing as npt

from magtiles_seg.errors import BackendUnavailableError, ConfigError, ModelError
from magtiles_seg.export import decision_graph
from magtiles_seg.export.parity import ParityReport, Tolerance, check, compare, frozen_pictures
from magtiles_seg.export.sealed import has_decision, parse_sealed, sealed
from magtiles_seg.files import sha256_of, staged, write
from magtiles_seg.infer.backends.base import read_model
from magtiles_seg.infer.backends.eager import EagerBackend, InferenceGraph
from magtiles_seg.infer.backends.ort import OrtBackend
from magtiles_seg.infer.manifest import Manifest, manifest_path
from magtiles_seg.model.card import ModelCard
from magtiles_seg.model.checkpoint import load_checkpoint
from magtiles_seg.model.ensemble import Ensemble, Network
from magtiles_seg.model.stored import compact

__all__ = [
    "OPSET",
    "PRECISIONS",
    "InferenceGraph",
    "build_onnx",
    "checkpoint_onnx",
    "export_onnx",
    "rewrite_card",
]

try:
    import onnx
    import onnx_ir as ir
    import torch
    from onnx_ir.passes.common import (
        CommonSubexpressionEliminationPass,
        DeduplicateInitializersPass,
        RemoveUnusedNodesPass,
    )
    from torch import Tensor, nn
    from torch.nn.utils import fuse_conv_bn_eval
except ImportError as error:
    raise BackendUnavailableError(
        "export needs torch, onnx and onnxscript: pip install 'magtiles-seg[export]'"
    ) from error

OPSET = 18
"""The exporter's native operator set, within what onnxruntime, OpenVINO and TensorRT 10 read."""

PRECISIONS = ("fp16", "fp32")
"""How weights may be stored. The arithmetic is fp32 with either."""


def export_onnx(
    checkpoint: str | os.PathLike[str],
    path: str | os.PathLike[str],
    *,
    card: ModelCard | None = None,
    precision: str = "fp16",
    with_decision: bool = False,
    tolerance: Tolerance | None = None,
    pictures: Sequence[npt.NDArray[np.uint8]] | None = None,
) -> ParityReport:
    """Write a checkpoint as one ONNX file, if it answers as the checkpoint does.

    Args:
        checkpoint: A `.safetensors` file that training wrote.
        path: Where to write; an older file is replaced, and only by a whole and proved one.
        card: What the file is to say about itself; None: what the checkpoint tells. Architecture,
            labels, stride, receptive field and the weights' hash always come from the checkpoint.
        precision: One of `PRECISIONS`, of the stored weights.
        with_decision: Whether the graph gives mask, score and verdict as well.
        tolerance: How far the file may stray from eager fp32; None: the defaults.
        pictures: (H, W) uint8 each, on which both are compared; None: `parity.frozen_pictures()`.

    Returns:
        The comparison that the file has passed.

    Raises:
        FileNotFoundError: There is no such checkpoint.
        ModelError: The checkpoint is damaged, or its graph is not valid ONNX.
        ParityError: The file answers differently; nothing is written.
    """
    path = Path(path)
    reference = EagerBackend(Path(checkpoint))
    card = _with_facts(card or reference.spec.card, reference.spec.card)
    images = frozen_pictures() if pictures is None else pictures
    data = build_onnx(load_checkpoint(checkpoint)[0], card, precision=precision)
    if with_decision:
        data = decision_graph.with_decision(data)
        decision_graph.check_decision(data, images)
    with staged(path, durable=True) as part:
        part.write_bytes(data)
        candidate = OrtBackend(part)
        report = compare(reference, candidate, images, decision=card.decision)
        candidate.close()
        check(report, tolerance or Tolerance())
    return report


def checkpoint_onnx(checkpoint: str | os.PathLike[str], card: ModelCard | None = None) -> bytes:
    """Return a checkpoint as a sealed fp32 ONNX file, from which other precisions are made.

    Args:
        checkpoint: As for `export_onnx`.
        card: Likewise.

    Raises:
        FileNotFoundError: There is no such checkpoint.
        ModelError: The checkpoint is damaged, or its graph is not valid ONNX.
    """
    facts = EagerBackend(Path(checkpoint)).spec.card
    network, _ = load_checkpoint(checkpoint)
    return build_onnx(network, _with_facts(card or facts, facts), precision="fp32")


def build_onnx(network: Network, card: ModelCard, *, precision: str = "fp16") -> bytes:
    """Return a network as a sealed ONNX file.

    Args:
        network: What a checkpoint holds.
        card: Goes into the file's metadata.
        precision: One of `PRECISIONS`, of the stored weights.

    Raises:
        ConfigError: The precision is unknown.
        ModelError: The graph is not valid ONNX, or has operators of a vendor.
    """
    if precision not in PRECISIONS:
        raise ConfigError(f"unknown precision {precision!r}: expected one of {PRECISIONS}")
    image = torch.zeros(2, 75, 107, dtype=torch.uint8)  # No multiple of a stride, so that it pads.
    graph = InferenceGraph(_light(network))
    share = isinstance(network, Ensemble)
    model = trace(graph, image, ["probability", "classes"], least_px=32, share=share)
    if precision == "fp16":
        compact(model)
    domains = {node.domain for node in model.graph.node} - {""}
    if domains or model.functions:
        raise ModelError(f"the graph uses operators outside standard ONNX: {sorted(domains)}")
    try:
        onnx.checker.check_model(model, full_check=True)
    except (onnx.checker.ValidationError, onnx.shape_inference.InferenceError) as error:
        raise ModelError(f"the exported graph is not valid ONNX: {error}") from error
    return sealed(model, card)


def rewrite_card(path: str | os.PathLike[str], card: ModelCard) -> None:
    """Give an exported file other thresholds, metrics or remarks, without exporting it again.

    A decision in its graph follows, and the manifest beside it, where there is one.

    Args:
        path: A file that `export_onnx` wrote.
        card: The new card. What it says of the network itself stays as the file has it.

    Raises:
        FileNotFoundError: There is no such file.
        ModelError: The file is damaged, or not a model of this package; or its manifest is.
    """
    path = Path(path)
    model, facts = parse_sealed(read_model(path), str(path))
    if has_decision(model):
        decision_graph.remove_decision(model)
        decision_graph.add_decision(model, card.decision)
    card = _with_facts(card, facts)
    data = sealed(model, card)
    manifest = Manifest.read(path) if manifest_path(path).exists() else None
    write(path, data, durable=True)
    if manifest is not None:
        digest = sha256_of(data)
        replace(manifest, sha256=digest, onnx_sha256=digest, card=card).write(path)


def _with_facts(card: ModelCard, facts: ModelCard) -> ModelCard:
    return replace(
        card,
        architecture=facts.architecture,
        labels=facts.labels,
        stride=facts.stride,
        receptive_field_px=facts.receptive_field_px,
        weights_sha256=facts.weights_sha256,
        calibration=facts.calibration,
    )


class _Clip(nn.Module):
    """ReLU6 as the ONNX operator: to trace torch's through symbolic sizes takes twice the time."""

    def forward(self, x: Tensor) -> Tensor:
        bounds = (torch.zeros(()), torch.full((), 6.0))
        clip = torch.onnx.ops.symbolic
        return clip("Clip", (x, *bounds), dtype=x.dtype, shape=x.shape, version=13)


def _light(network: Network) -> Network:
    """Return a copy that is quicker to trace, and cannot run: batch norms are folded."""
    copied = copy.deepcopy(network).eval()
    for module in list(copied.modules()):
        for name, child in module.named_children():
            if isinstance(child, nn.ReLU6):
                setattr(module, name, _Clip())
            elif isinstance(child, nn.BatchNorm2d) and isinstance(module, nn.Sequential):
                before = module[int(name) - 1]
                assert isinstance(before, nn.Conv2d)
                module[int(name) - 1] = fuse_conv_bn_eval(before, child)
                module[int(name)] = nn.Identity()
    return copied


def trace(
    graph: nn.Module,
    image: Tensor,
    outputs: Sequence[str],
    *,
    least_px: int,
    step_px: int = 1,
    share: bool = False,
) -> onnx.ModelProto:
    """Return a module as a graph whose batch, height and width are dynamic.

    Args:
        graph: Takes (N, H, W) uint8.
        image: What it is traced with.
        outputs: Their names.
        least_px: Smallest side.
        step_px: What sides are multiples of.
        share: Whether what parts of it compute alike is computed once; one name of weights is left.
    """
    dim = torch.export.Dim
    sides = [dim(name, min=least_px // step_px) for name in ("height", "width")]
    if step_px > 1:
        sides = [side * step_px for side in sides]
    with _quiet():
        program = torch.onnx.export(
            graph.eval(),
            (image,),
            dynamo=True,
            opset_version=OPSET,
            input_names=["image"],
            output_names=list(outputs),
            dynamic_shapes={"image": {0: dim("batch"), 1: sides[0], 2: sides[1]}},
            verbose=False,
        )
    if program is None:
        raise ModelError(
            "torch.onnx.export returned no program: check the versions of torch and onnxscript"
        )
    if share:
        _share(program.model)
    model: onnx.ModelProto = program.model_proto
    _tidy(model)
    return model


def _share(model: ir.Model) -> None:
    """Compute once what parts of a graph compute alike, as an ensemble's frozen first layers."""
    everything = 2**31
    passes = ir.passes.Sequential(
        DeduplicateInitializersPass(size_limit=everything),
        CommonSubexpressionEliminationPass(),
        RemoveUnusedNodesPass(),
    )
    passes(model)


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Hold back the exporter's remarks on absent packages and on its own deprecations."""
    logger = logging.getLogger("torch.onnx")
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings(), contextlib.redirect_stdout(io.StringIO()):
            warnings.simplefilter("ignore")
            yield
    finally:
        logger.setLevel(level)


def _tidy(model: onnx.ModelProto) -> None:
    """Drop what the exporter left for debugging, such as source lines; name the outputs' axes."""
    graph = model.graph
    for entry in (model, graph, *graph.node, *graph.input, *graph.output, *graph.initializer):
        entry.ClearField("doc_string")
        entry.ClearField("metadata_props")
    graph.ClearField("value_info")
    model.producer_name, model.producer_version = "magtiles-seg", ""
    graph.name = "magtiles_seg"
    for output in graph.output:
        for axis, name in zip(
            output.type.tensor_type.shape.dim, ("batch", "height", "width"), strict=True
        ):
            axis.dim_param = name
