from __future__ import annotations

import logging
import sys
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
from fake_cuda import FakeCuda
from fake_tensorrt import VERSIONS, make_tensorrt

from magtiles_seg.errors import (
    BackendUnavailableError,
    ConfigError,
    InferenceError,
    ModelError,
    ParityError,
)
from magtiles_seg.export.engine import build_engine
from magtiles_seg.export.recipe import Recipe
from magtiles_seg.infer.backends import open_backend
from magtiles_seg.infer.backends.ort import OrtBackend
from magtiles_seg.infer.backends.trt import TrtBackend
from magtiles_seg.infer.manifest import Manifest, sha256_of
from magtiles_seg.infer.segmenter import Segmenter

RECIPE = Recipe(
    name="test",
    line_width_px=64,
    rows_per_frame=48,
    batch_max=3,
    height_max_px=320,
    width_max_px=320,
    compute_capability="SM89",
)
TEN, ELEVEN, RTX = sorted(VERSIONS)
Pictures = npt.NDArray[np.uint8]


@pytest.fixture
def cuda(monkeypatch: pytest.MonkeyPatch) -> FakeCuda:
    fake = FakeCuda()
    monkeypatch.setitem(sys.modules, "cuda.bindings.runtime", fake)
    return fake


@pytest.fixture
def install(cuda: FakeCuda, monkeypatch: pytest.MonkeyPatch) -> Callable[[str], Any]:
    def make(version: str) -> Any:  # noqa: ANN401
        library = make_tensorrt(version, cuda)
        monkeypatch.setitem(sys.modules, library.__name__, library)
        return library

    return make


@pytest.fixture
def engine(install: Callable[[str], Any], model: Path, tmp_path: Path) -> Path:
    install(TEN)
    return write_engine(tmp_path, model)


def write_engine(
    folder: Path, model: Path, recipe: Recipe = RECIPE, flavour: str = "tensorrt"
) -> Path:
    """Write an engine, its manifest and its ONNX file as `magtiles-seg export` does."""
    data = model.read_bytes()
    (folder / "line.onnx").write_bytes(data)
    built = build_engine(data, recipe, flavour=flavour)
    path = folder / "line.engine"
    path.write_bytes(built.plan)
    facts = {key: built.facts[key] for key in ("environment", "profile", "precision", "recipe")}
    Manifest(
        sha256=sha256_of(built.plan),
        onnx_sha256=built.facts["onnx_sha256"],
        card=OrtBackend(model).spec.card,
        **facts,
    ).write(path)
    return path


def pictures(count: int, height: int = 48, width: int = 64, seed: int = 0) -> Pictures:
    return np.random.default_rng(seed).integers(0, 256, (count, height, width), np.uint8)


def runs_of(library: Any) -> list[tuple[int, ...]]:  # noqa: ANN401
    """Return the shapes that were computed, in order."""
    return [call for call in library.calls if isinstance(call[0], int)]


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
        expected, kinds = reference.infer(images)
        assert np.array_equal(probability, expected)
        assert np.array_equal(classes, kinds)
        assert (probability.dtype, classes.dtype) == (expected.dtype, kinds.dtype)


def test_spec_tells_what_runs(engine: Path) -> None:
    spec = open_backend(engine).spec
    assert (spec.name, spec.device, spec.provider) == ("tensorrt", "cuda:0", TEN)
    assert spec.sha256 == sha256_of(engine.read_bytes())
    assert spec.card.architecture == "nano"


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


def test_loading_without_memory_is_an_error_and_frees_all(engine: Path, cuda: FakeCuda) -> None:
    cuda.memory = 1 << 20
    with pytest.raises(InferenceError, match="cudaErrorMemoryAllocation; if memory ran out"):
        TrtBackend(engine)
    assert cuda.held == 0


def test_loading_without_library_names_the_install_command(
    engine: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "tensorrt", None)
    with pytest.raises(BackendUnavailableError, match=r"pip install 'magtiles-seg\[tensorrt\]'"):
        TrtBackend(engine)


def test_loading_without_gpu_says_so(engine: Path, cuda: FakeCuda) -> None:
    cuda.gpus = 0
    with pytest.raises(BackendUnavailableError, match=r"no GPU cuda:0 .*check `nvidia-smi`"):
        TrtBackend(engine)


def test_loading_without_cuda_python_names_the_install_command(
    engine: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "cuda.bindings.runtime", None)
    with pytest.raises(BackendUnavailableError, match="cuda-python is not installed: pip install"):
        TrtBackend(engine)


def test_loading_on_cpu_is_config_error(engine: Path) -> None:
    with pytest.raises(ConfigError, match="runs on a GPU, got device='cpu'"):
        open_backend(engine, device="cpu")


def test_stale_engine_names_every_difference(
    engine: Path, cuda: FakeCuda, install: Callable[[str], Any]
) -> None:
    install(ELEVEN)
    cuda.name, cuda.driver = "NVIDIA H200", 12080
    with pytest.raises(ModelError, match="not built for this machine") as caught:
        TrtBackend(engine)
    text = str(caught.value)
    for line in (
        "runtime_version: expected 10.16.1.11, got 11.4.0.106",
        "gpu: expected NVIDIA L4, got NVIDIA H200",
        "driver: expected 13.0, got 12.8",
        "rebuild=True",
    ):
        assert line in text


