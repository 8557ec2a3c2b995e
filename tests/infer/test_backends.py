from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray

from magtiles_seg.errors import ConfigError, InferenceError, ModelError
from magtiles_seg.infer.backends import base, open_backend
from magtiles_seg.infer.backends.base import FlippedBackend
from magtiles_seg.infer.segmenter import Segmenter
from magtiles_seg.model.bundled import BUNDLED_MODEL


@pytest.mark.parametrize(
    ("device", "parsed"), [("cpu", ("cpu", 0)), ("cuda", ("cuda", 0)), ("cuda:3", ("cuda", 3))]
)
def test_device_known_is_parsed(device: str, parsed: tuple[str, int]) -> None:
    assert base.parse_device(device) == parsed


@pytest.mark.parametrize("device", ["", "gpu", "cpu:1", "cuda:", "cuda:x", "CPU"])
def test_device_unknown_is_refused(device: str) -> None:
    with pytest.raises(ConfigError, match="unknown device"):
        base.parse_device(device)


def test_threads_below_one_is_refused() -> None:
    with pytest.raises(ConfigError, match="threads is 0; expected a whole number, at least 1"):
        base.check_threads(0)


@pytest.mark.parametrize(
    ("quota", "cores"), [("max 100000", 2), ("150000 100000", 1), ("50000 100000", 1), ("", 2)]
)
def test_available_cores_counts_cores_not_hardware_threads(
    quota: str, cores: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for cpu, siblings in enumerate(("0,2", "1,3", "0,2", "1,3")):
        folder = tmp_path / f"cpu{cpu}" / "topology"
        folder.mkdir(parents=True)
        (folder / "thread_siblings_list").write_text(siblings)
    (tmp_path / "cpu.max").write_text(quota)
    monkeypatch.setattr(base, "_TOPOLOGY", tmp_path)
    monkeypatch.setattr(base, "_QUOTA", tmp_path / "cpu.max")
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: {0, 1, 2, 3}, raising=False)
    assert base.available_cores() == cores


def test_available_cores_without_topology_counts_affinity(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(base, "_TOPOLOGY", tmp_path / "absent")
    monkeypatch.setattr(base, "_QUOTA", tmp_path / "absent")
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: {4, 5, 6}, raising=False)
    assert base.available_cores() == 3


@pytest.mark.parametrize(
    "images",
    [
        np.zeros((1, 32, 32), np.float32),
        np.zeros((32, 32), np.uint8),
        np.zeros((1, 31, 32), np.uint8),
        np.zeros((1, 32, 31), np.uint8),
        np.zeros((0, 32, 32), np.uint8),
        [[1]],
    ],
)
def test_images_that_do_not_fit_are_refused(images: Any) -> None:  # noqa: ANN401
    with pytest.raises(InferenceError, match="the model takes uint8 pictures"):
        base.check_images(images)


def test_open_backend_of_unknown_suffix_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match=r"name ending in \.safetensors or \.onnx"):
        open_backend(tmp_path / "model.pt")


def test_open_backend_of_unknown_name_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="unknown backend 'torch'"):
        open_backend(tmp_path / "model.onnx", backend="torch")


def test_open_backend_for_another_suffix_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"backend 'eager' runs \.safetensors files"):
        open_backend(tmp_path / "model.onnx", backend="eager")


@pytest.mark.parametrize("name", ["model.onnx", "model.safetensors"])
def test_open_backend_of_missing_file_is_file_not_found(name: str, tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=name):
        open_backend(tmp_path / name)


@pytest.mark.parametrize("name", ["model.onnx", "model.safetensors"])
def test_open_backend_of_directory_is_model_error(name: str, tmp_path: Path) -> None:
    (tmp_path / name).mkdir()
    with pytest.raises(ModelError, match="cannot read the model file"):
        open_backend(tmp_path / name)


class _Seen:
    """A model that answers with the grey level and, whatever it is shown, a slope to the right."""

    spec = Segmenter(BUNDLED_MODEL).spec

    def infer(self, images: NDArray[np.uint8]) -> tuple[NDArray[np.float32], NDArray[np.uint8]]:
        slope = np.linspace(0, 0.5, images.shape[2], dtype=np.float32)
        return (images / 510 + slope).astype(np.float32), np.ones_like(images)

    def close(self) -> None:
        raise InferenceError("closed")


@given(st.integers(0, 2**32 - 1), st.integers(1, 3), st.integers(32, 40), st.integers(32, 40))
def test_flipped_backend_turns_every_view_back(seed: int, n: int, height: int, width: int) -> None:
    images = np.random.default_rng(seed).integers(0, 256, (n, height, width), dtype=np.uint8)
    probability, classes = FlippedBackend(_Seen()).infer(images)
    assert np.allclose(probability, images / 510 + 0.25, atol=1e-6)  # the slope cancels out
    assert probability.dtype == np.float32
    assert (classes == 1).all()


def test_flipped_backend_closes_what_it_wraps() -> None:
    with pytest.raises(InferenceError, match="closed"):
        FlippedBackend(_Seen()).close()


def test_segmenter_with_flips_answers_a_mirrored_picture_with_the_mirrored_probability() -> None:
    image = np.random.default_rng(0).integers(60, 120, (96, 64), dtype=np.uint8)
    with Segmenter(flips=True) as segmenter:
        result, mirrored = segmenter(image), segmenter(image[:, ::-1].copy())
    assert np.allclose(result.probability, mirrored.probability[:, ::-1], atol=1e-5)
