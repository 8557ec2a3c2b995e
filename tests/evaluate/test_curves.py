from __future__ import annotations

import csv
import json
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from magtiles_seg.evaluate import EvaluationResult, Records, summarize
from magtiles_seg.evaluate.plots.curves import curves, metrics, save
from magtiles_seg.evaluate.plots.gallery import Gallery
from magtiles_seg.evaluate.plots.page import save_page
from magtiles_seg.marking import is_result
from magtiles_seg.result import Decision, Segmentation


@pytest.fixture
def result() -> EvaluationResult:
    """Four pictures of 4 pixels: two cracks, one found by half, and two sound ones.

    At probability 1/2: crack a has TP 1 FN 1 TN 2, crack b has FN 2 TN 2; sound c has FP 1 TN 3,
    sound d has TN 4.
    """
    counts = np.array([[1, 0, 1, 2], [0, 0, 2, 2], [0, 1, 0, 3], [0, 0, 0, 4]])
    histogram = np.zeros((4, 2, 256), np.int32)
    for row, (tp, fp, fn, tn) in enumerate(counts):
        histogram[row, :, 0] = tn, fn
        histogram[row, :, 128] = fp, tp
    confusion = np.stack([[[tn, fp], [fn, tp]] for tp, fp, fn, tn in counts])
    records = Records(
        labels=np.array(["background", "crack"]),
        ids=np.array(["a", "b", "c", "d"]),
        label=np.array([1, 1, 0, 0]),
        group=np.array([1, 2, 3, 4]),
        score=np.array([0.9, 0.5, 0.5, 0.1]),
        verdict=np.array(["reject", "accept", "accept", "accept"]),
        empty=np.zeros(4, bool),
        suspect=np.zeros(4, bool),
        label_issue=np.zeros(4, bool),
        counts=counts,
        confusion=confusion,
        histogram=histogram,
    )
    return summarize(records, resamples=20)


def column(rows: list[dict[str, Any]], name: str) -> list[Any]:
    return [row[name] for row in rows]


def test_thresholds_hold_the_pooled_dice_worked_by_hand(result: EvaluationResult) -> None:
    rows = curves(result)["thresholds"]
    assert len(rows) == 256
    assert rows[128] == {"threshold": 0.5, "dice": 0.333333, "iou": 0.2}  # TP 1, FP 1, FN 3
    assert rows[0]["dice"] == 0.4  # everything is defect: TP 4, FP 12
    assert rows[129]["dice"] == 0.0


def test_precision_recall_with_nothing_predicted_has_precision_1(result: EvaluationResult) -> None:
    rows = curves(result)["precision_recall"]
    assert rows[128] == {"threshold": 0.5, "recall": 0.25, "precision": 0.5}
    assert rows[255] == {"threshold": 0.996094, "recall": 0.0, "precision": 1.0}


def test_roc_counts_pictures_that_share_a_score_together(result: EvaluationResult) -> None:
    rows = curves(result)["roc"]
    assert column(rows, "reject_score") == [0.9, 0.5, 0.1]
    assert column(rows, "recall") == [0.5, 1.0, 1.0]
    assert column(rows, "false_reject_rate") == [0.0, 0.5, 1.0]


def test_classes_leave_out_sound_pictures(result: EvaluationResult) -> None:
    assert column(curves(result)["classes"], "class") == ["crack"]


def test_metrics_are_the_result_s_figures_and_intervals(result: EvaluationResult) -> None:
    values = metrics(result)
    assert (values["protocol"], values["pictures"], values["tiles"]) == ("T", 4, 4)
    assert values["iou"] == result.figures["iou"] == pytest.approx(0.2)
    assert values["iou_by_class"] == {"crack": pytest.approx(0.25)}
    assert values["interval_95"]["iou"] == list(result.intervals["iou"])


def test_save_writes_files_that_read_back_the_same(
    result: EvaluationResult, tmp_path: Path
) -> None:
    save(result, tmp_path / "results")
    written = json.loads((tmp_path / "results" / "metrics.json").read_text())
    assert written == metrics(result)
    assert (tmp_path / "results" / "report.md").read_text() == result.to_markdown()
    for name, rows in curves(result).items():
        with (tmp_path / "results" / "plots" / f"{name}.csv").open() as file:
            read = list(csv.DictReader(file))
        assert read == [{key: str(value) for key, value in row.items()} for row in rows]


def test_page_holds_every_chart_and_the_worst_pictures_and_asks_for_no_other_file(
    result: EvaluationResult, tmp_path: Path
) -> None:
    probability = np.zeros((8, 8), np.float32)
    answer = Segmentation.from_prediction(
        np.full((8, 8), 90, np.uint8), probability, np.ones((8, 8), np.uint8), decision=Decision()
    )
    gallery = Gallery(1)
    gallery.add(-0.1, "crack <b>, Dice 0.10", answer, np.ones((8, 8), np.uint8), name="a")
    page = save_page(result, tmp_path, worst=gallery).read_text(encoding="utf-8")
    pictures = list((tmp_path / "charts").glob("*.png"))
    assert all(is_result(path) for path in pictures)
    names = {path.stem for path in pictures}
    assert names == {
        "precision_recall",
        "roc",
        "thresholds",
        "reliability_pictures",
        "confusion",
    }
    assert page.count('src="data:image/png;base64,') == len(names) + 1
    assert not re.search(r'(src|href)="(?!data:)', page)
    assert "crack &lt;b&gt;, Dice 0.10" in page
    assert (tmp_path / "triptychs" / "001_a.png").is_file()


def test_page_without_a_gallery_writes_no_picture_of_the_data(
    result: EvaluationResult, tmp_path: Path
) -> None:
    page = save_page(result, tmp_path).read_text(encoding="utf-8")
    assert "Worst" not in page
    assert not (tmp_path / "triptychs").exists()


def test_verdict_table_counts_pictures_by_class(result: EvaluationResult, tmp_path: Path) -> None:
    page = save_page(result, tmp_path).read_text(encoding="utf-8")
    assert "<td>crack</td><td>1</td><td>0</td><td>1</td>" in page
    assert "<td>free</td><td>2</td><td>0</td><td>0</td>" in page
