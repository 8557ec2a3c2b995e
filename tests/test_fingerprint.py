"""Tests of `magtiles_seg.fingerprint`."""

from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path

import pytest

import magtiles_seg
from magtiles_seg.fingerprint import code_sha256, import_closure

_PACKAGE = Path(magtiles_seg.__file__).parent


@pytest.fixture
def copy(tmp_path: Path) -> Path:
    """Return a copy of the package's code that a test may change."""
    shutil.copytree(_PACKAGE, tmp_path / "magtiles_seg", ignore=shutil.ignore_patterns("*.onnx"))
    return tmp_path


def _digest(copy: Path, root: str = "magtiles_seg.regions") -> str:
    code = f"from magtiles_seg.fingerprint import code_sha256; print(code_sha256([{root!r}]))"
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=copy, capture_output=True, text=True, check=True
    )
    return done.stdout.strip()


def test_import_closure_follows_imports_inside_functions() -> None:
    assert "magtiles_seg.image" in import_closure(["magtiles_seg.infer.segmenter"])
    assert "magtiles_seg.model.card" in import_closure(["magtiles_seg.infer.segmenter"])


def test_import_closure_leaves_out_what_only_type_checkers_import() -> None:
    assert "if TYPE_CHECKING" in (_PACKAGE / "pipeline.py").read_text()
    assert "magtiles_seg.export.artefacts" not in import_closure(["magtiles_seg.pipeline:split"])


def test_import_closure_leaves_out_the_version() -> None:
    assert "magtiles_seg" not in import_closure(["magtiles_seg.infer.segmenter"])


def test_import_closure_of_a_function_leaves_out_what_its_neighbours_import() -> None:
    loading = import_closure(["magtiles_seg.pipeline:load"])

    assert "magtiles_seg.dataset.synthetic.defects" in loading
    assert "magtiles_seg.train.loop" not in loading


def test_import_closure_of_a_function_follows_its_calls_in_the_module() -> None:
    assert "magtiles_seg.evaluate.decide" in import_closure(["magtiles_seg.pipeline:export"])


def test_import_closure_of_an_unknown_function_is_an_error() -> None:
    with pytest.raises(ModuleNotFoundError, match="no function 'nothing'"):
        import_closure(["magtiles_seg.pipeline:nothing"])


def test_import_closure_of_an_unknown_module_is_an_error() -> None:
    with pytest.raises(ModuleNotFoundError, match=r"no module 'magtiles_seg\.nothing'"):
        import_closure(["magtiles_seg.nothing"])


def test_code_sha256_comment_and_docstring_are_the_same_code(copy: Path) -> None:
    before = _digest(copy)
    file = copy / "magtiles_seg" / "regions.py"
    file.write_text('"""Another text."""\n# a remark\n' + file.read_text().partition('"""\n')[2])

    assert _digest(copy) == before


def test_code_sha256_constant_far_down_the_imports_is_other_code(copy: Path) -> None:
    before = _digest(copy, "magtiles_seg.infer.segmenter")
    file = copy / "magtiles_seg" / "image.py"
    text = file.read_text()
    file.write_text(text.replace("64_000_000", "64_000_001"))

    assert file.read_text() != text
    assert _digest(copy, "magtiles_seg.infer.segmenter") != before


def test_code_sha256_is_the_same_in_every_process(copy: Path) -> None:
    assert _digest(copy) == code_sha256(["magtiles_seg.regions"])
