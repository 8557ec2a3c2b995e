"""What a result is made from, what it refuses, and what is written."""

from __future__ import annotations

import csv
import dataclasses
import io
import json
import pickle
import subprocess
import sys
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
from hypothesis import given
from numpy.typing import NDArray
from predictions import predictions, segment

from magtiles_seg.errors import ConfigError, InferenceError
from magtiles_seg.labels import color_rgb
from magtiles_seg.result import Decision, Defect, Segmentation

# ---- what fits


def parts(**changes: object) -> dict[str, Any]:
    whole: dict[str, Any] = {
        "image": np.zeros((2, 3), np.uint8),
        "probability": np.zeros((2, 3), np.float32),
        "defect_classes": np.ones((2, 3), np.uint8),
        "decision": Decision(),
    }
    return whole | changes


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("probability", np.zeros((3, 2), np.float32)),
        ("probability", np.zeros((2, 3))),
        ("probability", [[0.0] * 3] * 2),
        ("probability", np.full((2, 3), np.nan, np.float32)),
        ("probability", np.full((2, 3), 1.01, np.float32)),
        ("probability", np.full((2, 3), -0.01, np.float32)),
        ("defect_classes", np.ones((2, 4), np.uint8)),
        ("defect_classes", np.ones((2, 3), np.int64)),
        ("defect_classes", np.zeros((2, 3), np.uint8)),
        ("defect_classes", np.full((2, 3), 6, np.uint8)),
        ("image", np.zeros((2, 3), np.float32)),
    ],
)
def test_from_prediction_that_does_not_fit_is_an_inference_error(name: str, value: object) -> None:
    with pytest.raises(InferenceError, match=f"{name} .*; ?expected"):
        Segmentation.from_prediction(**parts(**{name: value}))


@pytest.mark.parametrize("shape", [(0, 3), (3,), (1, 2, 3)])
def test_from_prediction_of_no_picture_is_an_inference_error(shape: tuple[int, ...]) -> None:
    with pytest.raises(InferenceError, match=r"expected float32 of the picture's \(H, W\)"):
        Segmentation.from_prediction(
            np.zeros(shape, np.uint8),
            np.zeros(shape, np.float32),
            np.ones(shape, np.uint8),
            decision=Decision(),
        )


def test_from_prediction_rounding_of_a_sigmoid_is_clipped() -> None:
    result = segment([[1.000001, -0.000001]])
    assert (result.probability.max(), result.probability.min()) == (1, 0)


@pytest.mark.parametrize("value", [0, -1, float("inf"), float("nan"), "1", True])
def test_from_prediction_scale_without_sense_is_a_config_error(value: object) -> None:
    with pytest.raises(ConfigError, match=r"mm_per_px is .*; expected a positive number"):
        Segmentation.from_prediction(**parts(mm_per_px=value))


def test_constructor_with_mask_of_another_shape_is_an_inference_error() -> None:
    result = segment([[0.9, 0.1]])
    with pytest.raises(InferenceError, match=r"mask is uint8 \(2, 2\)"):
        dataclasses.replace(result, mask=np.zeros((2, 2), np.uint8))


def test_arrays_of_result_are_read_only_and_the_givers_stay_writable() -> None:
    given_parts = parts()
    result = Segmentation.from_prediction(**given_parts)
    for name in ("image", "probability", "classes", "mask"):
        with pytest.raises(ValueError, match="read-only"):
            getattr(result, name)[0, 0] = 1
    assert given_parts["probability"].flags.writeable


def test_result_is_frozen_and_survives_pickling() -> None:
    result = segment([[0.9, 0.1]], mm_per_px=2.0)
    with pytest.raises(dataclasses.FrozenInstanceError, match="score"):
        result.score = 0.0  # type: ignore[misc]
    assert pickle.loads(pickle.dumps(result)).redecide().to_dict() == result.to_dict()


# ---- what comes out


def read_png(path: Path) -> NDArray[Any]:
    picture = cv2.imread(str(path), cv2.IMREAD_UNCHANGED)
    assert picture is not None
    return picture


def test_asarray_of_result_is_the_mask() -> None:
    result = segment([[0.9, 0.1]])
    assert np.asarray(result) is result.mask
    assert np.asarray(result, dtype=bool).tolist() == [[True, False]]
    assert np.array(result).flags.writeable


def test_repr_of_result_with_many_defects_is_one_short_line() -> None:
    checked = np.zeros((9, 9))
    checked[::2, ::2] = 1
    text = repr(segment(checked))
    assert text.startswith("Segmentation(9x9, accept, score 0.309, [blowhole 1 px")
    assert text.endswith("22 more])")
    assert len(text) < 120


def test_overlay_tints_a_region_in_one_colour_and_leaves_the_rest_grey() -> None:
    result = segment([[0.9, 0.1], [0.1, 0.8]], np.array([[2, 1], [1, 5]]))
    half = result.overlay()
    assert half.dtype == np.uint8
    assert half[0, 1].tolist() == [1, 1, 1]
    assert half[0, 0].tolist() == np.rint(np.array(color_rgb(2)) * 0.5).tolist()
    assert result.overlay(alpha=1)[1, 1].tolist() == list(color_rgb(2))
    assert np.array_equal(result.overlay(0), np.repeat(result.image[..., None], 3, axis=2))


