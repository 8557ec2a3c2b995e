"""Tests of `magtiles_seg.moved`: former names of modules work for one release, and say so."""

from __future__ import annotations

import importlib
import subprocess
import sys
import warnings

import pytest

from magtiles_seg.moved import MOVED, find_moved_modules


def load(name: str) -> object:
    sys.modules.pop(f"magtiles_seg.{name}", None)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)
        return importlib.import_module(f"magtiles_seg.{name}")


@pytest.mark.parametrize("name", sorted(MOVED))
def test_former_name_gives_the_module_where_it_is_now(name: str) -> None:
    try:
        now = importlib.import_module(f"magtiles_seg.{MOVED[name]}")
    except ImportError as error:  # an optional extra
        pytest.skip(str(error))
    assert load(name) is now


def test_former_name_warns_with_both_names() -> None:
    sys.modules.pop("magtiles_seg.infer.linescan", None)
    with pytest.warns(DeprecationWarning, match=r"infer\.linescan has moved to .*linescan\.segm"):
        importlib.import_module("magtiles_seg.infer.linescan")


def test_former_names_of_the_first_release_are_importable() -> None:
    code = (
        "from magtiles_seg.infer.linescan import LineScanSegmenter\n"
        "from magtiles_seg.infer.cameras import GenicamSource\n"
        "from magtiles_seg.dataset.archive import fetch, verify\n"
        "from magtiles_seg.deciding import Decision\n"
        "from magtiles_seg.evaluate.thresholds import choose_decision\n"
        "from magtiles_seg.evaluate.crossval import evaluate_folds\n"
        "import magtiles_seg.infer.sinks\n"
    )
    command = [sys.executable, "-W", "ignore::DeprecationWarning", "-c", code]
    subprocess.run(command, check=True)


def test_unknown_module_is_still_not_found() -> None:
    with pytest.raises(ModuleNotFoundError, match="nothing"):
        importlib.import_module("magtiles_seg.infer.nothing")


def test_find_moved_modules_twice_changes_nothing() -> None:
    before = list(sys.meta_path)
    find_moved_modules()
    assert sys.meta_path == before


def test_former_name_in_a_module_gives_what_it_is_now_and_says_so() -> None:
    from magtiles_seg import batch

    with pytest.warns(DeprecationWarning, match=r"batch\.Progress is now .*batch\.BatchProgress"):
        assert batch.Progress is batch.BatchProgress
    with pytest.raises(AttributeError, match="has no attribute 'Regress'"):
        _ = batch.Regress
