"""Label issues, on answers drawn by hand."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from magtiles_seg import cli
from magtiles_seg.config import load_params
from magtiles_seg.dataset.samples import Sample
from magtiles_seg.dataset.splits import make_split
from magtiles_seg.dataset.synthetic import write_dataset
from magtiles_seg.evaluate.labels.audit import LabelIssue, label_issues, mixed_tiles, to_csv
from magtiles_seg.export.sealed import parse_sealed, sealed
from magtiles_seg.labels import LABELS
from magtiles_seg.model.bundled import BUNDLED_MODEL, model_path
from magtiles_seg.pipeline import samples_of
from magtiles_seg.result import Decision, Segmentation

CRACK, FRAY = LABELS.index("crack"), LABELS.index("fray")
SAMPLE = Sample("exp1_num_1", "crack", Path("a.jpg"), None, group=7)


def found(at: tuple[slice, slice] | None, *, class_index: int = CRACK) -> Segmentation:
    probability = np.full((40, 40), 0.1, np.float32)
    if at:
        probability[at] = 0.9
    image, classes = np.zeros((40, 40), np.uint8), np.full((40, 40), class_index, np.uint8)
    return Segmentation.from_prediction(image, probability, classes, decision=Decision())


def target(at: tuple[slice, slice] | None) -> np.ndarray[tuple[int, int], np.dtype[np.uint8]]:
    mask = np.zeros((40, 40), np.uint8)
    if at:
        mask[at] = CRACK
    return mask


def test_label_issues_found_where_marked_are_none() -> None:
    assert label_issues(SAMPLE, found(np.s_[2:6, 2:12]), target(np.s_[2:6, 3:12])) == []


def test_label_issues_found_far_from_any_mask_is_unmarked() -> None:
    (issue,) = label_issues(SAMPLE, found(np.s_[2:6, 2:12]), target(None))
    assert (issue.issue_type, issue.predicted, issue.area_px) == ("unmarked", "crack", 40)
    assert issue.bbox_xyxy_px == (2, 2, 12, 6)
    assert issue.confidence == pytest.approx(0.9)
    assert "crack found, not marked" in str(issue)


def test_label_issues_found_beside_a_mask_is_no_issue_of_its_own() -> None:
    (issue,) = label_issues(SAMPLE, found(np.s_[2:6, 2:12]), target(np.s_[8:10, 2:12]))
    assert issue.issue_type == "unfound"
    assert issue.confidence == pytest.approx(0.9)


def test_label_issues_marked_where_nothing_is_found_is_unfound() -> None:
    (issue,) = label_issues(SAMPLE, found(None), target(np.s_[20:24, 20:30]))
    assert (issue.issue_type, issue.predicted, issue.area_px) == ("unfound", "", 40)


def test_label_issues_found_as_another_class_says_so() -> None:
    place = np.s_[2:6, 2:12]
    (issue,) = label_issues(SAMPLE, found(place, class_index=FRAY), target(place))
    assert (issue.issue_type, issue.label, issue.predicted) == ("class", "crack", "fray")


def test_rank_of_equal_confidence_is_higher_for_the_larger_region() -> None:
    def of(area_px: int) -> LabelIssue:
        return LabelIssue(
            id="a", issue_type="unmarked", label="free", predicted="crack", tile=1,
            confidence=0.9, area_px=area_px, bbox_xyxy_px=(0, 0, 1, 1),
        )  # fmt: skip

    assert of(10).rank < of(100).rank < of(10_000).rank <= 0.9


def test_mixed_tiles_are_those_of_several_classes() -> None:
    def of(name: str, label: str, group: int) -> Sample:
        return Sample(name, label, Path("a"), None, group=group)

    rows = [of("a", "free", 1), of("b", "fray", 1), of("c", "free", 2), of("d", "fray", -1)]
    assert mixed_tiles(rows) == {1: {"free": ["a"], "fray": ["b"]}}


def test_to_csv_has_a_line_for_each_issue_in_their_order() -> None:
    issues = label_issues(SAMPLE, found(np.s_[2:6, 2:12]), target(np.s_[30:34, 20:30]))
    header, *rows = to_csv(issues).splitlines()
    assert header.startswith("rank,image,issue,label,predicted,group,")
    assert [row.split(",")[2] for row in rows] == ["unmarked", "unfound"]
    assert rows[0].endswith(",2,2,12,6")


def test_audit_of_another_set_by_a_model_writes_one_page_that_holds_its_pictures(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    root = write_dataset(tmp_path / "tiles", tiles=2, seed=0)
    out = tmp_path / "audit"
    words = ["--model", str(BUNDLED_MODEL), "--set", f"data_load.source={root}", "--out", str(out)]
    assert cli.main(["data", "audit", *words, "--protocol", "native"]) == 0
    assert "regions of" in capsys.readouterr().out
    assert sorted(path.name for path in out.iterdir()) == ["audit.csv", "audit.json", "index.html"]
    page, listing = (
        (out / name).read_text(encoding="utf-8") for name in ("index.html", "audit.csv")
    )
    assert page.count("data:image/png;base64,") == len(
        {row.split(",")[1] for row in listing.splitlines()[1:]}
    )
    assert cli.main(["data", "audit", *words, "--top", "0"]) == 2
    mine = ["--set", "data_load.labels=[background, stain]"]
    assert cli.main(["data", "audit", *words, *mine]) == 2


@pytest.mark.parametrize("learnt", [True, False])
def test_audit_by_a_model_of_these_very_labels_says_that_it_repeats_them(
    learnt: bool, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    root, model = write_dataset(tmp_path / "tiles", tiles=2, seed=0), tmp_path / "model.onnx"
    source = f"data_load.source={root}"
    samples = samples_of(load_params(None, [source]), root)
    graph, card = parse_sealed(model_path("nano").read_bytes(), "model")
    origin = make_split(samples, fold=None, validation_fraction=0).origin
    training = {"split": origin} if learnt else {}
    model.write_bytes(sealed(graph, replace(card, training=training)))
    words = ["--model", str(model), "--set", source, "--out", str(tmp_path / "audit")]
    assert cli.main(["data", "audit", *words, "--protocol", "native"]) == 0
    said = f"{model} was trained on these labels and repeats their errors"
    assert (said in capsys.readouterr().err) == learnt


def test_name_that_begins_as_a_formula_is_text_in_the_csv() -> None:
    (issue,) = label_issues(replace(SAMPLE, id="=1+1"), found(np.s_[2:6, 2:12]), target(None))
    assert to_csv([issue]).splitlines()[1].split(",")[1] == "'=1+1"
