from __future__ import annotations

import sys
from dataclasses import replace
from typing import Any

import pytest
from fake_cuda import FakeCuda
from fake_tensorrt import VERSIONS, make_tensorrt

from magtiles_seg.errors import BackendUnavailableError, ConfigError, ModelError
from magtiles_seg.export.engine import Recipe, build_engine
from magtiles_seg.export.precision import convert
from magtiles_seg.model.bundled import BUNDLED_MODEL, BUNDLED_MODELS

TEN, ELEVEN, _ = sorted(VERSIONS)
RECIPE = Recipe(name="test", precision="fp32", compute_capability="SM89")
RTX_RECIPE = replace(RECIPE, workspace_mib=1024)  # SM75 plans the greatest intermediate results.
TARGETS = ("SM75", "SM80", "SM86", "SM89", "SM120")


@pytest.fixture(scope="module")
def onnx_bytes() -> bytes:
    return convert(BUNDLED_MODEL.read_bytes(), "fp32")


@pytest.fixture
def cuda(monkeypatch: pytest.MonkeyPatch) -> FakeCuda:
    fake = FakeCuda()
    monkeypatch.setitem(sys.modules, "cuda.bindings.runtime", fake)
    return fake


@pytest.fixture
def library(request: pytest.FixtureRequest, cuda: FakeCuda, monkeypatch: Any) -> Any:  # noqa: ANN401
    made = make_tensorrt(getattr(request, "param", TEN), cuda)
    monkeypatch.setitem(sys.modules, "tensorrt", made)
    return made


@pytest.mark.parametrize("library", [TEN, ELEVEN], indirect=True)
def test_build_asks_for_what_the_recipe_says(library: Any, onnx_bytes: bytes) -> None:  # noqa: ANN401
    recipe = replace(
        RECIPE, version_compatible=True, hardware_compatible="same_compute_capability", batch_max=4
    )
    built = build_engine(onnx_bytes, recipe, flavour="tensorrt")
    network, config = library.calls[0]
    assert network._typed
    assert config._workspace == 1024 << 20
    assert config._profile._shapes == [[1, 32, 32], [1, 256, 2048], [4, 512, 2048]]
    assert config._flags == {library.BuilderFlag.VERSION_COMPATIBLE}
    level = library.HardwareCompatibilityLevel.SAME_COMPUTE_CAPABILITY
    assert config.hardware_compatibility_level == level
    assert built.plan.endswith(onnx_bytes)


def test_build_keeps_full_fp32_unless_tf32_is_asked_for(library: Any, onnx_bytes: bytes) -> None:  # noqa: ANN401
    build_engine(onnx_bytes, RECIPE, flavour="tensorrt")
    build_engine(onnx_bytes, replace(RECIPE, tf32=True), flavour="tensorrt")
    assert [library.BuilderFlag.TF32 in config._flags for _, config in library.calls] == [
        False,
        True,
    ]


@pytest.mark.usefixtures("library")
def test_facts_tell_machine_shapes_and_source(onnx_bytes: bytes) -> None:
    facts = build_engine(onnx_bytes, RECIPE, flavour="tensorrt").facts
    environment = facts["environment"]
    assert environment["runtime"] == "tensorrt"
    assert environment["runtime_version"] == "10.16.1.11"
    assert environment["gpu"] == "NVIDIA L4"
    assert environment["compute_capability"] == "SM89"
    assert (environment["driver"], environment["cuda"]) == ("13.0", "13")
    assert facts["profile"]["max"] == [1, 512, 2048]
    assert Recipe(**facts["recipe"]) == RECIPE


def test_timing_cache_of_same_gpu_is_reused_and_of_another_is_not(
    library: Any,  # noqa: ANN401
    cuda: FakeCuda,
    onnx_bytes: bytes,
) -> None:
    del library
    first = build_engine(onnx_bytes, RECIPE, flavour="tensorrt")
    again = build_engine(onnx_bytes, RECIPE, flavour="tensorrt", timing_cache=first.timing_cache)
    cuda.name = "NVIDIA L40S"
    other = build_engine(onnx_bytes, RECIPE, flavour="tensorrt", timing_cache=first.timing_cache)
    states = [built.facts["timing_cache"] for built in (first, again, other)]
    assert states == ["fresh", "reused", "fresh"]
    assert other.timing_cache == b"measured on NVIDIA L40S"


@pytest.mark.usefixtures("library")
def test_progress_ends_with_all_steps_done(onnx_bytes: bytes) -> None:
    steps: list[tuple[int, int]] = []
    build_engine(
        onnx_bytes,
        RECIPE,
        flavour="tensorrt",
        progress=lambda done, known: steps.append((done, known)),
    )
    done = [step for step, _ in steps]
    assert done == sorted(done)
    assert steps[-1] == (5, 5)


@pytest.mark.usefixtures("library")
def test_what_progress_raises_stops_the_build(onnx_bytes: bytes) -> None:
    def stop(done: int, known: int) -> None:
        if done:
            raise KeyboardInterrupt(f"at {done} of {known}")

    with pytest.raises(KeyboardInterrupt, match="at 1 of"):
        build_engine(onnx_bytes, RECIPE, flavour="tensorrt", progress=stop)


@pytest.mark.usefixtures("library")
def test_model_that_cannot_be_parsed_names_node_and_fix() -> None:
    message = r"tensorrt 10\.\S+ cannot read node 'node_of_test' \(Bogus\): .*export --to onnx"
    with pytest.raises(ModelError, match=message):
        build_engine(b"no model", RECIPE, flavour="tensorrt")


