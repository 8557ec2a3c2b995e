from __future__ import annotations

import csv
import io

import numpy as np
import pytest

from magtiles_seg.demo.words import (
    Answer,
    answer_counts,
    answer_table,
    answers_csv,
    defect_table,
    notice_card,
    verdict_card,
)
from magtiles_seg.result import Decision, Segmentation


@pytest.fixture
def result() -> Segmentation:
    """A 40 x 50 picture with one crack of 2 x 10 px."""
    probability = np.zeros((40, 50), np.float32)
    probability[10:20, 5:7] = 0.9
    return Segmentation.from_prediction(
        np.full((40, 50), 90, np.uint8),
        probability,
        np.full((40, 50), 3, np.uint8),
        decision=Decision(score_top_k_px=20),
    )


def test_verdict_card_says_why(result: Segmentation) -> None:
    assert "<b>Reject</b>" in verdict_card(result)
    assert "Score 0.9, at or above the reject score 0.5" in verdict_card(result)
    accepted = verdict_card(result.redecide(reject_score=0.95))
    assert "<b>Accept</b>" in accepted
    assert "below the reject score 0.95" in accepted


def test_verdict_card_shows_the_digits_by_which_score_and_limit_differ(
    result: Segmentation,
) -> None:
    card = verdict_card(result.redecide(reject_score=0.90001))
    assert "Score 0.9, below the reject score 0.90001" in card


def test_defect_table_gives_mm_only_with_a_scale(result: Segmentation) -> None:
    assert "10 × 2 px" in defect_table(result, None)
    assert "mm" not in defect_table(result, None)
    scaled = defect_table(result, 0.1)
    assert "1.00 × 0.20 mm" in scaled
    assert "0.20 mm²" in scaled


def test_defect_table_without_defects_says_so(result: Segmentation) -> None:
    assert "No region above the threshold" in defect_table(result.redecide(threshold=1.0), None)


def test_names_of_files_and_messages_are_escaped() -> None:
    answers = [Answer(name="<img src=x>.png", error="<script>")]
    assert "<img" not in answer_table(answers)
    assert "<script>" not in answer_table(answers)
    assert "<b>x</b>" not in notice_card("<b>x</b>", "")


def test_table_of_many_says_why_a_picture_without_a_region_is_rejected(
    result: Segmentation,
) -> None:
    bare = result.redecide(threshold=1.0)
    why = "no region above the threshold"
    assert why in answer_table([Answer(name="a", result=bare)])
    assert why not in answer_table([Answer(name="a", result=result)])
    assert why not in answer_table([Answer(name="a", result=bare.redecide(reject_score=0.95))])


def test_table_and_csv_of_many_say_which_picture_may_be_no_tile(result: Segmentation) -> None:
    doubted, sound = (
        Answer(name="a", result=result, doubt="<no> grain"),
        Answer(name="b", result=result),
    )
    table = answer_table([doubted, sound])
    assert table.count("Is this a tile?") == table.count("&lt;no&gt; grain") == 1
    first, second = csv.DictReader(io.StringIO(answers_csv([doubted, sound], None)))
    assert (first["doubt"], second["doubt"]) == ("<no> grain", "")


def test_counts_of_many_add_up(result: Segmentation) -> None:
    answers = [Answer(name="a", result=result), Answer(name="b", error="bad")]
    text = answer_counts(answers, 5)
    assert "<b>2 of 5</b>done" in text  # one of them was not read: inspected it is not
    assert "<b>1</b>reject" in text
    assert "<b>0</b>accept" in text
    assert "<b>1</b>not read" in text


def test_csv_has_every_measure_and_one_line_for_a_sound_picture(result: Segmentation) -> None:
    sound = result.redecide(threshold=1.0)
    text = answers_csv([Answer(name="a", result=result), Answer(name="b", result=sound)], 0.1)
    first, second = csv.DictReader(io.StringIO(text))
    assert (first["label"], first["area_px"]) == ("crack", "20")
    assert float(first["area_mm2"]) == pytest.approx(0.2)
    assert (float(first["length_px"]), float(first["length_mm"])) == (10, 1)
    assert (first["x0_px"], first["y1_px"], first["centroid_x_px"]) == ("5", "20", "5.5")
    assert (second["picture"], second["defects"], second["label"]) == ("b", "0", "")


@pytest.mark.parametrize("start", ["=", "+", "-", "@", "\t", "\r", "\n", "\uff1d"])
def test_csv_name_that_begins_as_a_formula_is_text_to_a_spreadsheet(
    result: Segmentation, start: str
) -> None:
    name = f'{start}HYPERLINK("http://elsewhere.invalid").png'
    answers = [Answer(name=name, result=result), Answer(name=name, error=f"{name} is damaged")]
    found, refused = csv.DictReader(io.StringIO(answers_csv(answers, None), newline=""))
    assert (found["picture"], refused["picture"]) == (f"'{name}", f"'{name}")
    assert refused["error"] == f"'{name} is damaged"
    (plain,) = csv.DictReader(io.StringIO(answers_csv([Answer(name="a=b-1.png", error="x")], None)))
    assert plain["picture"] == "a=b-1.png"
