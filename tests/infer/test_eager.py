from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

from magtiles_seg.errors import BackendUnavailableError, InferenceError, ModelError
from magtiles_seg.infer.backends.eager import EagerBackend, card_of
from magtiles_seg.model.checkpoint import load_checkpoint
from magtiles_seg.model.network import build_network

PICTURE = np.random.default_rng(0).integers(0, 256, (2, 37, 50), np.uint8)


def test_infer_equals_network_on_mirrored_picture(checkpoint: Path) -> None:
    probability, classes = EagerBackend(checkpoint).infer(PICTURE)
    network, _ = load_checkpoint(checkpoint)
    padded = np.pad(PICTURE, ((0, 0), (0, 48 - 37), (0, 64 - 50)), mode="reflect")
    with torch.inference_mode():
        defect, class_logits = network(torch.from_numpy(padded)[:, None].float())
    expected = torch.sigmoid(defect)[:, 0, :37, :50].numpy()
    expected_classes = 1 + class_logits.argmax(1).numpy().repeat(4, 1).repeat(4, 2)[:, :37, :50]
    assert np.abs(probability - expected).max() <= 1e-6
    assert (classes == expected_classes).all()
    assert (probability.dtype.name, classes.dtype.name) == ("float32", "uint8")


def test_spec_tells_what_runs(checkpoint: Path) -> None:
    spec = EagerBackend(checkpoint).spec
    assert (spec.name, spec.device) == ("eager", "cpu")
    assert spec.card.name == "nano"
    assert spec.card.weights_sha256 == spec.sha256


def test_card_takes_known_fields_and_keeps_the_rest_as_training() -> None:
    meta = {"name": "x", "decision": {"threshold": 0.3}, "training": {"seed": 1}, "epoch": 9}
    card = card_of(build_network("nano"), meta, name="unused")
    assert (card.name, card.decision.threshold) == ("x", 0.3)
    assert card.training == {"seed": 1, "epoch": 9}


def test_card_of_senseless_decision_is_model_error() -> None:
    with pytest.raises(ModelError, match="metadata are damaged: threshold is 3"):
        card_of(build_network("nano"), {"decision": {"threshold": 3}}, name="x")


def test_damaged_checkpoint_is_model_error(checkpoint: Path, tmp_path: Path) -> None:
    path = tmp_path / "cut.safetensors"
    path.write_bytes(checkpoint.read_bytes()[:1000])
    with pytest.raises(ModelError, match=r"cut\.safetensors"):
        EagerBackend(path)


def test_cuda_absent_is_backend_unavailable(
    checkpoint: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 0)
    with pytest.raises(BackendUnavailableError, match="torch sees 0 CUDA devices"):
        EagerBackend(checkpoint, device="cuda")


def test_closed_backend_refuses_to_run(checkpoint: Path) -> None:
    backend = EagerBackend(checkpoint)
    backend.close()
    with pytest.raises(InferenceError, match="is closed"):
        backend.infer(PICTURE)


def test_torch_missing_names_the_install() -> None:
    code = (
        "import sys; sys.modules['torch'] = None\n"
        "try: import magtiles_seg.infer.backends.eager\n"
        "except ImportError as error: print(error)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert "pip install 'magtiles-seg[train]'" in done.stdout