def test_overlay_alpha_out_of_range_is_a_config_error() -> None:
    with pytest.raises(ConfigError, match=r"alpha is 1\.5; expected a number from 0 to 1"):
        segment([[0.9]]).overlay(1.5)


@given(predictions())
def test_json_of_any_result_is_its_dictionary(
    prediction: tuple[NDArray[np.float32], NDArray[np.uint8]],
) -> None:
    result = segment(*prediction, mm_per_px=0.25, source="tile.png")
    values = json.loads(result.to_json())
    assert values["verdict"] == result.verdict
    assert values["defect_area_px"] == result.mask.sum()
    assert (values["height_px"], values["width_px"]) == result.mask.shape
    assert Decision(**values["decision"]) == result.decision
    read = []
    for one in values["defects"]:
        fields: dict[str, Any] = {k: tuple(v) if isinstance(v, list) else v for k, v in one.items()}
        read.append(Defect(**fields))
    assert tuple(read) == result.defects


def test_defects_csv_has_a_line_per_defect_and_empty_mm_without_scale() -> None:
    rows = list(csv.DictReader(io.StringIO(segment([[0.9, 0.1, 0.9, 0.9]]).defects_csv())))
    assert [row["area_px"] for row in rows] == ["2", "1"]
    assert [rows[0][name] for name in ("x0_px", "y0_px", "x1_px", "y1_px")] == ["2", "0", "4", "1"]
    assert {rows[0][name] for name in ("area_mm2", "length_mm", "width_mm")} == {""}
    assert segment([[0.1]]).defects_csv().count("\n") == 1


def test_save_writes_pictures_and_json_that_read_back(tmp_path: Path) -> None:
    result = segment([[0.9, 0.1], [0.5, 0.2]], 2)
    path = result.save(tmp_path / "new" / "out")
    folder = path.parent
    names = {"mask.png", "overlay.png", "panel.png", "probability.png", "result.json"}
    assert {file.name for file in folder.iterdir()} == names
    assert json.loads(path.read_text()) == json.loads(result.to_json())
    assert np.array_equal(read_png(folder / "mask.png"), result.mask * 255)
    assert np.array_equal(read_png(folder / "overlay.png")[..., ::-1], result.overlay())
    assert read_png(folder / "probability.png").tolist() == [[230, 26], [128, 51]]


def test_save_to_an_address_makes_no_local_folder_of_that_name(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ConfigError, match=r"s3://tiles/out is an address"):
        segment([[0.9]]).save("s3://tiles/out")
    assert list(tmp_path.iterdir()) == []


def test_save_with_stem_keeps_results_of_several_pictures_apart(tmp_path: Path) -> None:
    segment([[0.9]]).save(tmp_path, stem="a")
    assert segment([[0.1]]).save(tmp_path, stem="b").name == "b_result.json"
    assert len(list(tmp_path.iterdir())) == 10


@pytest.mark.parametrize("stem", ["", "a/b", ".", "/etc/x", "a\\b", "a\0b"])
def test_save_stem_that_is_no_file_name_is_a_config_error(tmp_path: Path, stem: str) -> None:
    with pytest.raises(ConfigError, match="expected a plain file name"):
        segment([[0.9]]).save(tmp_path, stem=stem)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("whole_files", range(5))
def test_save_that_breaks_off_leaves_no_json_and_no_part(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, whole_files: int
) -> None:
    segment([[0.1]]).save(tmp_path)
    write = Path.write_bytes
    written: list[Path] = []

    def break_off(self: Path, content: bytes) -> int:
        if len(written) == whole_files:
            write(self, content[: len(content) // 2])
            raise OSError(28, "No space left on device")
        written.append(self)
        return write(self, content)

    monkeypatch.setattr(Path, "write_bytes", break_off)
    with pytest.raises(OSError, match="No space left"):
        segment([[0.9]]).save(tmp_path)
    assert {file.name for file in tmp_path.iterdir()} == {
        "mask.png",
        "overlay.png",
        "panel.png",
        "probability.png",
    }
    panel = segment([[0.9]]).panel().shape[:2]
    for file in tmp_path.iterdir():
        expected = (
            {(1, 1)} if file.name != "panel.png" else {panel, segment([[0.1]]).panel().shape[:2]}
        )
        assert read_png(file).shape[:2] in expected


def test_save_that_cannot_encode_keeps_the_older_result(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    segment([[0.1]]).save(tmp_path)
    before = {file.name: file.read_bytes() for file in tmp_path.iterdir()}
    monkeypatch.setattr(cv2, "imencode", lambda *_: (False, None))
    with pytest.raises(OSError, match="could not encode"):
        segment([[0.9]]).save(tmp_path)
    assert {file.name: file.read_bytes() for file in tmp_path.iterdir()} == before


def test_result_import_needs_nothing_but_numpy() -> None:
    code = (
        "import sys, magtiles_seg.result;"
        "sys.exit(bool({'PIL', 'cv2', 'torch', 'onnxruntime'} & set(sys.modules)))"
    )
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
