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


def _ask(copy: Path, question: str) -> str:
    code = f"from magtiles_seg.fingerprint import code_sha256, import_closure; print({question})"
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=copy, capture_output=True, text=True, check=True
    )
    return done.stdout.strip()


def _digest(copy: Path, root: str = "magtiles_seg.regions") -> str:
    return _ask(copy, f"code_sha256([{root!r}])")


def _closure(copy: Path, root: str) -> list[str]:
    return _ask(copy, f"*import_closure([{root!r}])").split()


@pytest.mark.parametrize(
    "line",
    [
        "import magtiles_seg.image",
        "from magtiles_seg import image",
        "from magtiles_seg.image import read_image",
        "if TYPE_CHECKING:\n    image = None\nelse:\n    import magtiles_seg.image",
        "import_module('magtiles_seg.image')",
        "APP = 'magtiles_seg.image:app'",
    ],
)
def test_import_closure_follows_every_way_to_import(copy: Path, line: str) -> None:
    (copy / "magtiles_seg" / "probe.py").write_text(line)

    assert "magtiles_seg.image" in _closure(copy, "magtiles_seg.probe")


def test_import_closure_of_a_module_holds_what_its_package_imports(copy: Path) -> None:
    package = copy / "magtiles_seg" / "probe"
    package.mkdir()
    (package / "__init__.py").write_text("import magtiles_seg.image")
    (package / "inner.py").write_text("")

    assert "magtiles_seg.image" in _closure(copy, "magtiles_seg.probe.inner")


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


def test_code_sha256_docstrings_of_functions_and_classes_are_the_same_code(copy: Path) -> None:
    before = _digest(copy)
    file = copy / "magtiles_seg" / "regions.py"
    text = file.read_text()
    for words in ("Measure the connected regions", "One connected region"):
        assert words in text
        text = text.replace(words, "Another text")
    file.write_text(text)

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
