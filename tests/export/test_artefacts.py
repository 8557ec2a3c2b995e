from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import ClassVar

import numpy as np
import pytest
from onnx import ModelProto, numpy_helper

from magtiles_seg.errors import BackendUnavailableError, ConfigError, ParityError
from magtiles_seg.export import artefacts
from magtiles_seg.export.engine import Recipe
from magtiles_seg.export.graph import rewrite_card
from magtiles_seg.export.parity import TileSet, Tolerance
from magtiles_seg.export.sealed import parse_sealed, sealed
from magtiles_seg.files import sha256_of
from magtiles_seg.infer.backends.ort import OrtBackend
from magtiles_seg.infer.manifest import Manifest

LOOSE = Tolerance(min_dice=0.8, max_abs_diff=0.5, max_flipped_fraction=1)
PICTURES = tuple(np.random.default_rng(0).integers(0, 256, (2, 64, 70), np.uint8))
TILES = TileSet(pictures=PICTURES, classes=("crack", "free"), origin="synthetic")


def order(precision: str, target: str = "onnx", **parts: object) -> artefacts.Order:
    return artefacts.Order(target=target, precision=precision, tolerance=LOOSE, **parts)  # type: ignore[arg-type]


@pytest.mark.parametrize("precision", ["fp32", "fp16", "int8"])
def test_export_writes_artefact_and_manifest(precision: str, model: Path, tmp_path: Path) -> None:
    path, manifest = artefacts.export_artefact(
        model, tmp_path / "out", order(precision), proof=TILES, int8_tiles=TILES
    )
    assert path == tmp_path / "out" / f"nano-{precision}.onnx"
    assert sorted(entry.name for entry in path.parent.iterdir()) == [path.name, f"{path.name}.json"]
    assert Manifest.read(path) == manifest
    assert manifest.sha256 == sha256_of(path.read_bytes()) == manifest.onnx_sha256
    assert manifest.precision == OrtBackend(path).spec.precision == precision
    assert manifest.environment["runtime"] == "onnxruntime"
    assert manifest.card == OrtBackend(model).spec.card
    assert manifest.parity["tiles"] == "2 synthetic tiles"
    assert manifest.parity["artefact"]["ran_on"] == "CPUExecutionProvider"
    assert set(manifest.parity["artefact"]["per_class"]) == {"crack", "free"}
    assert ("rehearsal" in manifest.parity) == (precision == "fp16")


def test_rewritten_card_leaves_a_true_manifest(model: Path, tmp_path: Path) -> None:
    path, manifest = artefacts.export_artefact(model, tmp_path, order("fp32"), proof=TILES)
    rewrite_card(path, replace(manifest.card, name="renamed"))
    changed = Manifest.read(path)
    assert changed.sha256 == changed.onnx_sha256 == sha256_of(path.read_bytes())
    assert changed == replace(
        manifest,
        card=replace(manifest.card, name="renamed"),
        sha256=changed.sha256,
        onnx_sha256=changed.sha256,
    )


def test_export_of_a_checkpoint_compares_with_eager_torch(checkpoint: Path, tmp_path: Path) -> None:
    path, manifest = artefacts.export_artefact(checkpoint, tmp_path, order("fp32"), proof=TILES)
    assert 0 < manifest.parity["artefact"]["max_abs_diff"] <= 1e-5
    assert OrtBackend(path).spec.card.weights_sha256 == manifest.card.weights_sha256 != ""


def scaled(factor: float) -> Callable[..., bytes]:
    """Return a `convert` that multiplies the defect head's weights and sets its bias."""

    def convert(data: bytes, *_: object, **__: object) -> bytes:
        content: ModelProto
        content, card = parse_sealed(data, "model")
        for tensor in content.graph.initializer:
            if tensor.name.startswith("network.defect_head.bias"):
                values = np.full(tensor.dims, factor, np.float32)
                tensor.CopyFrom(numpy_helper.from_array(values, tensor.name))
        return sealed(content, card)

    return convert


