"""Mask, defects and verdict, against a naive flood fill; and what is written."""

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
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from numpy.typing import NDArray

from magtiles_seg.errors import ConfigError, InferenceError
from magtiles_seg.labels import LABELS, color_rgb
from magtiles_seg.regions import top_mean
from magtiles_seg.result import Decision, Defect, Segmentation

LEVELS = [0.0, 0.125, 0.25, 0.5, 0.75, 1.0]


def segment(
    probability: NDArray[Any] | list[list[float]],
    classes: NDArray[Any] | int = 1,
    *,
    mm_per_px: float | None = None,
    source: str | None = None,
    **decision: Any,  # noqa: ANN401 - any field of Decision
) -> Segmentation:
    probability = np.asarray(probability, dtype=np.float32)
    return Segmentation.from_prediction(
        np.arange(probability.size, dtype=np.uint8).reshape(probability.shape),
        probability,
        np.broadcast_to(np.asarray(classes, dtype=np.uint8), probability.shape),
        decision=Decision(**decision),
        mm_per_px=mm_per_px,
        source=source,
        model={"name": "test"},
    )


@st.composite
def predictions(draw: st.DrawFn) -> tuple[NDArray[np.float32], NDArray[np.uint8]]:
    shape = draw(st.tuples(st.integers(1, 9), st.integers(1, 9)))
    probability = draw(arrays(np.float32, shape, elements=st.sampled_from(LEVELS)))
    return probability, draw(arrays(np.uint8, shape, elements=st.integers(1, 5)))


def flood_fill(mask: NDArray[Any]) -> list[list[tuple[int, int]]]:
    """The 8-connected regions of a mask, each as its pixels (y, x), one pixel at a time."""
    left = {(int(y), int(x)) for y, x in np.argwhere(mask)}
    regions = []
    while left:
        region, ahead = [], [left.pop()]
        while ahead:
            y, x = ahead.pop()
            region.append((y, x))
            near = {(y + dy, x + dx) for dy in (-1, 0, 1) for dx in (-1, 0, 1)} & left
            left -= near
            ahead.extend(near)
        regions.append(sorted(region))
    return regions


# ---- mask and defects


@settings(deadline=None)
@given(predictions(), st.sampled_from(LEVELS), st.integers(1, 4))
def test_defects_of_any_prediction_are_those_of_a_flood_fill(
    prediction: tuple[NDArray[np.float32], NDArray[np.uint8]], threshold: float, min_area_px: int
) -> None:
    probability, classes = prediction
    result = segment(probability, classes, threshold=threshold, min_area_px=min_area_px)
    regions = [
        region for region in flood_fill(probability >= threshold) if len(region) >= min_area_px
    ]
    mask = np.zeros(probability.shape, np.uint8)
    expected: list[dict[str, Any]] = []
    for region in regions:
        y, x = np.array(region).T
        mask[y, x] = 1
        by_class = np.bincount(classes[y, x], probability[y, x], len(LABELS))
        expected.append(
            {
                "label": LABELS[1 + int(by_class[1:].argmax())],
                "score": pytest.approx(probability[y, x].mean()),
                "area_px": len(region),
                "bbox_xyxy_px": (x.min(), y.min(), x.max() + 1, y.max() + 1),
                "centroid_xy_px": pytest.approx((x.mean(), y.mean())),
            }
        )
    assert np.array_equal(result.mask, mask)
    assert np.array_equal(result.classes, mask * classes)
    found = [{key: getattr(one, key) for key in expected[0]} for one in result.defects]
    expected.sort(key=lambda one: (-one["area_px"], one["bbox_xyxy_px"][1], one["bbox_xyxy_px"][0]))
    assert len(found) == len(expected)
    for one in expected:
        assert one in found
    assert [one.area_px for one in result.defects] == [one["area_px"] for one in expected]


@settings(deadline=None)
@given(predictions())
def test_rotated_size_of_any_defect_encloses_its_pixels(
    prediction: tuple[NDArray[np.float32], NDArray[np.uint8]],
) -> None:
    for defect in segment(*prediction).defects:
        x0, y0, x1, y1 = defect.bbox_xyxy_px
        assert 1 - 1e-4 <= defect.width_px <= defect.length_px
        assert defect.area_px <= defect.length_px * defect.width_px * (1 + 1e-4)
        assert defect.length_px * defect.width_px <= (x1 - x0) * (y1 - y0) * (1 + 1e-4)


