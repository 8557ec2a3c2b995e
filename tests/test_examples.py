from __future__ import annotations

import runpy
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

EXAMPLES = sorted((Path(__file__).parents[1] / "examples").glob("*.py"))


@pytest.fixture(autouse=True)
def _in_empty_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


@pytest.mark.parametrize("example", EXAMPLES, ids=lambda example: example.stem)
def test_example_runs_and_shows_something(
    example: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    if "magtiles_seg.bench.run" in example.read_text(encoding="utf-8"):
        pytest.importorskip("torch")
    monkeypatch.setattr(sys, "argv", [str(example)])
    runpy.run_path(str(example), run_name="__main__")
    assert capsys.readouterr().out.strip()


@pytest.mark.parametrize("example", EXAMPLES, ids=lambda example: example.stem)
def test_example_is_numbered_explained_and_at_most_40_lines(example: Path) -> None:
    lines = example.read_text(encoding="utf-8").splitlines()
    assert example.name[:2].isdigit()
    assert lines[0].startswith('"""')
    assert len(lines) <= 40


@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # of Jupyter's own packages
def test_notebook_runs_from_top_to_bottom_and_is_kept_without_outputs() -> None:
    pytest.importorskip("ipykernel")
    nbclient, nbformat = pytest.importorskip("nbclient"), pytest.importorskip("nbformat")
    notebook = nbformat.read(EXAMPLES[0].with_name("explore.ipynb"), as_version=4)
    code = [cell for cell in notebook.cells if cell.cell_type == "code"]
    assert not any(cell.outputs for cell in code)
    nbclient.NotebookClient(notebook, timeout=120).execute()
    assert all(cell.outputs for cell in code)


def test_demo_finds_the_drawn_defect_and_rejects_the_tile(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    runpy.run_path(str(EXAMPLES[0]), run_name="__main__")
    assert "verdict: reject" in capsys.readouterr().out
    mask = np.asarray(Image.open(tmp_path / "out" / "tile_mask.png"))
    assert mask.any()
