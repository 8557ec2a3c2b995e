from __future__ import annotations

from pathlib import Path

import cv2
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from stub_web import (
    Picture,
    StubBackend,
    assert_equal_up_to_rounding,
    random_web,
    run,
    spiral,
    stub_segmenter,
    stub_web,
    whole,
)

from magtiles_seg.errors import ConfigError
from magtiles_seg.infer.segmenter import Segmenter
from magtiles_seg.linescan.segmenter import LineScanSegmenter


def test_random_cuts_of_random_webs_give_one_and_the_same_list() -> None:
    rng = np.random.default_rng(1)
    found_any = 0
    for seed in range(100):
        picture = random_web(seed)
        reference = run(stub_web(picture.shape[1], mm_per_px=0.1), picture)
        found_any += bool(reference)
        for _ in range(10):
            cuts = rng.integers(0, len(picture) + 1, rng.integers(0, 30)).tolist()
            assert run(stub_web(picture.shape[1], mm_per_px=0.1), picture, cuts) == reference
    assert found_any > 60


@settings(max_examples=60)
@given(seed=st.integers(0, 10**6), strip_rows=st.integers(1, 64), min_area_px=st.integers(1, 9))
def test_web_in_strips_equals_the_whole_picture(
    seed: int, strip_rows: int, min_area_px: int
) -> None:
    picture = random_web(seed)
    segmenter = stub_segmenter(min_area_px=min_area_px)
    web = stub_web(picture.shape[1], strip_rows=strip_rows, segmenter=segmenter)
    assert_equal_up_to_rounding(
        run(web, picture, range(0, len(picture), 7)), whole(picture, segmenter)
    )


def u_shape(height: int = 300, width: int = 40) -> Picture:
    picture = np.zeros((height, width), np.uint8)
    picture[10:-10, [8, 9, 30, 31]] = 255
    picture[-12:-10, 8:32] = 255
    return picture


@pytest.mark.parametrize("drawn", [u_shape(), u_shape()[::-1], spiral(300, 60)])
def test_shape_over_many_strips_that_merges_late_is_one_defect(drawn: Picture) -> None:
    picture: Picture = np.ascontiguousarray(drawn)
    found = run(stub_web(picture.shape[1]), picture, range(300))
    (defect,) = found
    (expected,) = whole(picture, stub_segmenter())
    assert (defect.area_px, defect.bbox_xyxy_px) == (expected.area_px, expected.bbox_xyxy_px)


@pytest.mark.parametrize("row", [15, 16, 31, 32, 47, 48])
def test_defect_on_a_strips_border_is_found_once(row: int) -> None:
    picture = np.zeros((100, 50), np.uint8)
    picture[row, 20], picture[row + 1, 21] = 255, 255  # touches by a corner only
    (defect,) = run(stub_web(50), picture)
    assert (defect.area_px, defect.first_line, defect.last_line) == (2, row, row + 1)


def test_batches_give_the_same_list_and_fewer_calls() -> None:
    picture = random_web(4)
    picture = np.vstack([picture] * 4)
    alone, together = StubBackend(), StubBackend()
    lists = [
        run(stub_web(picture.shape[1], segmenter=stub_segmenter(backend), batch=size), picture)
        for backend, size in ((alone, 1), (together, 4))
    ]
    assert lists[0] == lists[1]
    assert len(together.shapes) < len(alone.shapes) / 2
    assert max(shape[0] for shape in together.shapes) == 4


def test_real_model_in_strips_equals_the_whole_picture(model: Path) -> None:
    rng = np.random.default_rng(0)
    coarse = rng.integers(0, 256, (60, 10), np.uint8)
    picture = cv2.resize(coarse, (75, 523), interpolation=cv2.INTER_CUBIC).astype(np.uint8)
    with Segmenter(model, threads=1) as segmenter:
        web = LineScanSegmenter(75, segmenter, strip_rows=64)
        found = run(web, picture, range(0, 523, 50))
        expected = segmenter(picture).defects
    assert len(expected) > 3
    assert web.report.lines == 523
    assert_equal_up_to_rounding(found, expected)


def test_memory_on_an_endless_defect_stays_flat() -> None:
    rows = np.zeros((400, 40), np.uint8)
    rows[:, 10:20] = 255
    web = stub_web(40, strip_rows=64)
    points = []
    for _ in range(30):
        assert web.push(rows) == []
        (region,) = web._regions._open
        points.append(len(region.hull))
    assert max(points) <= 2 * 41
    (defect,) = web.close()
    assert (defect.length_px, defect.width_px) == (30 * 400, 10)


def test_lines_are_settled_up_to_the_first_open_defect() -> None:
    rows = np.zeros((400, 40), np.uint8)
    rows[100:350, 10:20] = 255
    web = stub_web(40, strip_rows=64)
    web.push(rows[:300])
    assert web.settled_line == 100
    (defect,) = [*web.push(rows[300:]), *web.close()]
    assert defect.first_line == 100
    assert web.settled_line == 400


@pytest.mark.parametrize("name", ["width_px", "strip_rows", "batch", "mm_per_px", "line_mm"])
def test_number_out_of_its_range_is_refused_by_its_own_name(name: str) -> None:
    with pytest.raises(ConfigError, match=f"^{name} is 0; expected a"):
        LineScanSegmenter(**{"width_px": 40, "segmenter": stub_segmenter(), name: 0})  # type: ignore[arg-type]


def test_defect_far_down_the_web_is_measured_as_at_its_start() -> None:
    picture = random_web(8)
    near, far = (
        web.push(picture, start) + web.close()
        for web, start in ((stub_web(picture.shape[1]), 0), (stub_web(picture.shape[1]), 2**40))
    )
    assert near
    for one, other in zip(near, far, strict=True):
        assert (other.length_px, other.width_px) == (one.length_px, one.width_px)
        assert other.first_line - 2**40 == one.first_line
        assert other.centroid_xy_px[1] - 2**40 == pytest.approx(one.centroid_xy_px[1], abs=1e-3)


def test_line_pitch_stretches_the_measures_in_mm_only() -> None:
    picture = np.zeros((60, 40), np.uint8)
    picture[20:30, 10:14] = 255
    (defect,) = run(stub_web(40, mm_per_px=0.5, line_mm=0.1), picture)
    assert (defect.length_px, defect.width_px) == (10, 4)
    assert defect.length_mm == pytest.approx(2)
    assert defect.width_mm == pytest.approx(1)
    assert defect.area_mm2 == pytest.approx(40 * 0.5 * 0.1)


def test_path_of_a_model_is_no_segmenter() -> None:
    with pytest.raises(TypeError, match=r"'model.onnx'; expected a Segmenter"):
        LineScanSegmenter(256, "model.onnx")  # type: ignore[arg-type]