def test_defects_of_hand_worked_picture_are_measured() -> None:
    result = segment(
        [[0.9, 0.7, 0.1, 0.0], [0.1, 0.1, 0.1, 0.0], [0.1, 0.1, 0.1, 0.6], [0.1, 0.1, 0.1, 0.4]],
        np.array([[1, 3, 1, 1], [1, 1, 1, 1], [1, 1, 1, 4], [1, 1, 1, 4]]),
        mm_per_px=0.5,
    )
    large, dot = result.defects
    assert (large.label, dot.label) == ("blowhole", "fray")
    assert large.score == pytest.approx(0.8)
    assert (large.area_px, large.bbox_xyxy_px) == (2, (0, 0, 2, 1))
    assert large.centroid_xy_px == (0.5, 0.0)
    assert (large.length_px, large.width_px) == pytest.approx((2, 1))
    assert (large.area_mm2, large.length_mm, large.width_mm) == pytest.approx((0.5, 1, 0.5))
    assert dot.bbox_xyxy_px == (3, 2, 4, 3)
    assert (dot.length_px, dot.width_px) == pytest.approx((1, 1))
    assert result.mask.tolist() == [[1, 1, 0, 0], [0] * 4, [0, 0, 0, 1], [0] * 4]
    assert result.classes.tolist() == [[1, 3, 0, 0], [0] * 4, [0, 0, 0, 4], [0] * 4]


def test_length_of_diagonal_line_is_measured_along_it() -> None:
    (line,) = segment(np.eye(20)).defects
    assert line.length_px == pytest.approx(20 * 2**0.5, rel=1e-3)
    assert line.width_px == pytest.approx(2**0.5, rel=1e-3)


def test_defects_without_scale_have_no_mm() -> None:
    (defect,) = segment([[1.0]]).defects
    assert (defect.area_mm2, defect.length_mm, defect.width_mm) == (None, None, None)


def test_probability_equal_to_threshold_is_defect() -> None:
    assert segment([[0.3, 0.29]], threshold=0.3).mask.tolist() == [[1, 0]]


def test_prediction_in_other_memory_order_gives_the_same_result() -> None:
    probability = np.random.default_rng(1).random((9, 14)).astype(np.float32)
    expected = segment(probability)
    for other in (np.asfortranarray(probability), np.repeat(probability, 2, 1)[:, ::2]):
        assert segment(other).defects == expected.defects


# ---- score and verdict


@settings(deadline=None)
@given(
    st.integers(1, 40),
    st.integers(1, 40),
    st.integers(1, 30) | st.integers(1, 2000),
    st.integers(0, 2**32),
    st.booleans(),
)
def test_top_mean_of_any_picture_is_that_of_a_full_sort(
    height: int, width: int, k: int, seed: int, coarse: bool
) -> None:
    probability = np.random.default_rng(seed).random((height, width), dtype=np.float32)
    if coarse:  # many equal values
        probability = np.round(probability, 1)
    expected = np.sort(probability.ravel().astype(float))[::-1][:k].mean()
    assert top_mean(probability, k) == pytest.approx(expected)


@settings(deadline=None)
@given(predictions(), st.sampled_from(LEVELS), st.sampled_from(LEVELS))
def test_higher_threshold_never_adds_to_the_mask_nor_changes_the_score(
    prediction: tuple[NDArray[np.float32], NDArray[np.uint8]], one: float, other: float
) -> None:
    low = segment(*prediction, threshold=min(one, other))
    high = low.redecide(threshold=max(one, other))
    assert (high.mask <= low.mask).all()
    assert high.score == low.score


@pytest.mark.parametrize(
    ("score", "verdict"), [(0.2, "accept"), (0.3, "review"), (0.59, "review"), (0.6, "reject")]
)
def test_verdict_follows_score_and_both_limits(score: float, verdict: str) -> None:
    assert Decision(reject_score=0.6, review_score=0.3).verdict(score) == verdict
    assert Decision(reject_score=0.6).verdict(score) == verdict.replace("review", "accept")


