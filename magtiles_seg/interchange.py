"""Doors from a result to what users have: pandas, COCO, LabelMe, supervision."""

from __future__ import annotations

import os
from collections.abc import Iterator
from importlib import import_module
from typing import TYPE_CHECKING, Any

import numpy as np

from magtiles_seg.errors import BackendUnavailableError
from magtiles_seg.regions import DEFECT_COLUMNS
from magtiles_seg.shapes import (
    Mask,
    check_tolerance,
    encode_rle,
    labelme_content,
    labelme_shape,
    outlines,
    rle_to_text,
)

if TYPE_CHECKING:
    from pandas import DataFrame
    from supervision import Detections

    from magtiles_seg.regions import Defect
    from magtiles_seg.result import Segmentation


_WHOLE = ("area_px", "x0_px", "y0_px", "x1_px", "y1_px")
_COLUMN_TYPES = {
    name: "int64" if name in _WHOLE else "float64" for name in DEFECT_COLUMNS if name != "label"
}


def masks_of(result: Segmentation) -> Iterator[tuple[Defect, Mask]]:
    """Yield each defect with its pixels, (H, W) bool."""
    import cv2

    count, regions, stats, _ = cv2.connectedComponentsWithStats(result.mask, connectivity=8)
    left = {index: tuple(int(value) for value in stats[index]) for index in range(1, count)}
    for defect in result.defects:
        x0, y0, x1, y1 = defect.bbox_xyxy_px
        wanted = (x0, y0, x1 - x0, y1 - y0, defect.area_px)
        alike = [index for index, found in left.items() if found == wanted]
        index = min(alike, key=lambda index: _offset(regions == index, defect))
        del left[index]
        yield defect, regions == index


def _offset(mask: Mask, defect: Defect) -> float:
    """Return how far a region's centre is from a defect's: of two in one box, which it is."""
    rows, columns = np.nonzero(mask)
    x, y = defect.centroid_xy_px
    return abs(float(columns.mean()) - x) + abs(float(rows.mean()) - y)


def to_df(result: Segmentation) -> DataFrame:
    """As `Segmentation.to_df`."""
    pandas = _installed("pandas")
    rows = [defect.row() for defect in result.defects]
    table = pandas.DataFrame(rows, columns=list(DEFECT_COLUMNS))
    return table.astype(_COLUMN_TYPES)  # without rows, or without a scale, pandas cannot know them


def to_coco(result: Segmentation, *, image_id: int = 1, first_id: int = 1) -> list[dict[str, Any]]:
    """As `Segmentation.to_coco`."""
    height, width = result.mask.shape
    found = []
    for number, (defect, mask) in enumerate(masks_of(result), start=first_id):
        x0, y0, x1, y1 = defect.bbox_xyxy_px
        found.append(
            {
                "id": number,
                "image_id": image_id,
                "category_id": result.labels.index(defect.label),
                "segmentation": {"size": [height, width], "counts": rle_to_text(encode_rle(mask))},
                "area": defect.area_px,
                "bbox": [x0, y0, x1 - x0, y1 - y0],
                "iscrowd": 0,
                "score": defect.score,
            }
        )
    return found


def to_labelme(
    result: Segmentation, image_path: str | os.PathLike[str], *, tolerance_px: float = 0.0
) -> dict[str, Any]:
    """As `Segmentation.to_labelme`."""
    check_tolerance(tolerance_px)
    height, width = result.mask.shape
    shapes = [
        labelme_shape(defect.label, "polygon", points.tolist())
        for defect, mask in masks_of(result)
        for points in outlines(mask, tolerance_px=tolerance_px)
    ]
    return labelme_content(shapes, os.fspath(image_path), height, width)


def to_supervision(result: Segmentation) -> Detections:
    """As `Segmentation.to_supervision`."""
    supervision = _installed("supervision")
    found = list(masks_of(result))
    if not found:
        return supervision.Detections.empty()
    names = [defect.label for defect, _ in found]
    return supervision.Detections(
        xyxy=np.array([defect.bbox_xyxy_px for defect, _ in found], np.float32),
        mask=np.stack([mask for _, mask in found]),
        confidence=np.array([defect.score for defect, _ in found], np.float32),
        class_id=np.array([result.labels.index(name) for name in names]),
        data={"class_name": np.array(names)},
    )


def _installed(package: str) -> Any:  # noqa: ANN401 - a module
    try:
        return import_module(package)
    except ImportError as error:
        raise BackendUnavailableError(
            f"{package} is not installed; install it: pip install {package}"
        ) from error
