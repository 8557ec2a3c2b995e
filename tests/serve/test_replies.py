from __future__ import annotations

import base64
import gzip
import json
import time

import cv2
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray

from magtiles_seg import Segmenter
from magtiles_seg.decision import Decision
from magtiles_seg.result import Segmentation
from magtiles_seg.serve.replies import (
    INCLUDES,
    Wish,
    encode,
    mask_of_run_lengths,
    rows_of_digits,
    run_lengths,
)

masks = st.integers(1, 12).flatmap(
    lambda width: st.lists(
        st.lists(st.integers(0, 1), min_size=width, max_size=width), min_size=1, max_size=9
    )
)


def result(height: int = 6, width: int = 9) -> Segmentation:
    probability = np.zeros((height, width), np.float32)
    probability[1:3, 2:5] = 0.9
    image = np.full((height, width), 90, np.uint8)
    classes = np.full((height, width), 2, np.uint8)
    return Segmentation.from_prediction(image, probability, classes, decision=Decision())


@given(masks)
def test_rows_of_digits_is_the_json_of_the_rows(rows: list[list[int]]) -> None:
    assert rows_of_digits(np.array(rows, np.uint8)) == json.dumps(
        rows, separators=(",", ":")
    ).encode().replace(b"],[", b"],[")


@given(masks)
def test_run_lengths_run_down_the_columns_and_come_back(rows: list[list[int]]) -> None:
    mask = np.array(rows, np.uint8)
    rle = run_lengths(mask)
    assert sum(rle["counts"]) == mask.size
    assert sum(rle["counts"][1::2]) == mask.sum()
    assert (mask_of_run_lengths(rle, mask.shape) == mask).all()


def test_run_lengths_of_a_hand_worked_mask() -> None:
    mask = np.array([[0, 1, 1], [0, 1, 0]], np.uint8)
    assert run_lengths(mask) == {"size": [2, 3], "counts": [2, 3, 1]}
    assert run_lengths(np.ones((2, 2), np.uint8)) == {"size": [2, 2], "counts": [0, 4]}


def test_encode_without_wishes_is_pred_alone() -> None:
    reply = encode([result()], Wish())
    assert reply.body.startswith(b'{"pred": [[0,0,')
    assert json.loads(reply.body) == {"pred": result().mask.tolist()}


def picture(url: str) -> NDArray[np.uint8]:
    data = base64.b64decode(url.removeprefix("data:image/png;base64,"))
    return np.asarray(cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_UNCHANGED), np.uint8)


def test_encode_every_wish_is_there_and_true() -> None:
    one = result()
    answer = json.loads(encode([one], Wish(include=frozenset(INCLUDES), mask="rle")).body)
    assert (mask_of_run_lengths(answer["rle"], one.mask.shape) == one.mask).all()
    assert (answer["verdict"], answer["score"]) == (one.verdict, one.score)
    assert [entry["area_px"] for entry in answer["defects"]] == [6]
    assert np.abs(picture(answer["probability"]) / 255 - one.probability).max() <= 0.501 / 255
    assert (picture(answer["classes"]) == one.classes).all()
    assert answer["labels"] == list(one.labels)
    assert (picture(answer["overlay"])[:, :, ::-1] == one.overlay()).all()


def test_encode_several_are_in_order_and_png_holds_0_and_255() -> None:
    answer = json.loads(encode([result(), result(4, 5)], Wish()).body)
    assert [len(entry["pred"]) for entry in answer["results"]] == [6, 4]
    reply = encode([result()], Wish(png=True))
    mask = cv2.imdecode(np.frombuffer(reply.body, np.uint8), cv2.IMREAD_UNCHANGED)
    assert np.array_equal(np.asarray(mask), result().mask * 255)


def test_encode_zips_large_answers_only_for_whom_reads_it() -> None:
    big = result(60, 90)
    reply = encode([big], Wish(zipped=True))
    assert reply.headers["Content-Encoding"] == "gzip"
    assert gzip.decompress(reply.body) == encode([big], Wish()).body
    assert "Content-Encoding" not in encode([result()], Wish(zipped=True)).headers


@pytest.mark.parametrize("zipped", [False, True])
def test_encode_of_400_x_600_costs_at_most_15_percent_of_the_model(zipped: bool) -> None:
    with Segmenter(threads=1) as segmenter:
        image = np.random.default_rng(0).integers(0, 256, (400, 600), np.uint8)
        one = segmenter(image)
        shares = []
        for _ in range(5):
            start = time.perf_counter()
            segmenter.backend.infer(image[None])
            middle = time.perf_counter()
            encode([one], Wish(zipped=zipped))
            shares.append((time.perf_counter() - middle) / (middle - start))
    assert min(shares) <= 0.15