@settings(deadline=None)
@given(predictions(), st.sampled_from(LEVELS), st.integers(1, 4), st.integers(1, 50))
def test_redecide_equals_a_decision_made_from_the_start(
    prediction: tuple[NDArray[np.float32], NDArray[np.uint8]],
    threshold: float,
    min_area_px: int,
    score_top_k_px: int,
) -> None:
    changes: dict[str, Any] = {
        "threshold": threshold,
        "min_area_px": min_area_px,
        "score_top_k_px": score_top_k_px,
        "reject_score": 0.7,
        "review_score": 0.2,
    }
    changed = segment(*prediction, mm_per_px=0.1, source="a.png").redecide(**changes)
    fresh = segment(*prediction, mm_per_px=0.1, source="a.png", **changes)
    assert changed.to_dict() == fresh.to_dict()
    for name in ("image", "probability", "classes", "mask"):
        assert np.array_equal(getattr(changed, name), getattr(fresh, name))


def test_redecide_lower_after_higher_finds_the_defect_and_its_class_again() -> None:
    result = segment([[0.4, 0.1]], 3, threshold=0.9)
    assert result.defects == ()
    (defect,) = result.redecide(threshold=0.9).redecide(threshold=0.4).defects
    assert defect.label == "crack"


def test_redecide_unknown_field_names_the_nearest() -> None:
    with pytest.raises(ConfigError, match="'treshold'; did you mean 'threshold'"):
        segment([[0.4]]).redecide(treshold=0.3)


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("threshold", -0.1),
        ("threshold", 1.1),
        ("threshold", float("nan")),
        ("threshold", "0.5"),
        ("threshold", None),
        ("threshold", True),
        ("min_area_px", 0),
        ("min_area_px", 2.5),
        ("score_top_k_px", 0),
        ("reject_score", 2),
        ("review_score", 0.6),
        ("review_score", -1),
    ],
)
def test_decision_without_sense_is_a_config_error(name: str, value: object) -> None:
    with pytest.raises(ConfigError, match=rf"{name} is .*; expected"):
        Decision(**{name: value})  # type: ignore[arg-type]


def test_decision_of_numpy_numbers_holds_plain_ones() -> None:
    decision = Decision(threshold=np.float32(0.25), min_area_px=np.int64(3))  # type: ignore[arg-type]
    assert json.loads(json.dumps(dataclasses.asdict(decision)))["min_area_px"] == 3
    assert type(decision.threshold) is float


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


def test_overlay_tints_defects_and_leaves_the_rest_grey() -> None:
    result = segment([[0.9, 0.1], [0.1, 0.9]], np.array([[2, 1], [1, 5]]))
    half = result.overlay()
    assert half.dtype == np.uint8
    assert half[0, 1].tolist() == [1, 1, 1]
    assert half[0, 0].tolist() == np.rint(np.array(color_rgb(2)) * 0.5).tolist()
    assert result.overlay(alpha=1)[1, 1].tolist() == list(color_rgb(5))
    assert np.array_equal(result.overlay(0), np.repeat(result.image[..., None], 3, axis=2))


def test_overlay_alpha_out_of_range_is_a_config_error() -> None:
    with pytest.raises(ConfigError, match=r"alpha is 1\.5; expected a number from 0 to 1"):
        segment([[0.9]]).overlay(1.5)


@settings(deadline=None)
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
    names = {"mask.png", "overlay.png", "probability.png", "result.json"}
    assert {file.name for file in folder.iterdir()} == names
    assert json.loads(path.read_text()) == json.loads(result.to_json())
    assert np.array_equal(read_png(folder / "mask.png"), result.mask * 255)
    assert np.array_equal(read_png(folder / "overlay.png")[..., ::-1], result.overlay())
    assert read_png(folder / "probability.png").tolist() == [[230, 26], [128, 51]]


def test_save_with_stem_keeps_results_of_several_pictures_apart(tmp_path: Path) -> None:
    segment([[0.9]]).save(tmp_path, stem="a")
    assert segment([[0.1]]).save(tmp_path, stem="b").name == "b_result.json"
    assert len(list(tmp_path.iterdir())) == 8


@pytest.mark.parametrize("stem", ["", "a/b", ".", "/etc/x", "a\\b", "a\0b"])
def test_save_stem_that_is_no_file_name_is_a_config_error(tmp_path: Path, stem: str) -> None:
    with pytest.raises(ConfigError, match="expected a plain file name"):
        segment([[0.9]]).save(tmp_path, stem=stem)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("whole_files", range(4))
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
        "probability.png",
    }
    assert all(read_png(file).shape[:2] == (1, 1) for file in tmp_path.iterdir())


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
