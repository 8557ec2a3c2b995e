"""A whole evaluation of small pictures, every figure of which is worked by hand."""

from __future__ import annotations

import json
from collections.abc import Callable
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
from PIL import Image

from magtiles_seg.dataset.samples import Sample
from magtiles_seg.errors import ConfigError, DataError, InferenceError
from magtiles_seg.evaluate import Records, choose_decision, evaluate, join_records, summarize
from magtiles_seg.evaluate.compare import read_pictures
from magtiles_seg.evaluate.scoring import Recorder
from magtiles_seg.evaluate.summary import class_table, tile_table
from magtiles_seg.labels import FREE, LABELS
from magtiles_seg.result import Decision, Segmentation

Pixels = npt.NDArray[np.uint8]

BRIGHT, CRACK, FRAY = 200, LABELS.index("crack"), LABELS.index("fray")


def predict_bright(image: Pixels) -> tuple[npt.NDArray[np.float32], Pixels]:
    """Take grey levels for probabilities, and everything for a crack."""
    probability = (image / 255).astype(np.float32)
    return probability, np.full(image.shape, CRACK, np.uint8)


def write_sample(
    folder: Path, name: str, label: str, *, bright: tuple[int, int], defect: tuple[int, int]
) -> Sample:
    """Write a 4x4 picture whose pixels from..to (row by row) are bright, and masked."""
    image, mask = np.full(16, 10, np.uint8), np.zeros(16, np.uint8)
    image[slice(*bright)], mask[slice(*defect)] = BRIGHT, 255
    paths = folder / f"{name}.bmp", folder / f"{name}.png"
    for path, pixels in zip(paths, (image, mask), strict=True):
        Image.fromarray(pixels.reshape(4, 4)).save(path)
    return Sample(name, label, *paths, group=int(name.split("_")[-1]) // 100)


@pytest.fixture
def samples(tmp_path: Path) -> list[Sample]:
    """A crack found by half, a fray missed, a sound picture, a false alarm, a suspect, a blank."""
    return [
        write_sample(tmp_path, "exp1_num_100", "crack", bright=(0, 6), defect=(2, 8)),
        write_sample(tmp_path, "exp2_num_110", "fray", bright=(0, 0), defect=(0, 4)),
        write_sample(tmp_path, "exp1_num_300", "free", bright=(0, 0), defect=(0, 0)),
        write_sample(tmp_path, "exp1_num_400", "free", bright=(5, 7), defect=(0, 0)),
        write_sample(tmp_path, "exp1_num_824", "free", bright=(0, 16), defect=(0, 0)),
        write_sample(tmp_path, "exp3_num_45042", "uneven", bright=(0, 16), defect=(0, 0)),
    ]


def test_evaluate_behind_a_screen_says_so_in_its_notes(samples: list[Sample]) -> None:
    def screened(image: Pixels) -> Segmentation:
        model = {"name": "m", "screen_sha256": "ab12"}
        answer = predict_bright(image)
        return Segmentation.from_prediction(image, *answer, decision=Decision(), model=model)

    result = evaluate(screened, samples, resamples=0)
    said = "These figures are of the model behind a screen (SHA-256 ab12)"
    assert result.notes[0].startswith(said)
    assert said in result.to_markdown()
    assert not any("screen" in note for note in evaluate(predict_bright, samples).notes)


def test_evaluate_native_gives_the_pooled_figures(samples: list[Sample]) -> None:
    figures = evaluate(predict_bright, samples, resamples=0).figures
    tp, fp, fn, tn = 4, 2 + 2 + 16, 2 + 4, 8 + 12 + 16 + 14
    assert figures["iou"] == pytest.approx(tp / (tp + fp + fn))
    assert figures["dice"] == pytest.approx(2 * tp / (2 * tp + fp + fn))
    assert figures["miou2"] == pytest.approx((tp / (tp + fp + fn) + tn / (tn + fp + fn)) / 2)
    assert figures["pixel_accuracy"] == pytest.approx((tp + tn) / 80)


def test_evaluate_native_gives_the_per_picture_figures(samples: list[Sample]) -> None:
    figures = evaluate(predict_bright, samples[:4], resamples=0).figures
    assert figures["picture_dice"] == pytest.approx((8 / 12 + 0 + 1 + 0) / 4)
    assert figures["macro_picture_dice"] == pytest.approx((8 / 12 + 0) / 2)


def test_evaluate_native_gives_the_class_figures(samples: list[Sample]) -> None:
    figures = evaluate(predict_bright, samples, resamples=0).figures
    crack = 4 / (4 + 20 + 2)
    assert figures["miou5"] == pytest.approx((crack + 0) / 2)
    assert figures["miou6"] == pytest.approx((crack + 0 + 50 / (50 + 20 + 6)) / 3)
    assert figures["micro_iou"] == pytest.approx(4 / (4 + 20 + 6))


def test_evaluate_native_gives_the_verdict_figures(samples: list[Sample]) -> None:
    result = evaluate(predict_bright, samples, resamples=0)
    # mean of all 16 levels: crack 81, fray 10 | sound 10, 34, 200
    assert result.figures["auroc"] == pytest.approx((2 + 0.5) / 6)
    assert result.figures["false_reject_at_95_recall"] == 1
    assert "auroc" not in evaluate(predict_bright, samples, protocol="P1", resamples=0).figures


def test_picture_for_review_is_not_counted_as_rejected() -> None:
    rows = ["a,crack,1,9,0,1,90,0.9,reject", "b,crack,1,5,0,5,90,0.5,review"]
    rows += [
        f"{name},free,2,0,0,0,100,0.5,{verdict}"
        for name, verdict in (("c", "review"), ("d", "accept"))
    ]
    records = read_pictures("\n".join(["picture,class,tile,tp,fp,fn,tn,score,verdict", *rows]))
    assert [row["rejected"] for row in class_table(records, resamples=0)] == [0.5, 0.0]
    assert {row["tile"]: row["rejected"] for row in tile_table(records)} == {1: 1, 2: 0}


def test_evaluate_class_table_has_a_row_for_each_class(samples: list[Sample]) -> None:
    rows = {row["class"]: row for row in evaluate(predict_bright, samples, resamples=9).per_class}
    assert list(rows) == ["crack", "fray", "free"]
    assert rows["crack"]["iou"] == pytest.approx(4 / 8)
    assert rows["crack"]["picture_dice"] == pytest.approx(8 / 12)
    assert rows["crack"]["class_iou"] == pytest.approx(4 / 26)
    assert rows["crack"]["intervals"]["iou"] == pytest.approx((0.5, 0.5))
    assert rows["free"]["pictures"] == 3
    assert rows["free"]["picture_dice"] == pytest.approx(1 / 3)
    assert rows["free"]["rejected"] == pytest.approx(1 / 3)
    assert "iou" not in rows["free"]
    low, high = rows["free"]["intervals"]["picture_dice"]
    assert low < 1 / 3 < high


def test_evaluate_tile_and_picture_tables_put_the_worst_first(samples: list[Sample]) -> None:
    result = evaluate(predict_bright, samples, resamples=0)
    assert [(row["tile"], row["picture_dice"]) for row in result.per_tile] == [
        (4, 0),
        (8, 0),
        (1, pytest.approx(1 / 3)),
        (3, 1),
    ]
    assert result.per_tile[2]["classes"] == ["crack", "fray"]
    scores = {row["id"]: row["score"] for row in result.per_picture if row["tile"] == 1}
    assert len(set(scores.values())) == 2
    assert result.per_tile[2]["highest_score"] == max(scores.values())
    assert result.per_tile[2]["iou"] == pytest.approx(4 / 12)
    assert result.per_picture[-1]["id"] == "exp1_num_300"


def test_evaluate_empty_mask_of_a_defect_is_dropped_and_named(samples: list[Sample]) -> None:
    result = evaluate(predict_bright, samples, resamples=0)
    assert result.empty_masks == ("exp3_num_45042",)
    assert len(result.records) == 5
    assert any("exp3_num_45042" in note and "dropped" in note for note in result.notes)


def test_recorder_names_empty_masks_of_every_class_of_defect_and_of_no_sound_picture() -> None:
    recorder, nothing = Recorder(LABELS), np.zeros((4, 4), np.uint8)
    answer = Segmentation.from_prediction(
        nothing, nothing.astype(np.float32), np.ones_like(nothing), decision=Decision()
    )
    for label in (*LABELS[1:], FREE):
        recorder.add(Sample(label, label, Path(), None), answer, nothing, empty=True)
    assert recorder.records().empty.tolist() == [True] * (len(LABELS) - 1) + [False]


def test_evaluate_published_list_keeps_empty_masks_and_gives_both(samples: list[Sample]) -> None:
    result = evaluate(predict_bright, samples, protocol="P1", resamples=0)
    assert len(result.records) == 6
    assert result.variants["without_empty_masks"].pictures == 5
    assert result.variants["without_empty_masks"].figures["iou"] > result.figures["iou"]


def test_evaluate_suspects_stand_in_the_figures_and_not_in_the_variant(
    samples: list[Sample],
) -> None:
    result = evaluate(predict_bright, samples, resamples=0)
    assert result.suspect_free == ("exp1_num_824",)
    variant = result.variants["without_suspect_free"]
    assert (len(result.records), variant.pictures) == (5, 4)
    assert variant.figures["iou"] == pytest.approx(4 / (4 + 4 + 6))


def test_evaluate_with_three_labels_keeps_miou2_the_binary_one(samples: list[Sample]) -> None:
    labels = ("background", "crack", "fray")
    found = evaluate(
        lambda image: (predict_bright(image)[0], np.ones_like(image)),
        samples[:5],
        labels=labels,
        resamples=0,
    )
    figures = found.figures
    tp, fp, fn, tn = 4, 2 + 2 + 16, 2 + 4, 8 + 12 + 16 + 14
    assert figures["miou2"] == pytest.approx((tp / (tp + fp + fn) + tn / (tn + fp + fn)) / 2)
    assert {"miou3", "miou_classes"} <= figures.keys()


def test_evaluate_the_audited_list_leaves_out_suspects_and_what_was_seen(
    samples: list[Sample],
) -> None:
    seen = replace(samples[3], id="exp1_num_279090")  # a false alarm on a picture filed as sound
    result = evaluate(predict_bright, [*samples[:3], seen, *samples[4:]], resamples=0)
    audited = result.variants["audited_list"]
    assert (len(result.records), audited.pictures) == (5, 3)
    assert audited.figures["iou"] == pytest.approx(4 / (4 + 2 + 6))
    assert "audited_list" not in evaluate(predict_bright, samples, resamples=0).variants


def test_evaluate_defect_under_a_suspect_number_is_no_suspect(samples: list[Sample]) -> None:
    defect = replace(samples[0], id="exp1_num_824")
    assert evaluate(predict_bright, [defect], resamples=0).suspect_free == ()


def test_evaluate_defect_protocol_leaves_sound_pictures_out_and_says_so(
    samples: list[Sample],
) -> None:
    result = evaluate(predict_bright, samples, protocol="P1b", resamples=0)
    assert len(result.records) == 3
    assert any("left out: 3" in note for note in result.notes)
    assert any("both training and test" in note for note in result.notes)


def test_evaluate_p2_gives_both_mask_rules(samples: list[Sample]) -> None:
    soft = samples[0].mask_path
    assert soft is not None
    faint = np.asarray(Image.open(soft)) // 255 * np.uint8(50)
    faint[np.unravel_index(faint.argmax(), faint.shape)] = 128
    Image.fromarray(faint).save(soft)
    result = evaluate(predict_bright, samples, protocol="P2", resamples=0)
    assert result.mask_rule == "gt0"
    assert result.variants["mask_ge128"].figures["micro_iou"] < result.figures["micro_iou"] / 3
    assert list(evaluate(predict_bright, samples, mask_rule="gt0").variants) == [
        "without_suspect_free"
    ]


def test_evaluate_segmentation_and_arrays_are_scored_alike(samples: list[Sample]) -> None:
    own = Decision(threshold=0.99)

    def segmenter(image: Pixels) -> Segmentation:
        return Segmentation.from_prediction(image, *predict_bright(image), decision=own)

    arrays = evaluate(predict_bright, samples, resamples=0)
    assert evaluate(segmenter, samples, resamples=0).figures["iou"] == 0
    assert evaluate(segmenter, samples, resamples=0).decision == own
    overridden = evaluate(segmenter, samples, decision=Decision(), resamples=0)
    assert overridden.to_dict() == arrays.to_dict()
    published = evaluate(segmenter, samples, protocol="P1", resamples=0)
    assert published.decision == replace(own, threshold=0.5)


def test_evaluate_interval_holds_the_figure_and_needs_resamples(samples: list[Sample]) -> None:
    result = evaluate(predict_bright, samples, resamples=200)
    low, high = result.intervals["iou"]
    assert low < result.figures["iou"] < high
    assert evaluate(predict_bright, samples, resamples=0).intervals == {}


def test_evaluate_progress_is_told_after_each_picture(samples: list[Sample]) -> None:
    told: list[tuple[int, int]] = []
    evaluate(predict_bright, samples, resamples=0, progress=lambda *step: told.append(step))
    assert told == [(done, 6) for done in range(1, 7)]


def test_result_json_is_strict_and_has_null_for_no_meaning(samples: list[Sample]) -> None:
    result = evaluate(predict_bright, samples[2:4], resamples=20)
    content = json.loads(result.to_json(), parse_constant=pytest.fail)
    assert content["figures"]["auroc"] is None
    assert content["protocol"] == "native"
    assert content["per_class"][0]["class"] == "free"
    assert content["per_tile"][0]["tile"] == 4


def test_result_markdown_has_every_figure_class_and_note(samples: list[Sample]) -> None:
    text = evaluate(predict_bright, samples, resamples=20).to_markdown()
    assert "Protocol native" in text
    assert "| micro_iou | 0.133 (" in text
    assert "| crack | 1 | 1 | 0.500 (" in text
    assert "dropped: exp3_num_45042" in text
    widths = {line.count("|") for line in text.splitlines() if line.startswith("| miou")}
    assert widths == {4}


def test_joined_folds_equal_one_evaluation(samples: list[Sample], tmp_path: Path) -> None:
    for number, fold in enumerate((samples[:2], samples[2:])):
        evaluate(predict_bright, fold, resamples=0).records.save(tmp_path / f"{number}.npz")
    parts = [Records.load(tmp_path / f"{number}.npz") for number in (0, 1)]
    whole = evaluate(predict_bright, samples, resamples=50)
    pooled = summarize(join_records(parts), resamples=50)
    assert pooled.figures == whole.figures
    assert pooled.intervals == whole.intervals
    assert pooled.per_tile == whole.per_tile


def test_joined_folds_keep_the_tile_that_has_the_number_0() -> None:
    head = "picture,class,tile,tp,fp,fn,tn,score,verdict"
    rows = [
        "a,free,0,0,0,0,9,0.1,accept",
        "b,free,0,0,0,0,9,0.2,accept",
        "c,free,-1,0,0,0,9,0,accept",
    ]
    joined = join_records([read_pictures("\n".join([head, *rows]))])
    assert joined.group.tolist() == [0, 0, -3]


def test_joined_folds_that_overlap_are_refused(samples: list[Sample]) -> None:
    records = evaluate(predict_bright, samples, resamples=0).records
    with pytest.raises(DataError, match="5 pictures in more than one part"):
        join_records([records, records])


def test_records_of_a_damaged_file_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "fold.npz"
    path.write_bytes(b"no archive")
    with pytest.raises(DataError, match=r"fold\.npz holds no records"):
        Records.load(path)
    np.save(path.with_suffix(".npy"), np.zeros(3))
    with pytest.raises(DataError, match=r"fold\.npy holds no records"):
        Records.load(path.with_suffix(".npy"))
    read_pictures("picture,class,tile,tp,fp,fn,tn,score,verdict\na,free,0,0,0,0,9,0,accept").save(
        path
    )
    whole = path.read_bytes()
    for at in range(0, len(whole), 50):
        path.write_bytes(whole[:at])
        with pytest.raises(DataError, match=r"fold\.npz holds no records"):
            Records.load(path)
        path.write_bytes(whole[:at] + b"\xff\xff" + whole[at + 2 :])
        with suppress(DataError):  # not every byte matters
            Records.load(path)


def test_pictures_of_unknown_tile_are_tiles_of_their_own(samples: list[Sample]) -> None:
    strays = [replace(sample, group=-1) for sample in samples]
    result = evaluate(predict_bright, strays, resamples=0)
    assert len(result.per_tile) == len(result.records) == 5
    parts = [evaluate(predict_bright, part, resamples=0) for part in (strays[:2], strays[2:])]
    assert len(summarize(join_records([part.records for part in parts])).per_tile) == 5


def wrong_size(image: Pixels) -> tuple[npt.NDArray[np.float32], Pixels]:
    return predict_bright(image[:2])


def other_labels(image: Pixels) -> Segmentation:
    one = np.ones_like(image)
    return Segmentation.from_prediction(
        image, predict_bright(image)[0], one, decision=Decision(), labels=("background", "scratch")
    )


@pytest.mark.parametrize(
    ("predictor", "kind", "message"),
    [
        (wrong_size, InferenceError, r"\(2, 4\)"),
        (other_labels, ConfigError, "labels are background, scratch; expected"),
    ],
)
def test_evaluate_predictor_that_does_not_fit_is_refused(
    samples: list[Sample], predictor: Callable[[Pixels], Any], kind: type[Exception], message: str
) -> None:
    with pytest.raises(kind, match=message):
        evaluate(predictor, samples)


def test_evaluate_nothing_left_is_refused(samples: list[Sample]) -> None:
    with pytest.raises(DataError, match="nothing to score"):
        evaluate(predict_bright, samples[2:5], protocol="P1b")
    with pytest.raises(DataError, match="empty mask"):
        evaluate(predict_bright, samples[5:])


def test_evaluate_foreign_class_is_refused(samples: list[Sample]) -> None:
    with pytest.raises(DataError, match=r"filed under 'fray'; expected 'free' or one of crack"):
        evaluate(
            lambda image: (predict_bright(image)[0], np.ones_like(image)),
            [replace(samples[1], indexed_mask=True)],
            labels=("background", "crack"),
        )


def test_choose_decision_cuts_between_levels_and_keeps_the_recall(samples: list[Sample]) -> None:
    chosen = choose_decision(predict_bright, samples[:4], recall=0.5)
    assert 10 / 255 < chosen.threshold <= 200 / 255
    assert chosen.min_area_px == 3, "the false alarm of 2 px goes, the crack of 6 px stays"
    crack, false_alarm = 6 * 200 + 10 * 10, 2 * 200 + 14 * 10
    assert chosen.reject_score == pytest.approx((crack + false_alarm) / 2 / 16 / 255)
    assert chosen.review_score is None


def test_choose_decision_by_defective_pictures_without_a_mask_is_refused(
    samples: list[Sample],
) -> None:
    with pytest.raises(ConfigError, match="without any defect pixel"):
        choose_decision(predict_bright, [*samples[2:4], samples[5]])