def test_engine_of_another_manifest_is_stale(engine: Path) -> None:
    engine.write_bytes(engine.read_bytes() + b"\0")
    with pytest.raises(ModelError, match="sha256: expected"):
        TrtBackend(engine)


def test_damaged_engine_is_refused(engine: Path) -> None:
    engine.write_bytes(b"\0" * 100)
    replace(Manifest.read(engine), sha256=sha256_of(b"\0" * 100)).write(engine)
    with pytest.raises(ModelError, match=r"tensorrt 10\S+ refuses the engine: .* build it again"):
        TrtBackend(engine)


def test_version_compatible_engine_runs_on_newer_library_only(
    install: Callable[[str], Any], model: Path, tmp_path: Path
) -> None:
    install(TEN)
    path = write_engine(tmp_path, model, replace(RECIPE, version_compatible=True))
    install(ELEVEN)
    TrtBackend(path).infer(pictures(1))
    path = write_engine(tmp_path, model, replace(RECIPE, version_compatible=True))
    install(TEN)
    with pytest.raises(ModelError, match=r"runtime_version: expected 11\.4"):
        TrtBackend(path)


def test_hardware_compatible_engine_runs_on_gpu_of_same_capability(
    install: Callable[[str], Any], cuda: FakeCuda, model: Path, tmp_path: Path
) -> None:
    install(TEN)
    recipe = replace(RECIPE, hardware_compatible="same_compute_capability")
    path = write_engine(tmp_path, model, recipe)
    cuda.name = "NVIDIA L40S"
    TrtBackend(path).infer(pictures(1))
    cuda.capability = (9, 0)
    with pytest.raises(ModelError, match="compute_capability: expected SM89, got SM90"):
        TrtBackend(path)


def test_rebuild_builds_for_this_machine_and_says_so(
    engine: Path, cuda: FakeCuda, model: Path, caplog: pytest.LogCaptureFixture
) -> None:
    cuda.name, cuda.capability = "NVIDIA H200", (9, 0)
    steps: list[tuple[int, int]] = []
    with caplog.at_level(logging.WARNING):
        backend = TrtBackend(
            engine, rebuild=True, progress=lambda done, known: steps.append((done, known))
        )
    assert "building" in caplog.text
    assert "expected NVIDIA L4, got NVIDIA H200" in caplog.text
    assert steps[-1][0] == steps[-1][1] > 0
    manifest = Manifest.read(engine)
    assert manifest.environment["compute_capability"] == "SM90"
    assert manifest.parity["artefact"]["flipped_verdicts"] == 0
    assert sorted(path.name for path in engine.parent.iterdir()) == [
        "line.engine", "line.engine.json", "line.onnx",
    ]  # fmt: skip
    images = pictures(1)
    assert (backend.infer(images)[0] == OrtBackend(model).infer(images)[0]).all()
    TrtBackend(engine)  # Fits now, without a rebuild.


def test_rebuild_without_its_onnx_file_leaves_all_as_it_was(engine: Path, cuda: FakeCuda) -> None:
    cuda.name = "NVIDIA H200"
    engine.with_suffix(".onnx").write_bytes(b"another")
    before = engine.read_bytes()
    with pytest.raises(ModelError, match=r"cannot be built again: .* got line\.onnx"):
        TrtBackend(engine, rebuild=True)
    assert engine.read_bytes() == before


def test_rebuild_that_fails_parity_is_not_left_on_disk(
    engine: Path, cuda: FakeCuda, monkeypatch: pytest.MonkeyPatch
) -> None:
    cuda.name = "NVIDIA H200"
    before = engine.read_bytes()
    infer = TrtBackend.infer
    monkeypatch.setattr(
        TrtBackend,
        "infer",
        lambda self, images: (1 - infer(self, images)[0], infer(self, images)[1]),
    )
    with pytest.raises(ParityError, match="answers differently"):
        TrtBackend(engine, rebuild=True)
    assert engine.read_bytes() == before
    assert len(list(engine.parent.iterdir())) == 3


@pytest.mark.parametrize(
    ("version", "use"),
    [
        (ELEVEN, lambda library: library.BuilderFlag.FP16),
        (ELEVEN, lambda library: library.NetworkDefinitionCreationFlag.EXPLICIT_BATCH),
        (ELEVEN, lambda library: library.Builder(None).platform_has_fast_fp16),
        (ELEVEN, lambda library: setattr(library.IBuilderConfig(), "int8_calibrator", None)),
        (TEN, lambda library: library.ComputeCapability),
        (TEN, lambda library: library.IBuilderConfig().set_compute_capability(1, 0)),
        (RTX, lambda library: library.BuilderFlag.INT8),
    ],
)
def test_stand_in_refuses_names_that_its_version_lacks(
    version: str, use: Callable[[Any], Any], cuda: FakeCuda
) -> None:
    with pytest.raises(AttributeError):
        use(make_tensorrt(version, cuda))


def test_stand_in_of_cuda_has_only_real_names() -> None:
    real = pytest.importorskip("cuda.bindings.runtime")
    names = [name for name in dir(FakeCuda) if name.startswith("cuda")]
    assert len(names) > 20
    assert [name for name in names if not hasattr(real, name)] == []
