from __future__ import annotations

import importlib
import subprocess
import sys
from importlib import metadata
from pathlib import Path

import pytest

import magtiles_seg

HEAVY = ("cv2", "onnxruntime", "torch", "PIL", "yaml", "tqdm")


def run_fresh(code: str) -> str:
    """Run code in a new interpreter and return what it printed."""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    return done.stdout.strip()


def test_import_in_fresh_process_loads_no_heavy_package() -> None:
    code = f"import sys, magtiles_seg; print([n for n in {HEAVY} if n in sys.modules])"
    assert run_fresh(code) == "[]"


@pytest.mark.parametrize("module", ["result", "image", "labels", "errors"])
def test_import_of_light_module_loads_no_heavy_package(module: str) -> None:
    code = f"import sys, magtiles_seg.{module}; print([n for n in {HEAVY} if n in sys.modules])"
    assert run_fresh(code) == "[]"


def test_import_of_the_command_line_loads_neither_numpy_nor_yaml() -> None:
    code = "import sys, magtiles_seg.cli; print([n for n in ('numpy', 'yaml') if n in sys.modules])"
    assert run_fresh(code) == "[]"


def test_import_in_fresh_process_leaves_the_dear_importlib_abc_alone() -> None:
    code = "import sys; sys.modules.pop('importlib.abc', None); import magtiles_seg;"
    assert run_fresh(f"{code} print('importlib.abc' in sys.modules)") == "False"


def test_import_in_fresh_process_costs_at_most_200_ms_over_numpy() -> None:
    code = (
        "import time, numpy; start = time.perf_counter(); import magtiles_seg, magtiles_seg.result;"
        "print(time.perf_counter() - start)"
    )
    assert min(float(run_fresh(code)) for _ in range(3)) <= 0.2


def test_segmenting_in_fresh_process_loads_no_torch() -> None:
    code = (
        "import sys, numpy, magtiles_seg;"
        "magtiles_seg.segment(numpy.full((40, 50), 90, numpy.uint8)); print('torch' in sys.modules)"
    )
    assert run_fresh(code) == "False"


@pytest.mark.parametrize("name", magtiles_seg.__all__)
def test_public_name_is_there_and_listed_by_dir(name: str) -> None:
    assert getattr(magtiles_seg, name) is not None
    assert name in dir(magtiles_seg)


@pytest.mark.parametrize("name", ["dataset", "evaluate", "export", "infer", "model"])
def test_submodule_without_import_is_reached_as_attribute(name: str) -> None:
    assert getattr(magtiles_seg, name) is importlib.import_module(f"magtiles_seg.{name}")


def test_errors_of_the_tree_are_all_public() -> None:
    errors = importlib.import_module("magtiles_seg.errors")
    tree = {name for name, value in vars(errors).items() if isinstance(value, type)}
    assert tree <= set(magtiles_seg.__all__)


def test_unknown_name_is_an_attribute_error_that_names_it() -> None:
    with pytest.raises(AttributeError, match="has no attribute 'segmant'"):
        _ = magtiles_seg.segmant


def test_version_is_that_of_the_installed_distribution() -> None:
    assert magtiles_seg.__version__ == metadata.version("magtiles-seg")


def test_package_carries_the_typed_marker_and_a_model_within_8_mb() -> None:
    package = Path(magtiles_seg.__file__).parent
    assert (package / "py.typed").exists()
    models = list((package / "infer" / "weights").glob("*.onnx"))
    assert models
    assert sum(model.stat().st_size for model in models) <= 12_000_000


def test_no_requirement_brings_a_second_onnxruntime() -> None:
    names = {line.split(">")[0].split("[")[0] for line in metadata.requires("magtiles-seg") or []}
    rivals = {"onnxruntime-gpu", "onnxruntime-openvino", "onnxruntime-directml", "opencv-python"}
    assert "onnxruntime" in names
    assert not names & rivals


def test_no_public_name_of_a_package_is_the_name_of_a_module_of_it() -> None:
    """The import of such a module would put itself in the place of the name."""
    package = Path(magtiles_seg.__file__).parent
    for init in package.rglob("__init__.py"):
        name = ".".join(["magtiles_seg", *init.parent.relative_to(package).parts])
        modules = {path.stem for path in init.parent.iterdir()}
        if "__all__" in init.read_text(encoding="utf-8"):
            assert not modules & set(importlib.import_module(name).__all__), name
