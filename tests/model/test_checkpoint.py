from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from magtiles_seg.errors import ConfigError, ModelError
from magtiles_seg.evaluate.calibration import Affine
from magtiles_seg.infer.backends.eager import EagerBackend
from magtiles_seg.model import checkpoint
from magtiles_seg.model.checkpoint import (
    calibrate_checkpoint,
    load_checkpoint,
    read_meta,
    save_checkpoint,
    write_tensors,
)
from magtiles_seg.model.network import build_network


def test_checkpoint_saved_and_loaded_is_the_same_network(tmp_path: Path) -> None:
    network = build_network("nano", labels=("background", "scratch")).eval()
    save_checkpoint(tmp_path / "a.safetensors", network, {"epoch": 3})
    loaded, meta = load_checkpoint(tmp_path / "a.safetensors")
    assert (loaded.architecture, loaded.labels, meta["epoch"]) == ("nano", network.labels, 3)
    for name, tensor in network.state_dict().items():
        assert torch.equal(loaded.state_dict()[name], tensor)
    assert [file.name for file in tmp_path.iterdir()] == ["a.safetensors"]


def test_checkpoint_with_the_former_names_of_its_tensors_is_read(tmp_path: Path) -> None:
    network = build_network("nano").eval()
    meta = {"architecture": "nano", "labels": list(network.labels)}
    former = {
        name.replace("class_head.", "kind_head."): tensor
        for name, tensor in network.state_dict().items()
    }
    write_tensors(tmp_path / "a.safetensors", former, meta)
    loaded, _ = load_checkpoint(tmp_path / "a.safetensors")
    assert torch.equal(loaded.state_dict()["class_head.weight"], network.class_head.weight)


def test_checkpoint_missing_is_a_missing_file(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="no checkpoint"):
        load_checkpoint(tmp_path / "none.safetensors")


def test_checkpoint_truncated_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "a.safetensors"
    save_checkpoint(path, build_network("nano"), {})
    path.write_bytes(path.read_bytes()[:-100])
    with pytest.raises(ModelError, match=r"no readable safetensors file"):
        load_checkpoint(path)


def test_header_is_read_alone_and_of_a_truncated_file_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "a.safetensors"
    save_checkpoint(path, build_network("nano"), {"epoch": 3})
    with monkeypatch.context() as patch:
        patch.setattr(checkpoint, "present_name", None)  # what every tensor that is read goes by
        assert read_meta(path)["epoch"] == 3
    path.write_bytes(path.read_bytes()[:-100])
    with pytest.raises(ModelError, match=r"no readable safetensors file"):
        read_meta(path)


def test_checkpoint_of_another_program_is_refused(tmp_path: Path) -> None:
    save_file({"weight": torch.zeros(2)}, tmp_path / "foreign.safetensors")
    with pytest.raises(ModelError, match="expected a checkpoint of magtiles-seg train"):
        load_checkpoint(tmp_path / "foreign.safetensors")


def test_checkpoint_of_another_architecture_is_refused(tmp_path: Path) -> None:
    network = build_network("nano")
    network.architecture = "lite0"
    save_checkpoint(tmp_path / "a.safetensors", network, {})
    with pytest.raises(ModelError, match="does not hold a network of this version") as caught:
        load_checkpoint(tmp_path / "a.safetensors")
    message = str(caught.value).removeprefix(str(tmp_path))
    assert "weights are another network's" in message
    assert len(message) < 200  # not every weight by its name


def test_checkpoint_whose_header_is_no_mapping_is_refused(tmp_path: Path) -> None:
    write_tensors(tmp_path / "a.safetensors", {}, [])  # type: ignore[arg-type]
    with pytest.raises(ModelError, match=r"damaged header \(no mapping\)"):
        load_checkpoint(tmp_path / "a.safetensors")


@pytest.mark.parametrize("labels", ["nano", ["background"], [*map(str, range(256))], ["a", 1]])
def test_checkpoint_whose_labels_are_no_names_is_refused(labels: object, tmp_path: Path) -> None:
    write_tensors(tmp_path / "a.safetensors", {}, {"architecture": "nano", "labels": labels})
    with pytest.raises(ModelError, match=r"\((labels must be a list of 2 to|expected a text)"):
        load_checkpoint(tmp_path / "a.safetensors")


def test_calibrated_checkpoint_answers_with_the_mapped_probability(
    checkpoint: Path, tmp_path: Path
) -> None:
    target = tmp_path / "calibrated.safetensors"
    calibrate_checkpoint(checkpoint, target, scale=0.6, bias=-0.4)
    images = np.random.default_rng(0).integers(0, 256, (1, 40, 56)).astype(np.uint8)
    before, after = EagerBackend(checkpoint), EagerBackend(target)
    (raw, expected_classes), (mapped, same) = before.infer(images), after.infer(images)
    assert mapped == pytest.approx(Affine(0.6, -0.4)(raw), abs=1e-5)
    assert np.array_equal(expected_classes, same)
    assert after.spec.card.calibration == {"scale": 0.6, "bias": -0.4}
    with pytest.raises(ModelError, match="is calibrated already"):
        calibrate_checkpoint(target, tmp_path / "twice.safetensors", scale=1, bias=0)


def test_calibration_that_turns_the_order_round_is_refused(
    checkpoint: Path, tmp_path: Path
) -> None:
    with pytest.raises(ConfigError, match="expected finite numbers, and a scale above 0"):
        calibrate_checkpoint(checkpoint, tmp_path / "x.safetensors", scale=-1, bias=0)


def test_checkpoint_that_cannot_be_opened_is_a_model_error(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "model.safetensors"
    save_checkpoint(path, build_network("nano"), {})

    def refuse(*_: object, **__: object) -> None:
        raise PermissionError(13, "Permission denied", str(path))

    monkeypatch.setattr(Path, "open", refuse)
    with pytest.raises(ModelError, match=r"no readable safetensors file .*Permission denied"):
        load_checkpoint(path)
