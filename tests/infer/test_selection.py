from __future__ import annotations

import json
import warnings
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from magtiles_seg.environment import describe
from magtiles_seg.infer import selection
from magtiles_seg.infer.backends.base import file_sha256
from magtiles_seg.infer.segmenter import Segmenter
from magtiles_seg.infer.selection import Selection, SelectionWarning, save_selection

PICTURE = np.full((40, 50), 90, np.uint8)


@pytest.fixture
def config(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    path = tmp_path / "config" / "backends.json"
    monkeypatch.setenv("MAGTILES_CONFIG", str(path))
    return path


def chosen(**changes: Any) -> Selection:  # noqa: ANN401
    """A selection that shows: no default has one thread on this many-core rule."""
    plain = Selection(
        backend="onnxruntime",
        device="cpu",
        threads=1,
        precision=None,
        runtime=selection.runtime_of("onnxruntime"),
    )
    return replace(plain, **changes)


def test_segmenter_without_selection_uses_the_default_and_says_so(
    config: Path, model: Path
) -> None:
    with Segmenter(model) as segmenter:
        assert (segmenter.spec.name, segmenter.spec.selection) == ("onnxruntime", "")
    assert describe(model)["selected by"].startswith("default")
    assert not config.exists()


def test_segmenter_with_selection_uses_it_and_says_so(config: Path, model: Path) -> None:
    assert save_selection(file_sha256(model), chosen()) == config
    with Segmenter(model) as segmenter:
        assert (segmenter.spec.threads, segmenter.spec.selection) == (1, str(config))
    assert describe(model)["selected by"] == str(config)


def test_segmenter_with_own_wish_ignores_the_selection(config: Path, model: Path) -> None:
    save_selection(file_sha256(model), chosen())
    for wish in ({"device": "cpu"}, {"backend": "onnxruntime"}, {"threads": 2}):
        with Segmenter(model, **wish) as segmenter:
            assert segmenter.spec.selection == ""
    assert config.exists()


def test_selection_with_another_file_runs_that_file(
    config: Path, model: Path, tmp_path: Path
) -> None:
    other = tmp_path / "int8.onnx"
    other.write_bytes(model.read_bytes())
    save_selection(file_sha256(model), chosen(file=str(other), file_sha256=file_sha256(other)))
    with Segmenter(model) as segmenter:
        assert segmenter.spec.path == other
    other.write_bytes(b"other content")
    with pytest.warns(SelectionWarning, match="has changed since"), Segmenter(model) as segmenter:
        assert segmenter.spec.path == model
    assert config.exists()


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"runtime": "onnxruntime 0.1"}, r"measured with onnxruntime 0\.1, installed is onnx"),
        ({"backend": "gone", "runtime": ""}, "unknown backend 'gone'"),
        ({"file": "/nowhere/int8.onnx"}, "no model file at /nowhere"),
        ({"device": "cuda"}, "needs the GPU build|did not start|cannot use"),
    ],
)
def test_selection_that_is_stale_warns_and_still_segments(
    config: Path, model: Path, changes: dict[str, Any], reason: str
) -> None:
    save_selection(file_sha256(model), chosen(**changes))
    with pytest.warns(SelectionWarning, match=reason):
        segmenter = Segmenter(model)
    assert segmenter(PICTURE).mask.shape == PICTURE.shape
    assert segmenter.spec.selection == ""
    assert config.exists()


@pytest.mark.parametrize(
    "kind", ["empty", "no json", "list", "entry", "fields", "types", "number", "binary"]
)
def test_selection_file_that_is_damaged_warns_and_still_segments(
    config: Path, model: Path, kind: str
) -> None:
    key, here = file_sha256(model), selection.machine()
    content = {
        "empty": b"",
        "no json": b"{",
        "list": b"[]",
        "entry": json.dumps({key: [1]}).encode(),
        "fields": json.dumps({key: {here: {"backend": "onnxruntime"}}}).encode(),
        "types": json.dumps({key: {here: {**asdict(chosen()), "threads": "x"}}}).encode(),
        "number": json.dumps({key: {here: {**asdict(chosen()), "device": 3}}}).encode(),
        "binary": b"\xff\xfe\x00",
    }[kind]
    config.parent.mkdir()
    config.write_bytes(content)
    with (
        pytest.warns(SelectionWarning, match=r"is not used, the default runs.*bench --select"),
        Segmenter(model) as segmenter,
    ):
        assert segmenter(PICTURE).mask.shape == PICTURE.shape
    save_selection(key, chosen())
    with Segmenter(model) as segmenter:
        assert segmenter.spec.selection == str(config)


def test_selection_of_another_model_or_machine_does_not_apply(
    config: Path, model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    save_selection("0" * 64, chosen(threads=7))
    with monkeypatch.context() as patch:
        patch.setattr(selection, "machine", lambda: "another, 64 cores")
        save_selection(file_sha256(model), chosen(threads=7))
    with warnings.catch_warnings(), Segmenter(model) as segmenter:
        assert segmenter.spec.selection == ""
    assert len(json.loads(config.read_text(encoding="utf-8"))) == 2


def test_selection_path_follows_the_environment(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("MAGTILES_CONFIG", raising=False)
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path))
    assert selection.selection_path() == tmp_path / "magtiles-seg" / "backends.json"
    monkeypatch.delenv("XDG_CONFIG_HOME")
    assert selection.selection_path().parts[-3:] == (".config", "magtiles-seg", "backends.json")


def test_machine_names_processor_cores_and_gpus(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "0000:01").mkdir()
    (tmp_path / "0000:01" / "information").write_text("Model: \t\t NVIDIA L4\nIRQ: 7\n")
    (tmp_path / "cpuinfo").write_text("processor\t: 0\nmodel name\t: Some CPU\n")
    monkeypatch.setattr(selection, "_GPUS", tmp_path)
    monkeypatch.setattr(selection, "_CPUINFO", tmp_path / "cpuinfo")
    monkeypatch.setattr(selection, "available_cores", lambda: 4)
    assert selection.machine() == "Some CPU, 4 cores; NVIDIA L4"


@pytest.mark.parametrize(
    "text",
    ["[" * 100_000, '{"a":' * 100_000, "NaN", "[]", '"x"', "{", "\x00", '{"%s": 3}', '{"%s": {}}x'],
)
def test_selection_file_damaged_in_any_way_warns_and_the_default_runs(
    text: str, config: Path, model: Path
) -> None:
    config.parent.mkdir()
    config.write_text(text.replace("%s", file_sha256(model)))
    with pytest.warns(SelectionWarning, match="is not used, the default runs"):
        segmenter = Segmenter(model)
    assert segmenter.spec.selection == ""


@pytest.mark.usefixtures("config")
@pytest.mark.parametrize(
    "changes",
    [{"threads": 10**9}, {"threads": "1"}, {"threads": True}, {"device": 3}, {"file": 3},
     {"backend": "rm -rf"}, {"precision": []}],
)  # fmt: skip
def test_selection_with_a_value_of_no_sense_warns(changes: dict[str, Any], model: Path) -> None:
    save_selection(file_sha256(model), chosen(**changes))
    with pytest.warns(SelectionWarning):
        assert Segmenter(model).spec.selection == ""
