from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray

from magtiles_seg.errors import InferenceError
from magtiles_seg.infer.backends.base import FlippedBackend
from magtiles_seg.infer.segmenter import Segmenter
from magtiles_seg.model.bundled import BUNDLED_MODEL


class _Seen:
    """A model that answers with the grey level and, whatever it is shown, a slope to the right."""

    spec = Segmenter(BUNDLED_MODEL).spec

    def infer(self, images: NDArray[np.uint8]) -> tuple[NDArray[np.float32], NDArray[np.uint8]]:
        slope = np.linspace(0, 0.5, images.shape[2], dtype=np.float32)
        return (images / 510 + slope).astype(np.float32), np.ones_like(images)

    def close(self) -> None:
        raise InferenceError("closed")


@given(st.integers(0, 2**32 - 1), st.integers(1, 3), st.integers(32, 40), st.integers(32, 40))
def test_flipped_backend_turns_every_view_back(seed: int, n: int, height: int, width: int) -> None:
    images = np.random.default_rng(seed).integers(0, 256, (n, height, width), dtype=np.uint8)
    probability, classes = FlippedBackend(_Seen()).infer(images)
    assert np.allclose(probability, images / 510 + 0.25, atol=1e-6)  # the slope cancels out
    assert probability.dtype == np.float32
    assert (classes == 1).all()


def test_flipped_backend_closes_what_it_wraps() -> None:
    with pytest.raises(InferenceError, match="closed"):
        FlippedBackend(_Seen()).close()


def test_segmenter_with_flips_answers_a_mirrored_picture_with_the_mirrored_probability() -> None:
    image = np.random.default_rng(0).integers(60, 120, (96, 64), dtype=np.uint8)
    with Segmenter(flips=True) as segmenter:
        result, mirrored = segmenter(image), segmenter(image[:, ::-1].copy())
    assert np.allclose(result.probability, mirrored.probability[:, ::-1], atol=1e-5)
