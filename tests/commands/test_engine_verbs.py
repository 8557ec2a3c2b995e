from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from fake_cuda import FakeCuda
from fake_tensorrt import make_tensorrt
from made_engines import RECIPE, TEN, write_engine

from magtiles_seg.bench import run as bench
from magtiles_seg.bench.entries import Case
from magtiles_seg.bench.select import select_fastest
from magtiles_seg.cli import main
from magtiles_seg.dataset.synthetic import write_dataset
from magtiles_seg.errors import BackendUnavailableError
from magtiles_seg.infer.backends.ort import OrtBackend
from magtiles_seg.infer.backends.vendor import Cuda
from magtiles_seg.infer.manifest import Manifest, local_environment
from magtiles_seg.infer.selection import runtime_of


def has_gpu() -> bool:
    with suppress(BackendUnavailableError):
        return bool(Cuda())
    return False


@pytest.fixture(scope="module")
def real(model: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of pictures, and an engine of TensorRT-RTX where that is installed."""
    folder = tmp_path_factory.mktemp("real")
    write_dataset(folder / "tiles", tiles=1)
    try:
        write_engine(folder, model, replace(RECIPE, compute_capability="SM86"), "rtx")
    except BackendUnavailableError:
        (folder / "line.engine").write_bytes(b"engine")
        Manifest(
            sha256="",
            onnx_sha256="",
            precision="fp32",
            environment=local_environment("tensorrt-rtx"),
            card=OrtBackend(model).spec.card,
        ).write(folder / "line.engine")
        (folder / "line.onnx").write_bytes(model.read_bytes())
    return folder


NO_GPU = (
    r"^magtiles-seg: (there is no GPU cuda:\d \(no NVIDIA driver is loaded\): check `nvidia-smi`"
    r"|tensorrt_rtx is not installed|cuda\.bindings\.runtime is not installed)"
)
VERBS = [
    "segment tiles --model line.engine",
    "segment tiles --model line.engine --device cuda:1",
    "info --model line.engine",
    "parity line.onnx line.engine",
    "parity line.engine line.onnx",
    "bench --model line.onnx --also line.engine --rounds 1",
    "bench --model line.engine --rounds 1",
    "stream synthetic:tiles=1,width=256 --model line.engine --out web",
    "batch tiles --out rows --model line.engine",
    "demo --model line.engine --port 0",
    "evaluate tiles --model line.engine --set data_load.layout=magnetic-tile",
]


@pytest.mark.skipif(has_gpu(), reason="there is a GPU here")
@pytest.mark.parametrize("words", VERBS)
def test_verb_with_an_engine_and_no_gpu_says_so(
    words: str, real: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(real)
    assert main(words.split()) == 2
    lines = capsys.readouterr().err.strip().splitlines()
    assert any(re.search(NO_GPU, line) for line in lines), lines
    assert "dlopen" not in "".join(lines)


@pytest.mark.skipif(has_gpu(), reason="there is a GPU here")
def test_serve_with_an_engine_and_no_gpu_says_so(real: Path) -> None:
    command = [sys.executable, "-m", "magtiles_seg", "serve", "--port", "0"]
    done = subprocess.run(
        [*command, "--model", "line.engine"],
        cwd=real,
        env={**os.environ, "PYTHONPATH": str(Path(__file__).parents[2])},
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert done.returncode == 2
    assert "Traceback" not in done.stderr
    assert "no NVIDIA driver is loaded" in done.stderr or "is not installed" in done.stderr


@pytest.mark.parametrize("words", ["--to onnx --out made", "--out made.onnx"])
def test_export_of_an_engine_asks_for_what_it_was_made_from(
    words: str, real: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(real)
    assert main(["export", "--model", "line.engine", *words.split()]) == 2
    assert ".safetensors" in (err := capsys.readouterr().err) or "the .onnx file" in err


@pytest.fixture
def cuda(monkeypatch: pytest.MonkeyPatch) -> FakeCuda:
    fake = FakeCuda(gpus=2)
    library = make_tensorrt(TEN, fake)
    monkeypatch.setitem(sys.modules, "cuda.bindings.runtime", fake)
    monkeypatch.setitem(sys.modules, "tensorrt", library)
    return fake


@pytest.fixture
def engine(cuda: FakeCuda, model: Path, tmp_path: Path) -> Path:
    assert cuda.gpus == 2
    return write_engine(tmp_path, model)


def test_parity_with_an_engine_runs_it_on_the_gpu(
    engine: Path, model: Path, cuda: FakeCuda, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["parity", str(model), str(engine), "--device", "cuda:1", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["dice"] == 1
    assert cuda.chosen[-1] == 1
    assert main(["parity", str(model), str(engine), "--json"]) == 0
    assert cuda.chosen[-1] == 0
    assert main(["parity", str(engine), str(model), "--json"]) == 0


def test_bench_with_an_engine_measures_and_can_select_it(
    engine: Path, model: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ["bench", "--model", str(model), "--also", str(engine), "--backend", "onnxruntime"]
    assert main([*words, "--threads", "1", "--size", "64x64", "--rounds", "1", "--json"]) == 0
    rows = json.loads(capsys.readouterr().out)["rows"]
    names = [row["name"] for row in rows if row["kind"] == "candidate"]
    assert names == [
        "nano, onnxruntime cpu fp32",
        "line, tensorrt cuda:0 fp16",
    ]  # as its recipe says
    report = bench.measure(
        engine, cases=[Case(height_px=64, width_px=64)], rounds=1, burst=1, threads=[1]
    )
    chosen = select_fastest(report, model)
    assert (chosen.backend, chosen.device, chosen.file) == ("tensorrt", "cuda", str(engine))
    assert chosen.runtime == runtime_of("tensorrt")


def test_bench_leaves_out_a_gpu_that_does_not_start(
    model: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    import onnxruntime

    names = ["TensorrtExecutionProvider", "CUDAExecutionProvider", "CPUExecutionProvider"]
    opened = onnxruntime.InferenceSession

    def fallen_back(data: bytes, *words: Any, **options: Any) -> Any:  # noqa: ANN401
        return opened(data, *words, **{**options, "providers": ["CPUExecutionProvider"]})

    monkeypatch.setattr(onnxruntime, "get_available_providers", lambda: names)
    monkeypatch.setattr(onnxruntime, "InferenceSession", fallen_back)
    words = ["bench", "--model", str(model), "--backend", "onnxruntime", "--threads", "1"]
    assert main([*words, "--size", "64x64", "--rounds", "1", "--json"]) == 0
    out, err = capsys.readouterr()
    rows = [row for row in json.loads(out)["rows"] if row["kind"] == "candidate"]
    assert [row["candidate"]["device"] for row in rows] == ["cpu"]
    assert "did not start on cuda:0" in err
    assert "did not start on tensorrt:0" in err


def test_export_builds_and_compares_on_the_gpu_that_was_asked_for(
    cuda: FakeCuda, model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    few = ["--set", "export.parity_per_class=1", "--precision", "fp32"]
    words = ["export", "--model", str(model), "--to", "tensorrt", *few, "--out", str(tmp_path)]
    assert main([*words, "--device", "cuda:1"]) == 0
    assert set(cuda.chosen) == {1}
    manifest = Manifest.read(tmp_path / "nano-fp32.engine")
    assert manifest.parity["artefact"]["dice"] == 1
    assert main([*words, "--device", "cpu"]) == 2
    assert "built and compared on a GPU, got device 'cpu'" in capsys.readouterr().err


def test_export_for_other_gpus_than_the_one_here_compares_the_graph(
    cuda: FakeCuda, model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    pytest.importorskip("tensorrt_rtx")
    assert cuda.capability == (8, 9)
    few = ["--set", "export.parity_per_class=1", "--precision", "fp32"]
    words = ["export", "--model", str(model), "--to", "rtx", *few, "--out", str(tmp_path)]
    assert main([*words, "--compute-capability", "SM86"]) == 0
    assert "its ONNX graph was compared in its place" in capsys.readouterr().out
