"""How a result is drawn and written: overlay, PNG and JSON files, CSV."""

from __future__ import annotations

import os
import uuid
from pathlib import Path
from typing import TYPE_CHECKING, Any

import cv2
import numpy as np

from magtiles_seg.errors import ConfigError
from magtiles_seg.labels import color_rgb

if TYPE_CHECKING:
    from collections.abc import Iterable

    from numpy.typing import NDArray

    from magtiles_seg.regions import Defect
    from magtiles_seg.result import Segmentation

_CSV_HEADER = (
    "label,score,area_px,x0_px,y0_px,x1_px,y1_px,centroid_x_px,centroid_y_px,length_px,width_px,"
    "area_mm2,length_mm,width_mm\n"
)


def draw_overlay(
    image: NDArray[np.uint8], classes: NDArray[np.uint8], alpha: float
) -> NDArray[np.uint8]:
    """Tint each defect pixel of a picture with its class's colour.

    Args:
        image: (H, W) uint8.
        classes: (H, W) uint8; 0 is left as it is.
        alpha: Share of the colour, 0..1.

    Returns:
        (H, W, 3) uint8 RGB.
    """
    drawn = np.repeat(image[:, :, None], 3, axis=2)
    inside = classes > 0
    palette = np.array([color_rgb(index) for index in range(int(classes.max()) + 1)])
    tinted = (1 - alpha) * image[inside, None] + alpha * palette[classes[inside]]
    drawn[inside] = np.rint(tinted).astype(np.uint8)
    return drawn


def format_csv(defects: Iterable[Defect]) -> str:
    """Return one header line and a line per defect; without a scale the mm columns are empty."""
    import csv
    import io

    text = io.StringIO()
    text.write(_CSV_HEADER)
    rows = csv.writer(text, lineterminator="\n")
    for one in defects:
        where = (*one.bbox_xyxy_px, *one.centroid_xy_px, one.length_px, one.width_px)
        in_mm = (one.area_mm2, one.length_mm, one.width_mm)
        rows.writerow((one.label, one.score, one.area_px, *where, *in_mm))
    return text.getvalue()


def save_result(result: Segmentation, directory: str | os.PathLike[str], stem: str | None) -> Path:
    """Write a result's pictures and, last, its JSON; return the JSON's path.

    Raises:
        ConfigError: `stem` is no plain file name.
        OSError: The directory or a file cannot be written.
    """
    if stem is not None and (not stem or Path(stem).name != stem or "\\" in stem or "\0" in stem):
        raise ConfigError(f"stem is {stem!r}; expected a plain file name, such as 'tile_7'")
    prefix = f"{stem}_" if stem else ""
    probability = np.rint(result.probability * 255).astype(np.uint8)
    overlay = cv2.cvtColor(result.overlay(), cv2.COLOR_RGB2BGR)
    contents = {
        "mask.png": _png(result.mask * np.uint8(255)),
        "overlay.png": _png(overlay),
        "probability.png": _png(probability),
        "result.json": (result.to_json(indent=2) + "\n").encode(),
    }
    folder = Path(directory)
    folder.mkdir(parents=True, exist_ok=True)
    manifest = folder / f"{prefix}result.json"
    manifest.unlink(missing_ok=True)  # an older one must not stand beside newer pictures
    for name, content in contents.items():
        write_whole(folder / f"{prefix}{name}", content)
    return manifest


def _png(picture: NDArray[Any]) -> bytes:
    done, encoded = cv2.imencode(".png", picture)
    if not done:
        raise OSError(f"OpenCV could not encode a {picture.shape} picture as PNG")
    return encoded.tobytes()


def write_whole(path: Path, content: bytes) -> None:
    """Write through a neighbour and rename, so that the name never stands on half a file."""
    part = path.with_name(f".{uuid.uuid4().hex}.part")
    try:
        part.write_bytes(content)
        part.replace(path)
    finally:
        part.unlink(missing_ok=True)
