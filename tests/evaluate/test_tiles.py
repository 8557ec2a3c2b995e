"""One verdict a tile, from the scores of its pictures: every figure worked by hand."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from magtiles_seg import cli
from magtiles_seg.evaluate import Records, summarize
from magtiles_seg.evaluate.plots.curves import metrics, pictures, write_csv
from magtiles_seg.evaluate.protocols import get_protocol
from magtiles_seg.evaluate.tiles import recall_steps, tile_figures, tile_scores, tile_verdicts

# Two defective and three sound tiles; the maximum would mistake tile 30, all of them 40.
SCORES = {
    10: ([0.9, 0.8, 0.4], [1, 1, 0]),
    20: ([0.6, 0.4], [1, 1]),
    30: ([0.1, 0.2, 0.9], [0, 0, 0]),
    40: ([0.7], [0]),
    50: ([0.1, 0.3, 0.2, 0.1], [0, 0, 0, 0]),
}


def records(tiles: dict[int, tuple[list[float], list[int]]]) -> Records:
    score = np.array([one for scores, _ in tiles.values() for one in scores])
    label = np.array([one for _, labels in tiles.values() for one in labels])
    group = np.repeat(list(tiles), [len(scores) for scores, _ in tiles.values()])
    count = len(score)
    shuffled = np.random.default_rng(3).permutation(count)  # pictures of a tile stand apart
    return Records(
        labels=np.array(["background", "crack"]),
        ids=np.array([f"p{index}" for index in range(count)]),
        label=label[shuffled],
        group=group[shuffled],
        score=score[shuffled],
        verdict=np.full(count, "accept"),
        empty=np.zeros(count, bool),
        suspect=np.zeros(count, bool),
        label_issue=np.zeros(count, bool),
        counts=np.ones((count, 4), np.int64),
        confusion=np.ones((count, 2, 2), np.int64),
        histogram=np.ones((count, 2, 256), np.int32),
    )


def test_tile_scores_are_of_all_pictures_and_one_defective_picture_makes_a_tile_defective() -> None:
    rows = records(SCORES)
    scores, defective = tile_scores(rows.score, rows.is_defect, rows.group)
    assert scores == pytest.approx([0.743, 0.5, 0.386, 0.7, 0.160], abs=1e-3)
    assert defective.tolist() == [True, True, False, False, False]


def test_tile_figures_at_a_recall_find_that_share_of_tiles_and_no_fewer() -> None:
    tiles = {tile: ([tile / 1000], [1]) for tile in range(201, 401)}  # 200, all defective
    tiles |= {1: ([0.2105], [0]), 2: ([0.2035], [0])}  # below the 190th highest, and the 197th
    rows = records(tiles)
    figures = tile_figures(rows, np.ones(len(rows)))
    assert float(figures["tile_false_reject_at_95_recall"]) == 0
    assert float(figures["tile_false_reject_at_99_recall"]) == 1
    tiles |= {1: ([0.2115], [0])}  # above the 190th highest
    figures = tile_figures(records(tiles), np.ones(len(rows)))
    assert float(figures["tile_false_reject_at_95_recall"]) == 0.5


def test_tile_figures_count_every_tile_once() -> None:
    rows = records(SCORES)
    figures = tile_figures(rows, np.ones(len(rows)))
    assert float(figures["tile_auroc"]) == pytest.approx(5 / 6)
    assert float(figures["tile_false_reject_at_95_recall"]) == pytest.approx(1 / 3)
    without = tile_figures(rows, np.where(rows.group == 40, 0, 1))
    assert float(without["tile_auroc"]) == 1


def test_tile_verdicts_with_fewer_pictures_are_seeded_means() -> None:
    rows = records(SCORES)
    found = tile_verdicts(rows, resamples=50)
    assert (found.tiles, found.defective) == (5, 2)
    assert found == tile_verdicts(rows, resamples=50)
    by_count = {row.exposures: row for row in found.by_exposures}
    assert [row.tiles_with_fewer for row in found.by_exposures] == [0, 1, 2, 5]
    assert by_count[6].figures == pytest.approx(found.figures)
    assert by_count[1].figures["tile_auroc"] < found.figures["tile_auroc"]
    low, high = found.intervals["tile_auroc"]
    assert low <= found.figures["tile_auroc"] <= high


def test_tile_verdicts_one_picture_of_each_tile_is_what_all_choices_average() -> None:
    rows = records({1: ([0.9, 0.1], [1, 1]), 2: ([0.5], [0])})
    one = tile_verdicts(rows, resamples=0).by_exposures[0]
    assert one.figures["tile_auroc"] == pytest.approx(0.5, abs=0.15)  # 1 or 0 by the choice


@pytest.mark.parametrize(
    ("defective", "words"),
    [
        (11, r"1/12 \(8.3 %\).* 91.7 % at most; 95 % cannot be promised"),
        (19, r"1/20 \(5.0 %\).*95 % by rejecting from the lowest defective tile's score on"),
        (55, r"1/56 \(1.8 %\).* 98.2 % at most; 95 % by .* defective tile 2 from below on"),
    ],
)
def test_recall_steps_say_what_can_be_promised(defective: int, words: str) -> None:
    import re

    assert re.search(words, recall_steps(defective))


def test_recall_steps_hold_on_new_tiles() -> None:
    rng, most = np.random.default_rng(0), 39
    kth = (most + 1) // 20  # 2nd lowest of 39: a miss of 2 in 40
    drawn = rng.normal(size=(20000, most + 1))
    threshold = np.sort(drawn[:, :-1], axis=1)[:, kth - 1]
    assert (drawn[:, -1] < threshold).mean() == pytest.approx(kth / (most + 1), abs=0.006)
    assert f"defective tile {kth} from below" in recall_steps(most)


def test_summarize_t_gives_tiles_beside_and_t_tile_as_its_figures() -> None:
    rows = records(SCORES)
    beside, alone = (summarize(rows, protocol=name, resamples=20) for name in ("T", "T-tile"))
    assert beside.tile_verdicts is not None
    assert alone.figures == beside.tile_verdicts.figures
    assert alone.intervals == beside.tile_verdicts.intervals
    assert alone.per_class == ()
    assert "### Protocol T-tile: one verdict a tile" in beside.to_markdown()
    assert json.loads(beside.to_json())["tile_verdicts"]["defective"] == 2
    assert metrics(beside)["tile_auroc"] == pytest.approx(5 / 6)


@pytest.mark.parametrize("name", ["native", "native/random"])
def test_tile_verdicts_of_another_split_are_not_called_t_tile(name: str) -> None:
    protocol = replace(get_protocol("T"), name=name)
    text = summarize(records(SCORES), protocol=protocol, resamples=0).to_markdown()
    assert "### One verdict a tile" in text
    assert "T-tile" not in text


def test_summarize_pictures_without_exposures_says_nothing_of_tiles() -> None:
    rows = records({index: ([index / 9], [index % 2]) for index in range(8)})
    result = summarize(rows, protocol="native", resamples=0)
    assert result.tile_verdicts is None
    assert "T-tile" not in result.to_markdown()


def test_summarize_leaky_protocols_say_nothing_of_tiles() -> None:
    assert summarize(records(SCORES), protocol="P1", resamples=0).tile_verdicts is None


def test_evaluate_scored_pictures_gives_t_tile_without_a_model(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    rows = records(SCORES)
    write_csv(tmp_path / "pictures.csv", pictures(rows))
    words = ["evaluate", "--scored", str(tmp_path / "pictures.csv")]
    assert cli.main([*words, "--json", str(tmp_path / "out.json")]) == 0
    assert "| tile_auroc | 0.833" in capsys.readouterr().out
    content = json.loads((tmp_path / "out.json").read_text())
    assert (content["protocol"], content["tiles"]) == ("T-tile", 5)
    assert cli.main([*words, "--protocol", "T"]) == 2
    assert "--scored gives the figures of T-tile" in capsys.readouterr().err
    assert cli.main([*words, "--group-by", "(.)"]) == 2
    assert "--group-by is for pictures that are scored now" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--write-card", "--screen", "s.onnx"], "--write-card is for figures of the model alone"),
        (["--scored", "p.csv", "--model", "m.onnx"], "--model is for one model that is scored now"),
        (["--folds", "a", "--screen", "s.onnx"], "--screen is for one model that is scored now"),
        (["tiles", "--write-card"], "--write-card changes a model's file: name yours"),
        (["tiles", "--write-card", "--repeats", "a"], "DATASET_DIR and --write-card are for one"),
    ],
)
def test_evaluate_refuses_options_that_it_would_leave_out(
    words: list[str], said: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert cli.main(["evaluate", *words]) == 2
    assert said in capsys.readouterr().err
