"""What dvc.yaml says each stage rests on, held against what the stage imports."""

from __future__ import annotations

from pathlib import Path

import pytest
import yaml

from magtiles_seg.fingerprint import import_closure

PROJECT = Path(__file__).parents[1]
STAGES = yaml.safe_load((PROJECT / "dvc.yaml").read_text())["stages"]
FUNCTIONS = {
    "data_load": "load",
    "data_split": "split",
    "train": "train",
    "export": "export",
    "evaluate": "evaluate",
}


def declared(stage: str) -> list[str]:
    return [str(path) for path in STAGES[stage]["deps"] if str(path).startswith("magtiles_seg")]


def imported(stage: str) -> set[str]:
    """Files below the project of every module that a stage can reach."""
    files = set()
    for module in import_closure([f"magtiles_seg.pipeline:{FUNCTIONS[stage]}"]):
        base = module.replace(".", "/")
        files.add(f"{base}.py" if (PROJECT / f"{base}.py").is_file() else f"{base}/__init__.py")
    return files


def is_below(file: str, path: str) -> bool:
    return file == path or file.startswith(f"{path}/")


def test_every_stage_has_its_function_in_the_pipeline() -> None:
    assert STAGES.keys() == FUNCTIONS.keys()


@pytest.mark.parametrize("stage", FUNCTIONS)
def test_stage_declares_every_module_that_it_imports(stage: str) -> None:
    missing = [
        file
        for file in imported(stage)
        if not any(is_below(file, path) for path in declared(stage))
    ]
    assert missing == []


@pytest.mark.parametrize("stage", FUNCTIONS)
def test_stage_declares_nothing_that_it_does_not_import(stage: str) -> None:
    files = imported(stage)
    assert [p for p in declared(stage) if not any(is_below(file, p) for file in files)] == []
