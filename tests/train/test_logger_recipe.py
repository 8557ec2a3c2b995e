"""The adapter that docs/formats.md shows logs what a run logs."""

from __future__ import annotations

import re
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest

from magtiles_seg.train.loop import _log
from magtiles_seg.train.state import RunState
from magtiles_seg.train.validation import Validation

PAGE = Path(__file__).parents[2] / "docs" / "formats.md"


def logger(mlflow: Any) -> Any:  # noqa: ANN401 - a module and a logger of a page
    (source,) = re.findall(
        r"^```py\n(class MLflowLogger.*?)^```$", PAGE.read_text("utf-8"), re.M | re.S
    )
    names: dict[str, Any] = {"mlflow": mlflow, "np": np}
    exec(compile(source, PAGE.name, "exec"), names)
    return names["MLflowLogger"]()


def two_epochs(adapter: Any) -> None:  # noqa: ANN401
    for epoch in (1, 2):
        state = RunState({})
        state.epoch, state.best_epoch = epoch, epoch - 1
        state.history.append({"loss": 1.0 / epoch})
        _log(adapter, Validation({}, {"a": np.zeros((4, 4, 3), np.uint8)}), state)


def test_mlflow_adapter_logs_each_epoch_as_a_step() -> None:
    mlflow, seen = ModuleType("mlflow"), list[tuple[object, ...]]()
    mlflow.__dict__["log_metric"] = lambda name, val, step: seen.append((name, val, step))
    mlflow.__dict__["log_image"] = lambda _, artifact_file: seen.append((artifact_file,))
    two_epochs(logger(mlflow))
    assert seen == [("loss", 1.0, 0), ("0000/a.png",), ("loss", 0.5, 1), ("0001/a.png",)]


def test_mlflow_adapter_writes_to_mlflow(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    mlflow = pytest.importorskip("mlflow")
    monkeypatch.setenv("MLFLOW_ALLOW_FILE_STORE", "1")
    mlflow.set_tracking_uri((tmp_path / "runs").as_uri())
    with mlflow.start_run() as run:
        two_epochs(logger(mlflow))
    history = mlflow.MlflowClient().get_metric_history(run.info.run_id, "loss")
    assert [(entry.step, entry.value) for entry in history] == [(0, 1.0), (1, 0.5)]