@pytest.mark.usefixtures("library")
def test_build_without_memory_names_the_recipe_key(onnx_bytes: bytes) -> None:
    with pytest.raises(ModelError, match=r"OutOfMemory.*raise workspace_mib \(4\) in recipe"):
        build_engine(onnx_bytes, replace(RECIPE, workspace_mib=4), flavour="tensorrt")


@pytest.mark.usefixtures("library")
@pytest.mark.parametrize(
    ("recipe", "targets", "message"),
    [
        (replace(RECIPE, compute_capability="SM90"), (), r"runs on, NVIDIA L4 \(SM89\), and SM90"),
        (RECIPE, ("SM86", "SM89"), "and SM86, SM89 is wanted: build on that device"),
    ],
)
def test_build_for_another_device_is_config_error(
    recipe: Recipe, targets: tuple[str, ...], message: str, onnx_bytes: bytes
) -> None:
    with pytest.raises(ConfigError, match=message):
        build_engine(onnx_bytes, recipe, flavour="tensorrt", compute_capabilities=targets)


@pytest.mark.usefixtures("library")
def test_build_by_recipe_without_capability_is_for_the_gpu_here(onnx_bytes: bytes) -> None:
    built = build_engine(onnx_bytes, replace(RECIPE, compute_capability=None), flavour="tensorrt")
    assert built.facts["environment"]["compute_capability"] == "SM89"


@pytest.mark.usefixtures("library")
def test_build_without_gpu_says_so(cuda: FakeCuda, onnx_bytes: bytes) -> None:
    cuda.gpus = 0
    with pytest.raises(BackendUnavailableError, match=r"there is no GPU cuda:0 \(cudaErrorNoDev"):
        build_engine(onnx_bytes, RECIPE, flavour="tensorrt")


@pytest.mark.parametrize("flavour", ["tensorrt", "rtx"])
def test_build_without_library_names_the_install_command(
    flavour: str, onnx_bytes: bytes, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("tensorrt", "tensorrt_rtx"):
        monkeypatch.setitem(sys.modules, name, None)
    with pytest.raises(BackendUnavailableError, match=rf"pip install 'magtiles-seg\[{flavour}\]'"):
        build_engine(onnx_bytes, RECIPE, flavour=flavour)


def test_library_that_is_too_old_is_refused(library: Any, onnx_bytes: bytes) -> None:  # noqa: ANN401
    library.__version__ = "10.9.0.34"
    with pytest.raises(BackendUnavailableError, match=r"10\.9\S+ is too old, expected 10\.12"):
        build_engine(onnx_bytes, RECIPE, flavour="tensorrt")


def test_unknown_flavour_is_config_error(onnx_bytes: bytes) -> None:
    with pytest.raises(ConfigError, match="unknown flavour 'trt': expected one of tensorrt, rtx"):
        build_engine(onnx_bytes, RECIPE, flavour="trt")


@pytest.mark.parametrize("precision", ["fp32", "fp16"])
def test_rtx_really_builds_the_bundled_model_for_all_capabilities(
    precision: str, onnx_bytes: bytes
) -> None:
    pytest.importorskip("tensorrt_rtx")
    steps: list[tuple[int, int]] = []
    built = build_engine(
        convert(onnx_bytes, precision),
        replace(RTX_RECIPE, precision=precision),
        flavour="rtx",
        compute_capabilities=TARGETS,
        progress=lambda done, known: steps.append((done, known)),
    )
    assert len(built.plan) > 1_000_000
    assert built.timing_cache is None
    assert built.facts["environment"]["compute_capability"] == list(TARGETS)
    assert steps[-1][0] == steps[-1][1]


@pytest.mark.parametrize("name", [name for name in BUNDLED_MODELS if name != "lite0"])
def test_rtx_really_builds_the_smaller_bundled_models(name: str) -> None:
    pytest.importorskip("tensorrt_rtx")
    source = convert(BUNDLED_MODELS[name].read_bytes(), "fp16")
    recipe = replace(RTX_RECIPE, precision="fp16")
    built = build_engine(source, recipe, flavour="rtx", compute_capabilities=("SM89",))
    assert len(built.plan) > 100_000


@pytest.mark.parametrize(
    ("change", "targets", "message"),
    [
        ({}, ("SM90",), "does not build for 'SM90': choose compute capabilities from SM75"),
        ({"compute_capability": None}, (), "names no GPU: choose compute capabilities"),
        ({"version_compatible": True}, (), "asks for version_compatible, which TensorRT-RTX"),
        ({"workspace_mib": 1, "compute_capability": "SM86"}, (), "OutOfMemory.*raise workspace"),
    ],
)
def test_rtx_build_that_cannot_be_names_the_fix(
    change: dict[str, Any], targets: tuple[str, ...], message: str, onnx_bytes: bytes
) -> None:
    pytest.importorskip("tensorrt_rtx")
    with pytest.raises((ConfigError, ModelError), match=message):
        build_engine(
            onnx_bytes, replace(RECIPE, **change), flavour="rtx", compute_capabilities=targets
        )


def test_rtx_stand_in_lists_the_names_of_the_real_library() -> None:
    real = pytest.importorskip("tensorrt_rtx")
    from strict import NAMES

    version = f"tensorrt_rtx {real.__version__}"
    if version not in NAMES:
        pytest.skip(f"the list was made with another version than {version}")
    for kind, words in NAMES[version].items():
        found = {name for name in dir(getattr(real, kind)) if not name.startswith("_")}
        assert found - {"name", "value"} == set(words.split())
