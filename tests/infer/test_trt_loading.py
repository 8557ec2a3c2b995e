from __future__ import annotations

import logging
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from fake_cuda import FakeCuda
from fake_tensorrt import make_tensorrt
from made_engines import ELEVEN, RECIPE, RTX, TEN, pictures, write_engine

from magtiles_seg.errors import (
    BackendUnavailableError,
    ConfigError,
    InferenceError,
    ModelError,
    ParityError,
    StaleEngineError,
)
from magtiles_seg.export.rebuild import rebuild_engine
from magtiles_seg.files import sha256_of
from magtiles_seg.infer.backends import open_backend
from magtiles_seg.infer.backends.ort import OrtBackend
from magtiles_seg.infer.backends.trt import TrtBackend
from magtiles_seg.infer.backends.vendor import Cuda, import_vendor
from magtiles_seg.infer.manifest import Manifest
from magtiles_seg.infer.segmenter import Segmenter


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
    with pytest.raises(
        BackendUnavailableError, match=r"cuda\.bindings\.runtime is not installed .*: pip install"
    ):
        TrtBackend(engine)


def test_loading_on_cpu_is_config_error(engine: Path) -> None:
    with pytest.raises(ConfigError, match="runs on a GPU, got device='cpu'"):
        open_backend(engine, device="cpu")


def test_stale_engine_names_every_difference(
    engine: Path, cuda: FakeCuda, install: Callable[[str], Any]
) -> None:
    install(ELEVEN)
    cuda.name, cuda.capability, cuda.driver = "NVIDIA H200", (9, 0), 12080
    with pytest.raises(StaleEngineError, match="not built for this machine") as caught:
        TrtBackend(engine)
    text = str(caught.value)
    for line in (
        "runtime_version: expected 10.16.1.11, got 11.4.0.106",
        "compute_capability: expected SM89, got SM90",
        "load it with --rebuild",
    ):
        assert line in text
    assert "driver" not in text


@pytest.mark.parametrize("driver", [12080, 13010, 14000])
def test_update_of_the_driver_or_cuda_outdates_no_engine(
    engine: Path, cuda: FakeCuda, driver: int, caplog: pytest.LogCaptureFixture
) -> None:
    built = Manifest.read(engine)
    replace(built, environment={**built.environment, "cuda": "12"}).write(engine)
    cuda.driver = driver
    with caplog.at_level(logging.WARNING):
        TrtBackend(engine).infer(pictures(1))
    assert not caplog.records


def test_engine_tuned_for_another_gpu_of_the_capability_runs_with_a_warning(
    engine: Path, cuda: FakeCuda, caplog: pytest.LogCaptureFixture
) -> None:
    cuda.name = "NVIDIA L40S"
    with caplog.at_level(logging.WARNING):
        TrtBackend(engine).infer(pictures(1))
    assert "was tuned on NVIDIA L4 and runs on NVIDIA L40S" in caplog.text


def test_ampere_plus_engine_runs_on_every_newer_gpu_and_no_older(
    install: Callable[[str], Any], cuda: FakeCuda, model: Path, tmp_path: Path
) -> None:
    install(TEN)
    path = write_engine(tmp_path, model, replace(RECIPE, hardware_compatible="ampere_plus"))
    cuda.capability = (12, 0)
    TrtBackend(path).infer(pictures(1))
    cuda.capability = (7, 5)
    with pytest.raises(StaleEngineError, match="compute_capability: expected SM89, got SM75"):
        TrtBackend(path)


def test_engine_that_the_library_itself_refuses_can_be_built_again(
    engine: Path, install: Callable[[str], Any]
) -> None:
    install(ELEVEN)
    built = Manifest.read(engine)
    replace(built, environment={**built.environment, "runtime_version": "11.4.0.106"}).write(engine)
    with pytest.raises(StaleEngineError, match="refuses the engine: the engine is of another"):
        TrtBackend(engine)
    with Segmenter(engine, rebuild=rebuild_engine) as segmenter:
        assert segmenter.spec.provider == "tensorrt 11.4.0.106"


def test_engine_of_another_manifest_is_stale(engine: Path) -> None:
    engine.write_bytes(engine.read_bytes() + b"\0")
    with pytest.raises(ModelError, match="sha256: expected"):
        TrtBackend(engine)


def test_damaged_engine_is_refused(engine: Path) -> None:
    engine.write_bytes(b"\0" * 100)
    replace(Manifest.read(engine), sha256=sha256_of(b"\0" * 100)).write(engine)
    with pytest.raises(ModelError, match=r"tensorrt 10\S+ refuses the engine: .* build it here"):
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

    def rebuild(path: Path, device: str | None) -> None:
        rebuild_engine(path, device, progress=lambda done, known: steps.append((done, known)))

    with caplog.at_level(logging.WARNING):
        backend = Segmenter(engine, rebuild=rebuild).backend
    assert "building" in caplog.text
    assert "compute_capability: expected SM89, got SM90" in caplog.text
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
    cuda.capability = (9, 0)
    engine.with_suffix(".onnx").write_bytes(b"another")
    before = engine.read_bytes()
    with pytest.raises(ModelError, match=r"cannot be built again: .* got line\.onnx"):
        Segmenter(engine, rebuild=rebuild_engine)
    assert engine.read_bytes() == before


def test_rebuild_that_fails_parity_is_not_left_on_disk(
    engine: Path, cuda: FakeCuda, monkeypatch: pytest.MonkeyPatch
) -> None:
    cuda.capability = (9, 0)
    before = engine.read_bytes()
    infer = TrtBackend.infer
    monkeypatch.setattr(
        TrtBackend,
        "infer",
        lambda self, images: (1 - infer(self, images)[0], infer(self, images)[1]),
    )
    with pytest.raises(ParityError, match="answers differently"):
        Segmenter(engine, rebuild=rebuild_engine)
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


def test_cuda_bindings_that_raise_without_a_driver_are_backend_unavailable(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def fail() -> None:
        raise RuntimeError("Failed to dlopen libcuda.so.1")

    old = SimpleNamespace(cudaGetDeviceCount=fail)
    monkeypatch.setitem(sys.modules, "cuda.bindings.runtime", old)
    with pytest.raises(BackendUnavailableError, match=r"no GPU cuda:0 .*libcuda\.so\.1"):
        Cuda()


def test_machine_without_a_driver_is_told_so_and_not_that_the_driver_is_old(
    engine: Path, cuda: FakeCuda
) -> None:
    cuda.gpus, cuda.driver = 0, 0
    with pytest.raises(BackendUnavailableError, match=r"\(no NVIDIA driver is loaded\)"):
        TrtBackend(engine)


@pytest.mark.parametrize("error", [ImportError, OSError, RuntimeError, AttributeError])
def test_vendor_module_that_fails_while_loading_names_the_fix(
    error: type[Exception], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "vendor_sdk.py").write_text(f"raise {error.__name__}('libvendor.so.3: missing')")
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(BackendUnavailableError, match=r"libvendor\.so\.3.*pip install sdk"):
        import_vendor("vendor_sdk", "pip install sdk")
