"""What comes out: a picture's probabilities turned into a mask, measured defects and a verdict."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass, field, fields, replace
from typing import TYPE_CHECKING, Any

import numpy as np

from magtiles_seg.decision import Decision, Verdict, fraction, scale
from magtiles_seg.errors import ConfigError, InferenceError
from magtiles_seg.labels import LABELS
from magtiles_seg.names import as_text
from magtiles_seg.regions import Defect, find_regions

if TYPE_CHECKING:
    import os
    from collections.abc import Mapping
    from pathlib import Path

    from numpy.typing import DTypeLike, NDArray
    from pandas import DataFrame
    from supervision import Detections

__all__ = ["Decision", "Defect", "Segmentation", "Verdict"]

_SCHEMA_VERSION = 1
_ROUNDING = 1e-5  # a runtime's sigmoid may overshoot by this much


@dataclass(frozen=True, eq=False, repr=False, kw_only=True)
class Segmentation:
    """One picture's answer. Frozen, its arrays read-only; made by `from_prediction`.

    Attributes:
        image: (H, W) uint8, the grey picture that was segmented.
        probability: (H, W) float32 in 0..1, of any defect.
        classes: (H, W) uint8, index into `labels`; 0 where the mask is 0.
        mask: (H, W) uint8, 0 sound or 1 defect.
        defects: The mask's connected regions, largest first.
        score: Made of the mean of the `decision.score_top_k_px` largest probabilities that are not
            within `decision.score_margin_px` of the border, 0..1.
        decision: The thresholds that were used.
        labels: Class names by index; 0 is background.
        mm_per_px: Scale, or None where it is unknown.
        source: Where the picture came from, or None.
        model: Lineage of the model: name, sha256 and so on.

    Example:
        >>> result = magtiles_seg.segment("tile.png")
        >>> result.verdict, len(result.defects), result.redecide(threshold=0.8).mask.sum()
    """

    image: NDArray[np.uint8]
    probability: NDArray[np.float32]
    classes: NDArray[np.uint8]
    mask: NDArray[np.uint8]
    defects: tuple[Defect, ...]
    score: float
    decision: Decision
    labels: tuple[str, ...]
    mm_per_px: float | None = None
    source: str | None = None
    model: Mapping[str, str] = field(default_factory=dict)
    _defect_classes: NDArray[np.uint8]

    def __post_init__(self) -> None:
        """Check that the arrays fit each other, and lock them."""
        shape = np.shape(self.image)
        for name in ("image", "probability", "classes", "mask", "_defect_classes"):
            dtype = np.dtype(np.float32 if name == "probability" else np.uint8)
            object.__setattr__(self, name, _read_only(name, getattr(self, name), shape, dtype))

    def __setstate__(self, state: dict[str, Any]) -> None:
        """Lock the arrays again: pickled or copied ones are writable."""
        self.__dict__.update(state)
        self.__post_init__()

    @classmethod
    def from_prediction(
        cls,
        image: NDArray[np.uint8],
        probability: NDArray[np.float32],
        defect_classes: NDArray[np.uint8],
        *,
        decision: Decision,
        labels: tuple[str, ...] = LABELS,
        mm_per_px: float | None = None,
        source: str | None = None,
        model: Mapping[str, str] | None = None,
    ) -> Segmentation:
        """Decide on a model's prediction: threshold, regions, score.

        The arrays are kept, not copied: hand over fresh ones.

        Args:
            image: (H, W) uint8, the picture.
            probability: (H, W) float32 in 0..1, of any defect.
            defect_classes: (H, W) uint8, 1..len(labels) - 1: the likeliest defect class at every
                pixel, whatever the probability.
            decision: The thresholds.
            labels: Class names by index; 0 is background.
            mm_per_px: Scale, if known: defects are then measured in mm as well.
            source: Where the picture came from.
            model: Lineage of the model.

        Raises:
            InferenceError: The arrays do not fit each other, or hold NaN or values out of range.
            ConfigError: `mm_per_px` is not a positive number.
        """
        shape = np.shape(image)
        probability = _read_only("probability", probability, shape, np.dtype(np.float32))
        defect_classes = _read_only("defect_classes", defect_classes, shape, np.dtype(np.uint8))
        probability = _within("probability", probability, 0, 1, slack=_ROUNDING)
        defect_classes = _within("defect_classes", defect_classes, 1, len(labels) - 1)
        mm_per_px = scale(mm_per_px)
        mask, defects = find_regions(
            (probability >= decision.threshold).view(np.uint8),
            probability,
            defect_classes,
            labels=labels,
            min_area_px=decision.min_area_px,
            mm_per_px=mm_per_px,
        )
        return cls(
            image=image,
            probability=probability,
            classes=mask * defect_classes,
            mask=mask,
            defects=defects,
            score=decision.score_of(probability),
            decision=decision,
            labels=tuple(labels),
            mm_per_px=mm_per_px,
            source=source,
            model=dict(model or {}),
            _defect_classes=defect_classes,
        )

    @property
    def verdict(self) -> Verdict:
        """What the score means: "accept", "reject", or "review" where `review_score` is set."""
        return self.decision.verdict(self.score)

    def redecide(self, **changes: float | None) -> Segmentation:
        """Return what other thresholds make of the same prediction, with no new inference.

        As everywhere, whoever sets `reject_score` means tiles of several pictures as well:
        `tile_reject_score` goes, unless it is set, too.

        Args:
            **changes: Fields of `Decision`, as `threshold=0.7`.

        Raises:
            ConfigError: A field is unknown or its value out of range.
        """
        known = [entry.name for entry in fields(Decision)]
        for name in changes:
            if name not in known:
                from magtiles_seg.config import nearest

                hint = nearest(name, known)
                raise ConfigError(f"unknown key {name!r}{hint}; known: {', '.join(known)}")
        if "reject_score" in changes:
            changes = {"tile_reject_score": None, **changes}
        return Segmentation.from_prediction(
            self.image,
            self.probability,
            self._defect_classes,
            decision=replace(self.decision, **changes),  # type: ignore[arg-type]  # Decision checks them
            labels=self.labels,
            mm_per_px=self.mm_per_px,
            source=self.source,
            model=self.model,
        )

    def overlay(self, alpha: float = 0.5) -> NDArray[np.uint8]:
        """Return the picture with each region tinted in its class's colour: (H, W, 3) uint8 RGB.

        Args:
            alpha: Share of the colour, 0..1.

        Raises:
            ConfigError: `alpha` is out of range.
        """
        from magtiles_seg.drawing import draw_overlay, region_classes

        return draw_overlay(self.image, region_classes(self), fraction("alpha", alpha))

    def panel(self) -> NDArray[np.uint8]:
        """Return a picture for people, (h, w, 3) uint8 RGB: the input beside the answer.

        Each region is outlined and numbered, small ones are enlarged; verdict, score and a legend
        stand with it. A rejected picture without a region shows its heat map and says why.
        """
        from magtiles_seg.drawing import draw_panel

        return draw_panel(self)

    def to_dict(self) -> dict[str, Any]:
        """Return everything but the arrays, as plain JSON values."""
        height, width = self.mask.shape
        return {
            "schema_version": _SCHEMA_VERSION,
            "source": None if self.source is None else as_text(self.source),
            "height_px": height,
            "width_px": width,
            "verdict": self.verdict,
            "score": self.score,
            "defect_area_px": int(np.count_nonzero(self.mask)),
            "defects": [asdict(defect) for defect in self.defects],
            "decision": self.decision.to_dict(),
            "labels": list(self.labels),
            "mm_per_px": self.mm_per_px,
            "model": dict(self.model),
        }

    def to_json(self, *, indent: int | None = None) -> str:
        """Return `to_dict()` as JSON text."""
        return json.dumps(self.to_dict(), indent=indent, allow_nan=False)

    def defects_csv(self) -> str:
        """Return the defects as CSV: one header line, then a line per defect."""
        from magtiles_seg.writing import format_csv

        return format_csv(self.defects)

    def to_df(self) -> DataFrame:
        """Return the defects as a table of pandas, one row each, by the columns of `defects_csv`.

        Columns have the same types whatever was found; measures in mm are NaN without a scale.

        Raises:
            BackendUnavailableError: pandas is not installed.
        """
        from magtiles_seg.interchange import to_df

        return to_df(self)

    def to_coco(self, *, image_id: int = 1, first_id: int = 1) -> list[dict[str, Any]]:
        """Return the defects as annotations of COCO, with run lengths: exactly the mask's pixels.

        A category's id is the class's index. `pycocotools` takes the list as results, too.

        Args:
            image_id: Of the picture.
            first_id: Of the first annotation; the others follow.
        """
        from magtiles_seg.interchange import to_coco

        return to_coco(self, image_id=image_id, first_id=first_id)

    def to_labelme(
        self, image_path: str | os.PathLike[str], *, tolerance_px: float = 0.0
    ) -> dict[str, Any]:
        """Return the content of a LabelMe file: a draft for a person to correct.

        Args:
            image_path: Path of the picture from where the file is to stand.
            tolerance_px: How far a polygon may stray from the mask, to have fewer points.

        Raises:
            ConfigError: `tolerance_px` is negative, or no finite number.
        """
        from magtiles_seg.interchange import to_labelme

        return to_labelme(self, image_path, tolerance_px=tolerance_px)

    def to_supervision(self) -> Detections:
        """Return the defects as `supervision.Detections`, with masks, scores and classes.

        Raises:
            BackendUnavailableError: supervision is not installed.
        """
        from magtiles_seg.interchange import to_supervision

        return to_supervision(self)

    def save(self, directory: str | os.PathLike[str], stem: str | None = None) -> Path:
        """Write mask.png (0 or 255), overlay.png, panel.png, probability.png (0..255), result.json.

        result.json comes last: where it stands, the pictures beside it are whole and belong to it.
        The pictures carry a mark, by which they are never taken for inputs.

        Args:
            directory: Made when it does not exist.
            stem: Put before each name, as in `<stem>_mask.png`.

        Returns:
            The path of result.json.

        Raises:
            ConfigError: `stem` is no plain file name, or a file that is none of ours is in the way.
            OSError: The directory or a file cannot be written.
        """
        from magtiles_seg.writing import save_result

        return save_result(self, directory, stem)

    def __array__(self, dtype: DTypeLike | None = None, copy: bool | None = None) -> NDArray[Any]:
        """Return the mask, so that `numpy.asarray(result)` is the mask."""
        return np.array(self.mask, dtype=dtype, copy=copy)

    def __repr__(self) -> str:
        """Return size, verdict, score and the largest defects, on one line."""
        height, width = self.mask.shape
        found = ", ".join(f"{defect.label} {defect.area_px} px" for defect in self.defects[:3])
        more = f", {len(self.defects) - 3} more" if len(self.defects) > 3 else ""
        verdict = f"{self.verdict}, score {self.score:.3f}"
        return f"Segmentation({height}x{width}, {verdict}, [{found}{more}])"


def _read_only(
    name: str, array: object, shape: tuple[int, ...], dtype: np.dtype[Any]
) -> NDArray[Any]:
    name = name.lstrip("_")
    if not isinstance(array, np.ndarray):
        raise InferenceError(f"{name} is a {type(array).__name__}; expected a {dtype} numpy array")
    if array.dtype != dtype or array.shape != shape or array.ndim != 2 or not array.size:
        raise InferenceError(
            f"{name} is {array.dtype} {array.shape}; expected {dtype} of the picture's (H, W), "
            f"here {shape}, at least 1 x 1; pass one picture and the model's answer for it"
        )
    view = array.view()
    view.flags.writeable = False
    return view


def _within(
    name: str, array: NDArray[Any], low: int, high: int, slack: float = 0.0
) -> NDArray[Any]:
    least, most = array.min(), array.max()
    if least >= low and most <= high:
        return array
    if least >= low - slack and most <= high + slack:
        return np.asarray(np.clip(array, low, high))
    raise InferenceError(  # NaN comes here too
        f"{name} runs from {least} to {most}; expected {low}..{high}; check the model"
    )
