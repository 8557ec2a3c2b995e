from __future__ import annotations

import logging
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from fake_cuda import FakeCuda
from fake_tensorrt import VERSIONS
from made_engines import ELEVEN, RECIPE, RTX, TEN, Pictures, pictures, write_engine

from magtiles_seg.errors import (
    InferenceError,
)
from magtiles_seg.files import sha256_of
from magtiles_seg.infer.backends import open_backend
from magtiles_seg.infer.backends.ort import OrtBackend
from magtiles_seg.infer.backends.trt import TrtBackend
from magtiles_seg.infer.manifest import Manifest
from magtiles_seg.infer.segmenter import Segmenter


@pytest.mark.parametrize("version", VERSIONS)
def test_infer_equals_onnxruntime_with_and_without_graph(
    version: str, install: Callable[[str], Any], model: Path, tmp_path: Path
) -> None:
    install(version)
    flavour = "rtx" if version == RTX else "tensorrt"
    backend = TrtBackend(write_engine(tmp_path, model, flavour=flavour))
    reference = OrtBackend(model, threads=1)
    for seed in range(4):
        images = pictures(2, seed=seed)
        probability, classes = backend.infer(images)
        expected, expected_classes = reference.infer(images)
        assert np.array_equal(probability, expected)
        assert np.array_equal(classes, expected_classes)
        assert (probability.dtype, classes.dtype) == (expected.dtype, expected_classes.dtype)


def test_spec_tells_what_runs(engine: Path) -> None:
    spec = open_backend(engine).spec
    assert (spec.name, spec.device, spec.provider) == ("tensorrt", "cuda:0", TEN)
    assert spec.sha256 == sha256_of(engine.read_bytes())
    assert spec.card.architecture == "nano"
    assert spec.precision == Manifest.read(engine).precision == "fp16"


def test_segmenter_takes_engine(engine: Path, model: Path) -> None:
    picture = pictures(1)[0]
    with Segmenter(engine) as segmenter, Segmenter(model, threads=1) as reference:
        assert (segmenter(picture).mask == reference(picture).mask).all()


def test_infer_in_steady_state_allocates_nothing(engine: Path, cuda: FakeCuda) -> None:
    backend = TrtBackend(engine)
    allocated = ("cudaMalloc", "cudaHostAlloc", "cudaStreamCreateWithFlags", "cudaFree")
    before = [cuda.counts[name] for name in allocated]
    for shape in ((1, 48, 64), (2, 40, 56)):
        for seed in range(5):
            backend.infer(pictures(*shape, seed=seed))
    assert [cuda.counts[name] for name in allocated] == before
    assert cuda.counts["cudaStreamBeginCapture"] == 2
    assert cuda.counts["cudaGraphLaunch"] == 2 * 4


def test_infer_captures_each_shape_once_and_then_only_launches(
    engine: Path, cuda: FakeCuda
) -> None:
    backend = TrtBackend(engine)
    for _ in range(2):
        backend.infer(pictures(1))
    copies = cuda.counts["cudaMemcpyAsync"]
    for _ in range(3):
        backend.infer(pictures(1))
    assert cuda.counts["cudaGraphInstantiate"] == 1
    assert cuda.counts["cudaMemcpyAsync"] == copies


def test_capture_that_fails_leaves_the_engine_running_with_one_warning(
    engine: Path, model: Path, cuda: FakeCuda, caplog: pytest.LogCaptureFixture
) -> None:
    cuda.captures = False
    backend, images = TrtBackend(engine), pictures(1)
    expected, _ = OrtBackend(model).infer(images)
    with caplog.at_level(logging.WARNING):
        answers = [backend.infer(images)[0] for _ in range(4)]
        answers.append(backend.infer(np.pad(images, ((0, 0), (0, 8), (0, 0))))[0][:, :48])
    assert all((answer == expected).all() for answer in answers[:4])
    assert len(caplog.records) == 1
    assert "cudaErrorStreamCaptureUnsupported" in caplog.text
    assert "runs without graphs" in caplog.text
    assert cuda.counts["cudaGraphLaunch"] == 0
    backend.close()
    assert cuda.held == 0


def test_infer_of_shape_seen_once_is_not_captured(engine: Path, cuda: FakeCuda) -> None:
    backend = TrtBackend(engine)
    for height in range(40, 60):
        backend.infer(pictures(1, height=height))
    assert cuda.counts["cudaStreamBeginCapture"] == 0


def test_graphs_beyond_the_limit_drop_the_shape_used_longest_ago(
    engine: Path, cuda: FakeCuda
) -> None:
    backend = TrtBackend(engine)
    for height in range(32, 42):
        for seed in range(3):
            backend.infer(pictures(1, height=height, seed=seed))
    assert len(cuda.graphs) == 8
    backend.infer(pictures(1, height=41))
    assert cuda.counts["cudaGraphInstantiate"] == 10
    for _ in range(2):
        backend.infer(pictures(1, height=32))
    assert cuda.counts["cudaGraphInstantiate"] == 11
    backend.close()
    assert cuda.held == 0


def test_infer_of_great_batch_runs_in_parts(engine: Path, model: Path) -> None:
    images = pictures(7)
    answer, _ = TrtBackend(engine).infer(images)
    assert (answer == OrtBackend(model, threads=1).infer(images)[0]).all()


def test_infer_from_many_threads_keeps_answers_apart(engine: Path, model: Path) -> None:
    backend, reference = TrtBackend(engine), OrtBackend(model, threads=1)
    batches = [pictures(1, height=40 + seed % 3, seed=seed) for seed in range(24)]
    with ThreadPoolExecutor(6) as pool:
        answers = list(pool.map(backend.infer, batches))
    for images, (probability, _) in zip(batches, answers, strict=True):
        assert (probability == reference.infer(images)[0]).all()


@pytest.mark.parametrize(
    ("images", "message"),
    [
        (pictures(1, width=321), r"32 to 320 px wide, got 321: .* width_max_px: 321"),
        (pictures(1, height=400), r"32 to 320 px high, got 400: .* height_max_px: 400"),
        (pictures(1).astype(np.float32), r"takes uint8 pictures .* got float32"),
        (pictures(1)[0], r"takes uint8 pictures \(N, H, W\).* got uint8 \(48, 64\)"),
    ],
    ids=["width", "height", "dtype", "axes"],
)
def test_infer_of_pictures_that_do_not_fit_names_the_fix(
    images: Pictures, message: str, engine: Path
) -> None:
    with pytest.raises(InferenceError, match=message):
        TrtBackend(engine).infer(images)


def test_infer_of_too_small_batch_names_the_recipe_key(
    install: Callable[[str], Any], model: Path, tmp_path: Path
) -> None:
    install(ELEVEN)
    recipe = replace(RECIPE, batch_min=2, batch_opt=2)
    backend = TrtBackend(write_engine(tmp_path, model, recipe))
    with pytest.raises(InferenceError, match=r"2 to 3 in one run, got 1: .* batch_min: 1"):
        backend.infer(pictures(4))


def test_closed_backend_holds_nothing_and_refuses(engine: Path, cuda: FakeCuda) -> None:
    backend = TrtBackend(engine)
    for _ in range(3):
        backend.infer(pictures(1))
    backend.close()
    backend.close()
    assert cuda.held == 0
    with pytest.raises(InferenceError, match="is closed: make a new Segmenter"):
        backend.infer(pictures(1))
