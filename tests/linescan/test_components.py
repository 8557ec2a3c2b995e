from __future__ import annotations

from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from stub_web import random_web

from magtiles_seg.linescan.components import OpenRegions
from magtiles_seg.linescan.defects import measure
from magtiles_seg.regions import Defect, find_regions

LABELS = ("background", "dark", "grey", "light")


def key(one: Defect) -> tuple[object, ...]:
    return (one.bbox_xyxy_px, one.area_px, one.centroid_xy_px)


@settings(max_examples=80)
@given(seed=st.integers(0, 10**6), min_area_px=st.integers(1, 9), data=st.data())
def test_regions_of_a_picture_are_those_of_its_strips_in_every_measure(
    seed: int, min_area_px: int, data: st.DataObject
) -> None:
    picture = random_web(seed)
    height, width = picture.shape
    rng = np.random.default_rng(seed)
    probability = picture.astype(np.float32) / np.float32(255)
    classes = rng.integers(1, len(LABELS), picture.shape, np.uint8)
    cuts = data.draw(st.lists(st.integers(0, height), max_size=12))
    edges = sorted({0, height, *cuts})

    web = OpenRegions(width, len(LABELS), min_area_px)
    ended = [
        region
        for top, bottom in pairwise(edges)
        for region in web.add(top, probability[top:bottom], classes[top:bottom], 0.5)
    ]
    ended += web.finish(complete=True)
    found = [measure(region, LABELS, mm_per_px=0.1, line_mm=0.1) for region in ended]

    mask = (probability >= 0.5).view(np.uint8)
    _, expected = find_regions(
        mask, probability, classes, labels=LABELS, min_area_px=min_area_px, mm_per_px=0.1
    )
    assert len(found) == len(expected)
    for one, other in zip(sorted(found, key=key), sorted(expected, key=key), strict=True):
        assert key(one) == key(other)
        assert (one.label, one.area_mm2) == (other.label, other.area_mm2)
        assert one.score == pytest.approx(other.score, rel=1e-5)
        # Two rectangles may be equally small: then only their area is one and the same.
        size, wanted = one.length_px * one.width_px, other.length_px * other.width_px
        assert size == pytest.approx(wanted, rel=1e-4)
        assert one.length_mm == pytest.approx(one.length_px * 0.1)
        assert (one.first_line, one.last_line) == (one.bbox_xyxy_px[1], one.bbox_xyxy_px[3] - 1)
        assert one.complete


def test_defect_of_more_lines_than_int32_holds_is_measured_whole() -> None:
    web, rows = OpenRegions(6, len(LABELS)), np.zeros((4, 6), np.float32)
    rows[:, 1:4] = 1
    classes = np.ones((4, 6), np.uint8)
    for line in (7, 3 * 2**30 + 7, 3 * 2**30 + 11):  # what lies between is not gone through
        assert not web.add(line, rows, classes, 0.5)
    (region,) = web.finish(complete=True)
    found = measure(region, LABELS, mm_per_px=0.1, line_mm=0.2)
    assert found.bbox_xyxy_px == (1, 7, 4, 3 * 2**30 + 15)
    assert found.length_px == pytest.approx(3 * 2**30 + 7, rel=1e-6)
    assert found.length_mm == pytest.approx(0.2 * (3 * 2**30 + 7), rel=1e-6)
    assert len(region.hull) <= 2 * 6 + 4
