from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from magtiles_seg.errors import ModelError
from magtiles_seg.export.precision import convert
from magtiles_seg.infer.backends.eager import EagerBackend, InferenceGraph
from magtiles_seg.model.bundled import BUNDLED_MODELS
from magtiles_seg.model.checkpoint import save_checkpoint
from magtiles_seg.model.network import SegmentationNetwork, build_network
from magtiles_seg.model.warmstart import start_from

PICTURES = list(np.random.default_rng(0).integers(0, 256, (4, 96, 224), np.uint8))


def answer(network: SegmentationNetwork) -> NDArray[np.float32]:
    with torch.inference_mode():
        probability, _ = InferenceGraph(network).eval()(torch.from_numpy(np.stack(PICTURES)))
    return np.asarray(probability)


@pytest.mark.parametrize("kind", ["checkpoint", "model"])
def test_network_started_from_a_file_answers_as_the_file(
    kind: str, request: pytest.FixtureRequest
) -> None:
    path: Path = request.getfixturevalue(kind)
    network = build_network("nano")
    before = answer(network)
    start_from(network, path, PICTURES)
    wanted, _ = EagerBackend(request.getfixturevalue("checkpoint")).infer(np.stack(PICTURES))
    assert np.abs(answer(network) - wanted).max() < 0.005
    assert np.abs(before - wanted).max() > 0.1


def test_network_started_from_an_onnx_file_can_be_trained(model: Path) -> None:
    network = build_network("nano")
    start_from(network, model, PICTURES)
    batch = torch.from_numpy(
        np.stack([np.pad(one, [(0, 128), (0, 0)], "symmetric") for one in PICTURES])
    )
    batch = batch[:, None].float()
    with torch.no_grad():
        settled, _ = network.eval()(batch)
        training, _ = network.train()(batch)
    assert (settled - training).abs().max() < 0.05 * settled.abs().max()


def test_head_of_other_classes_stays_fresh(checkpoint: Path, model: Path) -> None:
    for path in (checkpoint, model):
        network = build_network("nano", labels=("background", "stain", "hole"))
        fresh = network.class_head.weight.clone()
        start_from(network, path, PICTURES)
        assert torch.equal(network.class_head.weight, fresh)
        assert network.defect_head.weight.abs().sum() > 0


@pytest.mark.parametrize("name", BUNDLED_MODELS)
def test_bundled_model_starts_a_network_of_its_architecture(name: str) -> None:
    network = build_network(name)
    start_from(network, BUNDLED_MODELS[name], PICTURES)
    assert np.isfinite(answer(network)).all()


def test_smaller_network_starts_from_the_encoder_of_lite0_with_fresh_heads(tmp_path: Path) -> None:
    path = tmp_path / "lite0.safetensors"
    teacher, network = build_network("lite0"), build_network("small")
    torch.nn.init.normal_(teacher.class_head.weight)
    save_checkpoint(path, teacher, {})
    fresh = {name: weight.clone() for name, weight in network.state_dict().items()}
    start_from(network, path, PICTURES)
    taken = teacher.encoder.state_dict()
    for name, weight in network.encoder.state_dict().items():
        assert torch.equal(weight, taken[name])
    for name, weight in network.state_dict().items():
        assert name.startswith("encoder.") or torch.equal(weight, fresh[name])


def test_lite0_does_not_start_from_small(tmp_path: Path) -> None:
    path = tmp_path / "small.safetensors"
    save_checkpoint(path, build_network("small"), {})
    with pytest.raises(ModelError, match=r"does not fit a 'lite0' network .* own, small$"):
        start_from(build_network("lite0"), path, PICTURES)


def test_start_from_an_older_network_of_the_same_name_says_that_it_is_another_version(
    tmp_path: Path,
) -> None:
    path = tmp_path / "small.safetensors"
    network = build_network("small")
    network.detail = None  # as before it saw the whole picture
    save_checkpoint(path, network, {})
    with pytest.raises(ModelError, match="it is of another version of that network"):
        start_from(build_network("small"), path, PICTURES)


@pytest.mark.parametrize("kind", ["checkpoint", "model"])
def test_start_from_another_architecture_is_model_error(
    kind: str, request: pytest.FixtureRequest
) -> None:
    with pytest.raises(ModelError, match="does not fit a 'lite0' network"):
        start_from(build_network("lite0"), request.getfixturevalue(kind), PICTURES)


@pytest.mark.parametrize("precision", ["fp16", "int8"])
def test_start_from_a_file_of_reduced_arithmetic_is_model_error(
    model: Path, tmp_path: Path, precision: str
) -> None:
    path = tmp_path / "reduced.onnx"
    path.write_bytes(convert(model.read_bytes(), precision, pictures=PICTURES))
    network = build_network("nano")
    with pytest.raises(ModelError, match=r"reduced\.onnx computes in less than fp32.*: start from"):
        start_from(network, path, PICTURES)


def test_start_from_a_missing_file_says_so(tmp_path: Path) -> None:
    for name in ("no.onnx", "no.safetensors"):
        with pytest.raises(FileNotFoundError, match=name):
            start_from(build_network("nano"), tmp_path / name, PICTURES)
