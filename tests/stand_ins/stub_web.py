"""A model that sees a known number of pixels, and a web under it."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise
from types import SimpleNamespace
from typing import cast

import cv2
import numpy as np
import pytest
from numpy.typing import NDArray

from magtiles_seg.errors import InferenceError
from magtiles_seg.infer.segmenter import Segmenter
from magtiles_seg.linescan.segmenter import LineScanSegmenter, WebDefect
from magtiles_seg.linescan.strips import halo_px
from magtiles_seg.model.card import ModelCard
from magtiles_seg.result import Decision, Defect, Segmentation

Picture = NDArray[np.uint8]

STRIDE = 4
CARD = ModelCard(
    name="stub",
    architecture="stub",
    labels=("background", "dark", "grey", "light"),
    stride=STRIDE,
    receptive_field_px=2 * (34 + 2 * STRIDE) + 1,
)
HALO = halo_px(CARD)


class StubBackend:
    """A filter that sees 34 px and two cells of a grid of 4 px, and answers to the bit alike.

    What counts: the pixel, the largest pixel in its and the neighbouring cells, and the pixels 34
    above and below; outside the picture is black, below the stride's multiple the last row.
    """

    def __init__(self) -> None:
        self.shapes: list[tuple[int, ...]] = []
        self.fails_at = -1

    def infer(self, images: Picture) -> tuple[NDArray[np.float32], Picture]:
        self.shapes.append(images.shape)
        if len(self.shapes) == self.fails_at:
            raise InferenceError("out of memory")
        answers = [self._answer(image) for image in images]
        probability = np.stack([one for one, _ in answers])
        return probability, np.stack([other for _, other in answers])

    def _answer(self, image: Picture) -> tuple[NDArray[np.float32], Picture]:
        height, width = image.shape
        padding = [(0, -side % STRIDE) for side in image.shape]
        grey = np.pad(image, padding, mode="reflect")
        cells = grey.reshape(len(grey) // STRIDE, STRIDE, -1, STRIDE).max(axis=(1, 3))
        cells = np.asarray(cv2.dilate(cells, np.ones((3, 3), np.uint8), borderValue=0))
        near = np.kron(cells, np.ones((STRIDE, STRIDE), np.uint8))[:height, :width]
        far = np.pad(grey, [(34, 34), (0, 0)])
        far = np.maximum(far[:-68], far[68:])[:height, :width]
        mix = 12 * image.astype(np.int32) + 3 * near.astype(np.int32) + far
        return (mix / (16 * 255)).astype(np.float32), (1 + (image // 8) % 3).astype(np.uint8)

    def close(self) -> None: ...


def stub_segmenter(backend: StubBackend | None = None, **decision: float) -> Segmenter:
    fake = SimpleNamespace(
        backend=backend or StubBackend(),
        spec=SimpleNamespace(card=CARD),
        decision=Decision(**decision),  # type: ignore[arg-type]
    )
    return cast("Segmenter", fake)


def stub_web(width_px: int, **options: object) -> LineScanSegmenter:
    options.setdefault("segmenter", stub_segmenter())
    return LineScanSegmenter(width_px, **{"strip_rows": 16, **options})  # type: ignore[arg-type]


def run(web: LineScanSegmenter, picture: Picture, cuts: Sequence[int] = ()) -> list[WebDefect]:
    """Push a picture in blocks that end at `cuts`, and close the web."""
    edges = [0, *sorted(cuts), len(picture)]
    found = [defect for a, b in pairwise(edges) for defect in web.push(picture[a:b])]
    return found + web.close()


def whole(picture: Picture, segmenter: Segmenter) -> tuple[Defect, ...]:
    """Return what the picture gives when it is segmented as one."""
    missing = [(0, max(0, 32 - side)) for side in picture.shape]
    stack = np.pad(picture, missing, mode="reflect")[None]
    probability, classes = segmenter.backend.infer(stack)
    box = tuple(slice(0, side) for side in picture.shape)
    result = Segmentation.from_prediction(
        picture,
        probability[0][box],
        classes[0][box],
        decision=segmenter.decision,
        labels=segmenter.spec.card.labels,
    )
    return result.defects


def assert_equal_up_to_rounding(found: Sequence[WebDefect], expected: Sequence[Defect]) -> None:
    def key(one: Defect) -> tuple[object, ...]:
        return (one.bbox_xyxy_px, one.area_px, one.centroid_xy_px)

    assert len(found) == len(expected)
    for one, other in zip(sorted(found, key=key), sorted(expected, key=key), strict=True):
        assert one.bbox_xyxy_px == other.bbox_xyxy_px
        assert (one.area_px, one.label) == (other.area_px, other.label)
        assert one.centroid_xy_px == pytest.approx(other.centroid_xy_px, rel=1e-9)
        assert one.score == pytest.approx(other.score, rel=1e-6)
        # Two rectangles may be equally small: then only their area is one and the same.
        size, wanted = one.length_px * one.width_px, other.length_px * other.width_px
        assert size == pytest.approx(wanted, rel=1e-3)
        assert (one.first_line, one.last_line) == (one.bbox_xyxy_px[1], one.bbox_xyxy_px[3] - 1)
        assert one.complete


def spiral(height: int, width: int) -> Picture:
    """Return a spiral, one line and one gap of 3 px wide."""
    picture = np.zeros((height, width), np.uint8)
    for step, inset in enumerate(range(0, min(height, width) // 2 - 6, 6)):
        low, right, bottom = inset, width - 1 - inset, height - 1 - inset
        path = [(low - 6 if step else 0, low), (right, low), (right, bottom), (low, bottom)]
        path.append((low, low + 6))
        cv2.polylines(picture, [np.array(path, np.int32)], False, 255, 2)
    return picture


def random_web(seed: int) -> Picture:
    """Return a web with specks, crooked lines, rings, bars on its borders and spirals."""
    rng = np.random.default_rng(seed)
    height, width = int(rng.integers(1, 260)), int(rng.integers(1, 70))
    web = rng.integers(0, 120, (height, width), np.uint8)
    for _ in range(rng.integers(0, 6)):
        points = rng.integers((0, 0), (width, height), (int(rng.integers(1, 6)), 2))
        grey = int(rng.integers(150, 256))
        kind = int(rng.integers(4))
        if kind == 0:
            cv2.polylines(web, [points.astype(np.int32)], False, grey, int(rng.integers(1, 4)))
        elif kind == 1:
            centre = (int(points[0, 0]), int(points[0, 1]))
            cv2.circle(web, centre, int(rng.integers(1, 40)), grey, 2)
        elif kind == 2:
            web[:, 0 if grey % 2 else -1] = grey
        elif min(height, width) > 20:
            web[:] = np.maximum(web, spiral(height, width))
    return web
