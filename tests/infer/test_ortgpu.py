from __future__ import annotations

import subprocess
import sys
import warnings
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import onnxruntime
import pytest

from magtiles_seg.errors import BackendUnavailableError, ConfigError, InferenceError
from magtiles_seg.infer.backends import open_backend, ortgpu
from magtiles_seg.infer.backends.ort import OrtBackend
from magtiles_seg.infer.segmenter import Segmenter

PICTURE = np.random.default_rng(0).integers(0, 256, (1, 40, 50), np.uint8)
PROFILE = ((1, 32, 32), (1, 40, 64), (2, 64, 64))


@pytest.fixture(autouse=True)
def _cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))


def test_cuda_without_provider_names_the_install(
    model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(onnxruntime, "get_available_providers", lambda: ["CPUExecutionProvider"])
    with pytest.raises(
        BackendUnavailableError, match=r"pip install 'onnxruntime-gpu\[cuda,cudnn\]'"
    ):
        OrtBackend(model, device="cuda")


class FallenBack:
    """What onnxruntime hands out when CUDA does not start: a session on the CPU, no error."""

    def __init__(self, *_: Any, **options: Any) -> None:  # noqa: ANN401
        name, given = options["providers"][0]
        assert (name, given["device_id"]) == ("CUDAExecutionProvider", 1)

    def get_providers(self) -> list[str]:
        return ["CPUExecutionProvider"]


@pytest.fixture
def wheel(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The GPU wheel's folder of libraries, as yet empty; CUDA falls back to the CPU."""
    folder = tmp_path / "onnxruntime" / "capi"
    folder.mkdir(parents=True)
    monkeypatch.setattr(onnxruntime, "__file__", str(folder.parent / "__init__.py"))
    names = ["TensorrtExecutionProvider", "CUDAExecutionProvider", "CPUExecutionProvider"]
    monkeypatch.setattr(onnxruntime, "get_available_providers", lambda: names)
    monkeypatch.setattr(onnxruntime, "InferenceSession", FallenBack)
    return folder


def build_library(folder: Path, name: str, *needed: str) -> None:
    """Build a provider's library that needs others, which are then gone."""
    for library in needed:
        made = ["-o", str(folder / library), f"-Wl,-soname,{library}", "-xc", "-"]
        subprocess.run(["gcc", "-shared", *made], input=b"", check=True)
    linked = ["-o", str(folder / name), *(str(folder / library) for library in needed)]
    subprocess.run(["gcc", "-shared", "-Wl,--no-as-needed", *linked], check=True)
    for library in needed:
        (folder / library).unlink()


def test_cuda_that_falls_back_to_cpu_is_refused(model: Path, wheel: Path) -> None:
    with pytest.raises(
        BackendUnavailableError,
        match=r"did not start on cuda:1 .* on CPU.*: no reason given; check `nvidia-smi`",
    ):
        OrtBackend(model, device="cuda:1")
    assert not list(wheel.iterdir())


@pytest.mark.skipif(sys.platform != "linux", reason="builds a library with gcc")
@pytest.mark.parametrize(
    ("missing", "fix"),
    [
        ("libcublasLt.so.99", r"pip install 'onnxruntime-gpu\[cuda,cudnn\]'"),
        ("libcuda.so.99", "install the NVIDIA driver"),
        ("libnvinfer.so.99", r"pip install 'tensorrt-cu13==99\.\*'"),
    ],  # of versions that no machine has: those of CUDA come with torch elsewhere
)
def test_library_that_is_missing_is_named_with_what_brings_it(
    missing: str, fix: str, model: Path, wheel: Path
) -> None:
    build_library(wheel, "libonnxruntime_providers_cuda.so", missing)
    with pytest.raises(BackendUnavailableError, match=f"{missing}: cannot open shared.*; {fix}"):
        OrtBackend(model, device="cuda:1")


def test_reason_that_onnxruntime_raises_is_passed_on(
    model: Path, wheel: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: object, **__: object) -> None:
        raise RuntimeError(
            "/src/onnxruntime_pybind_state.cc:729 void Check(int, const char*): CUDA failure 100: "
            "no CUDA-capable device is detected ; GPU=0\nat line 7"
        )

    assert wheel.is_dir()
    monkeypatch.setattr(onnxruntime, "InferenceSession", fail)
    with pytest.raises(
        BackendUnavailableError, match=r"cannot use cuda:0: CUDA failure 100: no CUDA-capable"
    ):
        OrtBackend(model, device="cuda")


def test_libraries_are_loaded_before_the_session_and_nothing_is_printed(
    model: Path,
    wheel: Path,
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
) -> None:
    done: list[str] = []

    def preload() -> None:
        print("Failed to load libcublasLt.so.13")  # noqa: T201 - as onnxruntime does
        warnings.warn("no plugin", stacklevel=1)
        done.append("preload")

    class Session(FallenBack):
        def __init__(self, *words: Any, **options: Any) -> None:  # noqa: ANN401
            super().__init__(*words, **options)
            done.append("session")

    assert wheel.is_dir()
    monkeypatch.setattr(onnxruntime, "preload_dlls", preload, raising=False)
    monkeypatch.setattr(onnxruntime, "InferenceSession", Session)
    with pytest.raises(BackendUnavailableError):
        OrtBackend(model, device="cuda:1")
    assert done == ["preload", "session"]
    assert capfd.readouterr() == ("", "")


def test_onnxruntime_without_preload_still_starts(monkeypatch: pytest.MonkeyPatch) -> None:
    loaded: list[str] = []
    monkeypatch.setattr(ortgpu, "import_vendor", lambda name, _: loaded.append(name))
    ortgpu.preload(SimpleNamespace(), "cuda")
    assert loaded == []
    ortgpu.preload(SimpleNamespace(), "tensorrt")
    assert loaded == ["tensorrt"]


def test_installed_onnxruntime_has_the_names_in_use() -> None:
    assert callable(onnxruntime.set_default_logger_severity)
    assert callable(getattr(onnxruntime, "preload_dlls", len))


class GpuBinding:
    """What a session with a GPU hands out; it notes what was bound where."""

    def __init__(self, session: GpuSession) -> None:
        self.session = session
        self.input: Any = None
        self.outputs: list[tuple[str, str, int]] = []

    def bind_ortvalue_input(self, name: str, value: Any) -> None:  # noqa: ANN401
        assert name == "image"
        self.input = value

    def bind_output(self, name: str, device_type: str, device_id: int) -> None:
        self.outputs.append((name, device_type, device_id))

    def copy_outputs_to_cpu(self) -> list[Any]:
        assert self.session.ran is self
        return list(self.session.cpu.run(None, {"image": self.input[0]}))


class GpuSession:
    """A session as onnxruntime-gpu has it, that computes on the CPU."""

    def __init__(self, data: bytes, *_: Any, **options: Any) -> None:  # noqa: ANN401
        self.names = [name if isinstance(name, str) else name[0] for name in options["providers"]]
        self.numbers = [name[1]["device_id"] for name in options["providers"][:-1]]
        self.cpu = REAL_SESSION(data, providers=["CPUExecutionProvider"])
        self.ran: GpuBinding | None = None

    def get_providers(self) -> list[str]:
        return self.names

    def io_binding(self) -> GpuBinding:
        return GpuBinding(self)

    def run_with_iobinding(self, binding: GpuBinding) -> None:
        names = [output[0] for output in binding.outputs]
        assert names == ["probability", "classes"]
        assert {output[1:] for output in binding.outputs} == {("cuda", 2)}
        assert binding.input[1:] == ("cuda", 2)
        self.ran = binding

    def __getattr__(self, name: str) -> Any:  # noqa: ANN401
        assert name in ("get_modelmeta", "get_inputs", "get_outputs")
        return getattr(self.cpu, name)


REAL_SESSION = onnxruntime.InferenceSession


@pytest.mark.parametrize(
    ("device", "providers"),
    [
        ("cuda:2", ["CUDA", "CPU"]),
        ("tensorrt:2", ["Tensorrt", "CUDA", "CPU"]),
    ],
)
def test_gpu_runs_with_bound_input_and_outputs(
    device: str, providers: list[str], model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for part in ("bind_ortvalue_input", "bind_output", "copy_outputs_to_cpu"):
        assert hasattr(onnxruntime.IOBinding, part)
    assert hasattr(REAL_SESSION, "io_binding")
    assert hasattr(REAL_SESSION, "run_with_iobinding")
    names = [f"{name}ExecutionProvider" for name in providers]
    monkeypatch.setattr(onnxruntime, "get_available_providers", lambda: names)
    monkeypatch.setattr(onnxruntime, "InferenceSession", GpuSession)
    monkeypatch.setattr(onnxruntime.OrtValue, "ortvalue_from_numpy", lambda *words: words)
    backend = OrtBackend(model, device=device)
    assert backend.spec.device == device
    assert backend.spec.provider == names[0]
    session: Any = backend._session.get()
    assert session.get_providers() == names
    assert session.numbers == [2] * (len(names) - 1)
    monkeypatch.setattr(onnxruntime, "InferenceSession", REAL_SESSION)
    expected, _ = OrtBackend(model).infer(PICTURE)
    probability, classes = backend.infer(PICTURE)
    assert np.abs(probability - expected).max() < 1e-5
    assert classes.dtype == np.uint8


def test_cuda_is_told_what_parity_and_a_line_need() -> None:
    found: list[Any] = ortgpu.providers("cuda", 3, model_sha256="ab", profile=None)
    (name, options), last = found
    assert (name, last) == ("CUDAExecutionProvider", "CPUExecutionProvider")
    assert options == {
        "device_id": 3,
        "cudnn_conv_algo_search": "HEURISTIC",
        "cudnn_conv_use_max_workspace": "1",
        "use_tf32": "0",
        "arena_extend_strategy": "kSameAsRequested",
    }


def test_tensorrt_keeps_its_engines_and_takes_a_profile(tmp_path: Path) -> None:
    found: list[Any] = ortgpu.providers("tensorrt", 0, model_sha256="ab" * 32, profile=PROFILE)
    options = found[0][1]
    folder = Path(options["trt_engine_cache_path"])
    assert folder.is_dir()
    assert folder.is_relative_to(tmp_path / "cache" / "magtiles-seg")
    assert folder.name == "ab" * 8
    assert folder.stat().st_mode & 0o077 == 0
    assert options["trt_timing_cache_path"] == str(folder)
    assert options["trt_engine_cache_enable"] is options["trt_timing_cache_enable"] is True
    assert options["trt_profile_min_shapes"] == "image:1x32x32"
    assert options["trt_profile_opt_shapes"] == "image:1x40x64"
    assert options["trt_profile_max_shapes"] == "image:2x64x64"
    assert found[1][1] == {"device_id": 0, **ortgpu.CUDA_OPTIONS}


def test_tensorrt_without_a_folder_to_write_to_builds_each_time_and_says_so(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / "cache").write_text("in the way")
    found = ortgpu.providers("tensorrt", 0, model_sha256="ab", profile=None)
    assert found[0][1] == {"device_id": 0}
    assert "TensorRT builds at every start" in caplog.text


def test_pictures_outside_the_profile_are_refused_before_tensorrt_sees_them(
    model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    names = ["TensorrtExecutionProvider", "CUDAExecutionProvider"]
    monkeypatch.setattr(onnxruntime, "get_available_providers", lambda: names)
    monkeypatch.setattr(onnxruntime, "InferenceSession", GpuSession)
    with (
        Segmenter(model, device="tensorrt:2", profile=PROFILE) as segmenter,
        pytest.raises(InferenceError, match=r"32 to 64 px wide, got 70: .* width_max_px: 70"),
    ):
        segmenter(np.zeros((40, 70), np.uint8))


@pytest.mark.parametrize(
    "profile",
    [
        5,
        ((1, 32, 32), (1, 40, 64)),
        ((1, 32, 32), (1, 128, 64), (2, 64, 64)),
        ((1, 16, 32), (1, 40, 64), (2, 64, 64)),
        ((0, 32, 32), (1, 40, 64), (2, 64, 64)),
        ((1, 32), (1, 40), (2, 64)),
        ((1, 32, 32), (1, 40.0, 64), (2, 64, 64)),
    ],
)
def test_profile_that_is_none_is_config_error(profile: Any, model: Path) -> None:  # noqa: ANN401
    with pytest.raises(ConfigError, match="expected least, tuned and greatest"):
        OrtBackend(model, device="tensorrt", profile=profile)


def test_profile_without_tensorrt_is_config_error(model: Path) -> None:
    with pytest.raises(ConfigError, match="a profile is for device='tensorrt', got device='cuda'"):
        OrtBackend(model, device="cuda", profile=PROFILE)
    with pytest.raises(ConfigError, match="a profile is for backend 'onnxruntime'"):
        open_backend(model, backend="openvino", profile=PROFILE)


def test_tensorrt_without_provider_names_the_install(model: Path) -> None:
    with pytest.raises(BackendUnavailableError, match=r"Tensorrt.*pip install 'onnxruntime-gpu"):
        OrtBackend(model, device="tensorrt")
