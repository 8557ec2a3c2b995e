"""A result goes to pandas, COCO, LabelMe and supervision with the very pixels of its mask."""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import pytest

from magtiles_seg import shapes
from magtiles_seg.errors import BackendUnavailableError, ConfigError
from magtiles_seg.interchange import masks_of
from magtiles_seg.labels import LABELS
from magtiles_seg.result import Decision, Segmentation


@pytest.fixture
def result() -> Segmentation:
    """Three defects; two of one box and area, of which one lies inside of the other's corner."""
    probability = np.full((48, 64), 0.1, np.float32)
    probability[4:20, 4:8] = probability[16:20, 4:20] = 0.9
    probability[4:8, 12:30] = 0.8
    probability[30:40, 40:60] = 0.7
    probability[33:36, 44:50] = 0.1
    classes = np.where(np.arange(64) < 32, 1, 3)[None].repeat(48, 0).astype(np.uint8)
    return Segmentation.from_prediction(
        np.zeros((48, 64), np.uint8),
        probability,
        classes,
        decision=Decision(threshold=0.5, min_area_px=1),
    )


def test_masks_of_a_result_are_its_defects_and_together_its_mask(result: Segmentation) -> None:
    found = list(masks_of(result))
    assert [defect for defect, _ in found] == list(result.defects)
    assert all(mask.sum() == defect.area_px for defect, mask in found)
    assert (np.sum([mask for _, mask in found], axis=0) == result.mask).all()


def test_table_has_a_row_for_each_defect(result: Segmentation) -> None:
    pytest.importorskip("pandas")
    table = result.to_df()
    assert list(table["label"]) == [defect.label for defect in result.defects]
    assert list(table["area_px"]) == [defect.area_px for defect in result.defects]


def test_table_has_the_same_types_whatever_was_found(result: Segmentation) -> None:
    pytest.importorskip("pandas")
    types = dict(result.to_df().drop(columns="label").dtypes.astype(str))
    assert dict(result.redecide(threshold=0.99).to_df().drop(columns="label").dtypes) == types
    assert (types["area_px"], types["area_mm2"]) == ("int64", "float64")


@pytest.mark.parametrize("tolerance_px", [-1.0, np.nan, np.inf])
def test_labelme_tolerance_of_no_sense_is_refused(
    result: Segmentation, tolerance_px: float
) -> None:
    with pytest.raises(ConfigError, match=r"tolerance_px is .*; expected a number of pixels"):
        result.to_labelme("a.png", tolerance_px=tolerance_px)


def test_labelme_picture_by_a_path_is_text(result: Segmentation) -> None:
    assert result.to_labelme(Path("b/a.png"))["imagePath"] == str(Path("b/a.png"))


def test_coco_annotations_decode_to_the_mask(result: Segmentation) -> None:
    entries = result.to_coco(image_id=7, first_id=3)
    drawn = np.zeros((48, 64), np.uint8)
    for entry in entries:
        counts = shapes.rle_from_text(entry["segmentation"]["counts"])
        mask = shapes.decode_rle(counts, *entry["segmentation"]["size"])
        assert entry["area"] == mask.sum()
        drawn[mask] = entry["category_id"]
    assert (drawn == result.classes).all()
    assert [entry["id"] for entry in entries] == [3, 4, 5]
    assert {entry["image_id"] for entry in entries} == {7}
    assert LABELS[entries[0]["category_id"]] == result.defects[0].label


def test_labelme_polygons_fill_to_the_mask(result: Segmentation) -> None:
    content = result.to_labelme("a.png")
    outlines = [np.array(shape["points"]) for shape in content["shapes"]]
    assert (shapes.fill(outlines, 48, 64) == (result.mask > 0)).all()
    assert (content["imageHeight"], content["imageWidth"]) == (48, 64)


def test_supervision_has_masks_scores_and_classes(result: Segmentation) -> None:
    pytest.importorskip("supervision")
    found = result.to_supervision()
    assert (found.mask.any(axis=0) == (result.mask > 0)).all()
    assert list(found.data["class_name"]) == [defect.label for defect in result.defects]
    assert len(result.redecide(threshold=0.99).to_supervision()) == 0


def test_package_that_is_missing_is_named_with_its_install(
    result: Segmentation, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "supervision", None)
    with pytest.raises(BackendUnavailableError, match="pip install supervision"):
        result.to_supervision()
