from __future__ import annotations

import json
from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from magtiles_seg.errors import ModelError
from magtiles_seg.model.card import SEAL_KEY, ModelCard, check_seal, seal_onnx
from magtiles_seg.result import Decision

CARD = ModelCard(
    name="demo",
    architecture="nano",
    labels=("background", "crack"),
    stride=16,
    decision=Decision(threshold=0.4, min_area_px=9, review_score=0.2),
    receptive_field_px=181,
    training={"split": {"rule": "grouped", "seed": 3}},
    metrics=({"protocol": "T", "figures": {"dice": 0.9}},),
)

STATISTICS = {"pictures": 100, "score": {"edges": [0.5], "shares": [0.9, 0.1]}}

names = st.text(st.characters(exclude_categories=("Cc", "Cs")), max_size=20)
fractions = st.floats(0, 1)


@given(name=names, classes=st.sets(names.filter(lambda label: label != "background"), min_size=1),
       threshold=fractions, metric=st.floats(allow_nan=False, allow_infinity=False))  # fmt: skip
def test_card_any_content_survives_json(
    name: str, classes: set[str], threshold: float, metric: float
) -> None:
    card = replace(
        CARD,
        name=name,
        labels=("background", *sorted(classes)),
        decision=Decision(threshold=threshold),
        metrics=({"protocol": name, "figures": {"dice": metric}},),
    )
    assert ModelCard.from_json(card.to_json()) == card


def changed(**changes: Any) -> str:  # noqa: ANN401
    return json.dumps({**json.loads(CARD.to_json()), **changes})


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "not JSON"),
        ("[1]", "no schema_version"),
        ('{"name": "x"}', "no schema_version"),
        (changed(schema_version=2), "version 2, expected 1: upgrade"),
        (changed(schema_version=0), "version 0, expected 1: export it again"),
        (changed(schema_version="1"), "version '1', expected 1"),
        ('{"schema_version": 1}', "missing .*'labels'"),
        (changed(colour="red"), r"unknown \['colour'\]"),
        (changed(input_statistics=[]), "input_statistics must be dict"),
        (changed(stride="16"), "stride must be int, got '16'"),
        (changed(stride=True), "stride must be int, got True"),
        (changed(stride=0), "stride must be at least 1"),
        (changed(labels=["background", 1]), "labels must be strings"),
        (changed(labels=["crack", "background"]), "labels must be 'background' and other names"),
        (changed(labels=["background", "crack", "crack"]), "each once"),
        (changed(decision={"threshold": 2}), "threshold is 2"),
        (changed(decision={"colour": 2}), "colour"),
    ],
)
def test_card_damaged_or_foreign_is_refused(text: str, message: str) -> None:
    with pytest.raises(ModelError, match=message):
        ModelCard.from_json(text)


def test_card_without_input_statistics_is_written_as_before_and_with_them_comes_back() -> None:
    assert "input_statistics" not in json.loads(CARD.to_json())
    card = replace(CARD, input_statistics=STATISTICS)
    assert ModelCard.from_json(card.to_json()) == card


def test_card_with_nan_is_not_written() -> None:
    with pytest.raises(ModelError, match="cannot be written as JSON"):
        replace(CARD, training={"loss": float("nan")}).to_json()


BLANK = b"head" + SEAL_KEY.encode() + b"\x12\x40" + b"0" * 64 + b"tail"


def test_seal_untouched_passes() -> None:
    sealed = seal_onnx(BLANK)
    assert sealed != BLANK
    check_seal(sealed, "m.onnx")


@pytest.mark.parametrize("position", range(len(BLANK)))
def test_seal_any_changed_byte_is_refused(position: int) -> None:
    sealed = bytearray(seal_onnx(BLANK))
    sealed[position] ^= 1
    with pytest.raises(ModelError, match=r"m\.onnx is (damaged|not a magtiles-seg model)"):
        check_seal(bytes(sealed), "m.onnx")


@pytest.mark.parametrize("data", [b"", b"no mark", BLANK + BLANK])
def test_seal_without_one_mark_is_refused(data: bytes) -> None:
    with pytest.raises(ModelError, match="cannot seal"):
        seal_onnx(data)
    with pytest.raises(ModelError, match="is not a magtiles-seg model"):
        check_seal(data, "m.onnx")


@pytest.mark.parametrize(
    "changes",
    [
        {"stride": 10**9},
        {"stride": 12},
        {"receptive_field_px": 10**9},
        {"receptive_field_px": -1},
        {"labels": ["background", *map(str, range(300))]},
        {"labels": ["background", "x" * 1000]},
        {"name": "a\nb"},
        {"metrics": [1]},
        {"decision": {"min_area_px": 10**12}},
        {"calibration": {"scale": -1, "bias": 0}},
        {"calibration": {"scale": 1}},
        {"input_statistics": {"pictures": "many"}},
        {"input_statistics": {"pictures": 100, "score": 3}},
        {"input_statistics": {"pictures": 100, "score": {"shares": [1]}}},
        {"input_statistics": {"pictures": 100, "score": {"edges": ["a"], "shares": ["b", "c"]}}},
        {"input_statistics": {"pictures": 100, "score": {"edges": [2, 1], "shares": [0, 0, 1]}}},
        {"input_statistics": {"pictures": 100, "score": {"edges": [1], "shares": [5, -4]}}},
    ],
)
def test_card_with_values_that_no_model_has_is_model_error(changes: dict[str, Any]) -> None:
    with pytest.raises(ModelError):
        ModelCard.from_json(changed(**changes))


def test_card_nested_deeply_is_model_error() -> None:
    deep = "[" * 100_000 + "]" * 100_000
    with pytest.raises(ModelError, match="nested"):
        ModelCard.from_json(deep)
    with pytest.raises(ModelError, match="nested"):
        ModelCard.from_json(CARD.to_json()[:-1] + f', "x": {deep}}}')


odd = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=4),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=4), inner),
    max_leaves=6,
)


@given(name=st.sampled_from(sorted(json.loads(CARD.to_json()))), value=odd)
def test_card_with_any_field_exchanged_loads_or_is_model_error(name: str, value: object) -> None:
    try:
        card = ModelCard.from_json(changed(**{name: value}))
    except ModelError:
        return
    assert ModelCard.from_json(card.to_json()) == card
