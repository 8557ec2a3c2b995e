"""Labels that are probably wrong, found by models that did not learn them.

Where an out-of-fold prediction is confident and the mask says otherwise, either is wrong. Ranked by
confidence and size, such regions are a short list for a person to look at.
"""

from __future__ import annotations

import csv
import io
import math
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from typing import Any, Literal

import cv2
import numpy as np
import numpy.typing as npt

from magtiles_seg.dataset.samples import Sample
from magtiles_seg.names import as_cell
from magtiles_seg.result import Segmentation

IssueType = Literal["unmarked", "unfound", "class"]

_TYPICAL_PX = 100
"""Regions far below this area are ranked down: annotators and models differ on specks."""

_NEAR_PX = 5
"""A prediction this near to a mask is another opinion of its outline, not of its presence."""


@dataclass(frozen=True, kw_only=True)
class LabelIssue:
    """A region whose label is probably wrong.

    Attributes:
        id: The sample's id.
        issue_type: `unmarked`: found where the mask says sound; `unfound`: masked where the
            prediction says sound; `class`: found, as another class.
        label: Class that the picture is filed under.
        predicted: Class that was found; empty where nothing was.
        tile: Physical tile.
        confidence: 0..1: mean probability of what was predicted, over the region.
        area_px: Of the region.
        bbox_xyxy_px: Of the region, end exclusive.
    """

    id: str
    issue_type: IssueType
    label: str
    predicted: str
    tile: int
    confidence: float
    area_px: int
    bbox_xyxy_px: tuple[int, int, int, int]

    @property
    def rank(self) -> float:
        """Confidence, less for small regions; 0..1."""
        return self.confidence * (1 - math.exp(-self.area_px / _TYPICAL_PX))

    def __str__(self) -> str:
        """Return one line for a report."""
        what = {
            "unmarked": f"{self.predicted} found, not marked",
            "unfound": "marked, not found",
            "class": f"found as {self.predicted}",
        }[self.issue_type]
        return (
            f"{self.id}, filed under {self.label}, tile {self.tile}: {what} "
            f"({self.area_px} px at {self.bbox_xyxy_px}, confidence {self.confidence:.2f})"
        )


def label_issues(
    sample: Sample, result: Segmentation, target: npt.NDArray[np.uint8]
) -> list[LabelIssue]:
    """Compare one out-of-fold answer with the label, region by region.

    Args:
        sample: What the picture is filed as.
        result: The answer of a model that was not trained on the picture's tile.
        target: (H, W) uint8 class indices, 0 is sound.

    Returns:
        The issues, in no order.
    """
    truth, found = (target > 0).astype(np.uint8), result.mask
    size = 2 * _NEAR_PX + 1
    near = cv2.dilate(truth, np.ones((size, size), np.uint8))
    kept: list[LabelIssue] = []

    def note(issue_type: IssueType, region: Any, predicted: str, confidence: float) -> None:  # noqa: ANN401 - (rows, columns)
        rows, columns = region
        kept.append(
            LabelIssue(
                id=sample.id,
                issue_type=issue_type,
                label=sample.label,
                predicted=predicted,
                tile=sample.group,
                confidence=round(confidence, 4),
                area_px=len(rows),
                bbox_xyxy_px=(
                    int(columns.min()),
                    int(rows.min()),
                    int(columns.max()) + 1,
                    int(rows.max()) + 1,
                ),
            )
        )

    for region in _regions(found):
        votes = np.bincount(result.classes[region])
        predicted = result.labels[int(votes.argmax())]
        sure = float(result.probability[region].mean())
        if not near[region].any():
            note("unmarked", region, predicted, sure)
        elif truth[region].any() and predicted != _class_of(target[region], result.labels):
            note("class", region, predicted, sure * float(votes.max() / votes.sum()))
    for region in _regions(truth):
        if not found[region].any():
            note("unfound", region, "", 1 - float(result.probability[region].mean()))
    return kept


def to_dict(issues: Sequence[LabelIssue], samples: Iterable[Sample]) -> dict[str, Any]:
    """Return issues, and the tiles of the data set that are of several classes, as JSON-able."""
    return {
        "label_issues": [{"rank": round(issue.rank, 4), **asdict(issue)} for issue in issues],
        "tiles_of_several_classes": mixed_tiles(samples),
    }


def to_csv(issues: Sequence[LabelIssue]) -> str:
    """Return a line for each issue, in their order, under a header."""
    text = io.StringIO()
    table = csv.writer(text, lineterminator="\n")
    table.writerow(
        ["rank", "image", "issue", "label", "predicted", "group", "confidence", "area_px",
         "x0_px", "y0_px", "x1_px", "y1_px"]
    )  # fmt: skip
    for issue in issues:
        table.writerow(
            [f"{issue.rank:.4f}", as_cell(issue.id), issue.issue_type, as_cell(issue.label),
             as_cell(issue.predicted), issue.tile, issue.confidence, issue.area_px,
             *issue.bbox_xyxy_px]
        )  # fmt: skip
    return text.getvalue()


def mixed_tiles(samples: Iterable[Sample]) -> dict[int, dict[str, list[str]]]:
    """Return the tiles that are filed under more than one class: {tile: {class: ids}}."""
    tiles: dict[int, dict[str, list[str]]] = {}
    for sample in samples:
        if sample.group >= 0:
            tiles.setdefault(sample.group, {}).setdefault(sample.label, []).append(sample.id)
    return {tile: classes for tile, classes in sorted(tiles.items()) if len(classes) > 1}


def _regions(mask: npt.NDArray[np.uint8]) -> list[Any]:
    count, labels = cv2.connectedComponents(mask, connectivity=8)
    return [np.nonzero(labels == index) for index in range(1, count)]


def _class_of(target: npt.NDArray[np.uint8], labels: tuple[str, ...]) -> str:
    return labels[int(np.bincount(target[target > 0]).argmax())]