@pytest.mark.parametrize(("bias", "message"), [(-1e4, "Dice 0, expected"), (np.nan, "no answer")])
def test_export_of_a_black_or_broken_mask_writes_nothing(
    bias: float, message: str, model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(artefacts, "convert", scaled(bias))
    with pytest.raises(ParityError, match=message):
        artefacts.export_artefact(model, tmp_path, order("fp16"), proof=TILES)
    assert list(tmp_path.iterdir()) == []


def test_export_that_fails_leaves_the_older_artefact(
    model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path, manifest = artefacts.export_artefact(model, tmp_path, order("fp32"), proof=TILES)
    before = path.read_bytes()
    monkeypatch.setattr(artefacts, "convert", scaled(-1e4))
    with pytest.raises(ParityError):
        artefacts.export_artefact(model, tmp_path, order("fp32"), proof=TILES)
    assert path.read_bytes() == before
    assert Manifest.read(path) == manifest
    assert len(list(tmp_path.iterdir())) == 2


def test_export_has_nothing_in_a_servers_folder_before_it_is_proved(
    model: Path, tmp_path: Path
) -> None:
    stages, seen = set[str](), list[Path]()

    def look(stage: str, _done: int, _total: int) -> None:
        stages.add(stage)
        seen.extend(path for path in tmp_path.rglob("*") if path.is_file())

    made = order("fp32", "triton")
    path, _ = artefacts.export_artefact(model, tmp_path, made, proof=TILES, progress=look)
    assert path.is_file()
    assert "compare" in stages
    assert seen == []


def test_export_of_what_is_not_faster_writes_nothing(model: Path, tmp_path: Path) -> None:
    with pytest.raises(ParityError, match=r"times the speed of fp32 on onnxruntime here, expected"):
        artefacts.export_artefact(
            model, tmp_path, order("fp32", min_speedup=99), proof=TILES, int8_tiles=TILES
        )
    assert list(tmp_path.iterdir()) == []
    _, manifest = artefacts.export_artefact(
        model, tmp_path, order("fp32", min_speedup=1e-3), proof=TILES
    )
    assert manifest.parity["times_fp32"] > 0


class BuiltEngine:
    plan = b"plan"
    timing_cache = b"measured"
    facts: ClassVar[dict[str, object]] = {
        "environment": {"runtime": "tensorrt", "compute_capability": "SM89"},
        "profile": {"min": [1, 32, 32], "opt": [1, 64, 64], "max": [1, 99, 99]},
        "recipe": {"name": "l4"},
        "build_seconds": 1.0,
    }


@pytest.fixture
def builds(monkeypatch: pytest.MonkeyPatch) -> list[dict[str, object]]:
    """Stands in for the builder; holds what it was called with."""
    from magtiles_seg.export import engine

    calls: list[dict[str, object]] = []

    def build_engine(data: bytes, recipe: Recipe, **options: object) -> BuiltEngine:
        calls.append({"data": data, "recipe": recipe, **options})
        return BuiltEngine()

    monkeypatch.setattr(engine, "build_engine", build_engine)
    return calls


def unavailable(*_: object) -> None:
    raise BackendUnavailableError("no GPU")


def test_export_of_an_rtx_engine_without_gpu_compares_its_graph(
    model: Path, tmp_path: Path, builds: list[dict[str, object]], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(artefacts, "_open", unavailable)
    wanted = order("fp16", "rtx", recipe=Recipe(name="l4"), compute_capabilities=("SM89",))
    path, manifest = artefacts.export_artefact(model, tmp_path, wanted, proof=TILES)
    assert path.name == "nano-fp16-l4.engine"
    assert path.read_bytes() == b"plan"
    assert path.with_name("nano-fp16.onnx").read_bytes() == builds[0]["data"]
    assert manifest.onnx_sha256 == sha256_of(builds[0]["data"])
    assert manifest.environment == BuiltEngine.facts["environment"]
    assert manifest.profile == BuiltEngine.facts["profile"]
    assert set(manifest.parity) == {"tiles", "tolerance", "rehearsal", "onnx"}
    assert builds[0]["compute_capabilities"] == ("SM89",)


def test_export_of_a_tensorrt_engine_that_cannot_run_writes_none(
    model: Path, tmp_path: Path, builds: list[dict[str, object]], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(artefacts, "_open", unavailable)
    for _ in range(2):
        with pytest.raises(BackendUnavailableError, match="no GPU"):
            artefacts.export_artefact(model, tmp_path, order("fp32", "tensorrt"), proof=TILES)
    assert [entry.name for entry in tmp_path.iterdir()] == ["nano-fp32.timing"]
    assert [call["timing_cache"] for call in builds] == [None, b"measured"]


def test_order_of_unknown_target_is_config_error() -> None:
    with pytest.raises(ConfigError, match="unknown target 'coreml'"):
        order("fp16", "coreml")


def test_order_of_a_recipe_for_onnx_is_config_error() -> None:
    with pytest.raises(ConfigError, match="are for an engine, got target 'onnx'"):
        order("fp16", recipe=Recipe(name="l4"))
