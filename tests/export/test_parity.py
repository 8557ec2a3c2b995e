from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pytest
from PIL import Image

from magtiles_seg.config import ExportParams
from magtiles_seg.dataset.samples import Sample
from magtiles_seg.errors import ConfigError, DataError, ParityError
from magtiles_seg.export import parity
from magtiles_seg.export.parity import (
    ParityReport,
    TileSet,
    Tolerance,
    check,
    compare,
    frozen_pictures,
    halves,
    plain_tiles,
    real_tiles,
    synthetic_tiles,
)
from magtiles_seg.infer.backends.base import BackendSpec
from magtiles_seg.labels import FREE, LABELS
from magtiles_seg.model.card import ModelCard
from magtiles_seg.result import Decision


class Fixed:
    """A backend that answers with given 4 x 4 arrays."""

    def __init__(self, probability: npt.ArrayLike, classes: npt.ArrayLike) -> None:
        self.answer = np.array([probability], np.float32), np.array([classes], np.uint8)
        labels = ("background", "crack", "fray")
        card = ModelCard(name="x", architecture="nano", labels=labels, stride=16,
                         decision=Decision(score_top_k_px=1))  # fmt: skip
        self.spec = BackendSpec(name="fixed", device="cpu", provider="", threads=1,
                                path=Path(), sha256="", card=card)  # fmt: skip

    def infer(
        self, images: npt.NDArray[np.uint8]
    ) -> tuple[npt.NDArray[np.float32], npt.NDArray[np.uint8]]:
        assert images.shape == (1, 4, 4)
        return self.answer

    def close(self) -> None:
        pass


ONES = np.ones((4, 4))
PICTURE = np.zeros((4, 4), np.uint8)
LEFT = np.array([[0.9, 0.8, 0.1, 0.1]] * 4)  # mask: columns 0 and 1, 8 px


def test_compare_hand_worked_case() -> None:
    shifted = np.array([[0.9, 0.4, 0.1, 0.6]] * 4)  # mask: columns 0 and 3; column 0 in common
    classes = ONES.copy()
    classes[:1, 0] = 2  # one of the four common pixels
    report = compare(Fixed(LEFT, ONES), Fixed(shifted, classes), [PICTURE, PICTURE])
    assert report.pictures == 2
    assert report.dice == 2 * 4 / (8 + 8)
    assert report.max_abs_diff == pytest.approx(0.5)
    assert report.p999_abs_diff == pytest.approx(0.5)
    assert report.class_agreement == 3 / 4
    assert report.flipped_verdicts == 0


def test_compare_empty_masks_agree_fully() -> None:
    report = compare(Fixed(0 * ONES, ONES), Fixed(0.25 * ONES, 2 * ONES), [PICTURE])
    assert (report.dice, report.class_agreement, report.max_abs_diff) == (1, 1, 0.25)


def test_compare_counts_flipped_verdicts() -> None:
    report = compare(Fixed(0.49 * ONES, ONES), Fixed(0.51 * ONES, ONES), [PICTURE] * 3)
    assert report.flipped_verdicts == 3
    assert report.dice == 0


def test_compare_uses_the_decision_given() -> None:
    pair = Fixed(0.49 * ONES, ONES), Fixed(0.51 * ONES, ONES)
    strict = Decision(threshold=0.4, reject_score=0.4)
    report = compare(*pair, [PICTURE], decision=strict)
    assert (report.dice, report.flipped_verdicts) == (1, 0)


def test_compare_without_pictures_is_refused() -> None:
    with pytest.raises(ConfigError, match="at least one picture"):
        compare(Fixed(LEFT, ONES), Fixed(LEFT, ONES), [])


GOOD = ParityReport(
    pictures=100, dice=1, max_abs_diff=0, p999_abs_diff=0, class_agreement=1, flipped_verdicts=0
)


def report(**changes: float) -> ParityReport:
    return ParityReport(**{**GOOD.to_dict(), **changes})


def test_check_at_the_tolerance_passes() -> None:
    tolerance = Tolerance(min_dice=0.9, max_abs_diff=0.1, max_flipped_fraction=0.02)
    check(report(dice=0.9, max_abs_diff=0.1, flipped_verdicts=2), tolerance)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"dice": 0.998}, "Dice 0.998, expected >= 0.999"),
        ({"max_abs_diff": 0.03}, "0.03, expected <= 0.02"),
        ({"max_abs_diff": float("nan")}, "nan, expected <= 0.02"),
        ({"flipped_verdicts": 1}, "flipped verdicts 1, expected <= 0 of 100"),
        ({"dice": 0.5, "flipped_verdicts": 7}, "Dice 0.5.*flipped verdicts 7"),
    ],
)
def test_check_beyond_the_tolerance_gives_the_figures(
    changes: dict[str, float], message: str
) -> None:
    with pytest.raises(ParityError, match=message):
        check(report(**changes), Tolerance())


def test_check_limits_each_class_of_defect_and_not_those_without_one() -> None:
    per_class = {name: {"dice": 0.96} for name in ("crack", FREE, "unlabelled")}
    found = replace(GOOD, per_class=per_class)
    check(found, Tolerance(min_class_dice=0.96))
    with pytest.raises(ParityError, match=r"reference: Dice of crack 0.96, expected >= 0.97; exp"):
        check(found, Tolerance(min_class_dice=0.97))


@pytest.mark.parametrize("precision", ["fp16", "bf16", "int8"])
def test_tolerance_of_reduced_arithmetic_limits_masks_and_verdicts_alone(precision: str) -> None:
    tolerance = Tolerance.of(ExportParams(), precision)
    check(replace(GOOD, max_abs_diff=1.0, dice=tolerance.min_dice), tolerance)
    assert tolerance.min_class_dice >= 0.97
    with pytest.raises(ParityError, match="flipped verdicts 1, expected <= 0"):
        check(replace(GOOD, flipped_verdicts=1), tolerance)


def test_frozen_pictures_are_the_same_each_time_and_fit_no_stride() -> None:
    first, second = frozen_pictures(), frozen_pictures()
    assert all((a == b).all() for a, b in zip(first, second, strict=True))
    assert {image.dtype for image in first} == {np.dtype(np.uint8)}
    assert any(image.shape[0] % 16 and image.shape[1] % 16 for image in first)
    assert min(min(image.shape) for image in first) == 32


def sample(folder: Path, name: str, label: str, size: int = 40, group: int = -1) -> Sample:
    path = folder / f"{name}.png"
    Image.fromarray(np.full((size, size), 99, np.uint8)).save(path)
    return Sample(name, label, path, None, group)


def test_real_tiles_are_balanced_and_the_same_each_time(tmp_path: Path) -> None:
    samples = [sample(tmp_path, f"f{index}", FREE) for index in range(9)]
    samples += [sample(tmp_path, f"c{index}", "crack") for index in range(2)]
    tiles = real_tiles(samples, 4)
    assert tiles.classes == ("crack",) * 2 + (FREE,) * 4
    assert tiles.classes == real_tiles(samples, 4).classes
    assert str(tiles) == "6 tiles"


def test_real_tiles_leave_out_pictures_too_small_for_a_model(tmp_path: Path) -> None:
    small, large = sample(tmp_path, "a", FREE, size=31), sample(tmp_path, "b", FREE)
    assert len(real_tiles([small, large], 5).pictures) == 1
    with pytest.raises(DataError, match="no tile to compare on: expected pictures of at least 32"):
        real_tiles([small], 5)


def test_plain_tiles_are_the_ends_of_the_list_and_no_other_is_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    paths = [tmp_path / str(number) for number in range(60)]
    read: list[int] = []

    def read_image(path: Path) -> npt.NDArray[np.uint8]:
        read.append(int(path.name))
        side = 31 if path.name in ("1", "58") else 32  # too small for a model
        return np.full((side, 40), int(path.name), np.uint8)

    monkeypatch.setattr(parity, "read_image", read_image)
    ranges, proof = plain_tiles(paths, 1, 2)  # of each of six classes
    assert ranges is not None
    assert [int(picture[0, 0]) for picture in ranges.pictures] == [0, 2, 3, 4, 5, 6]
    assert [int(picture[0, 0]) for picture in proof.pictures] == [*range(47, 58), 59]
    assert sorted(read) == [*range(7), *range(47, 60)]
    ranges, proof = plain_tiles(paths[:3], 0, 9)
    assert ranges is None
    assert [int(picture[0, 0]) for picture in proof.pictures] == [0, 2]
    ranges, proof = plain_tiles(paths[2:5], 9, 9)
    assert ranges is not None
    assert (len(ranges.pictures), len(proof.pictures)) == (1, 2)
    for few, for_int8 in ((paths[:2], 0), (paths[:2], 1), (paths[1:3], 1), (paths[:1], 1), ([], 1)):
        with pytest.raises(DataError, match="expected at least two pictures of at least 32 px"):
            plain_tiles(few, for_int8, 1)


def test_synthetic_tiles_show_every_class() -> None:
    assert synthetic_tiles(1).classes == (FREE, *LABELS[1:])


def test_halves_share_no_physical_tile_and_each_class(tmp_path: Path) -> None:
    labels = (FREE, FREE, "crack", "crack", FREE, "fray")
    samples = [
        sample(tmp_path, f"{label}{group}{index}", label, group=group)
        for group, label in enumerate(labels)
        for index in range(3)
    ]
    first, second = halves(samples)
    assert not {entry.group for entry in first} & {entry.group for entry in second}
    assert len(first) + len(second) == len(samples)
    for label in (FREE, "crack"):
        assert label in {entry.label for entry in first} & {entry.label for entry in second}


def test_within_mirrors_and_cuts_to_the_bounds() -> None:
    picture = np.arange(40 * 50, dtype=np.uint8).reshape(40, 50)
    tiles = TileSet(pictures=(picture,), classes=(FREE,), origin="synthetic")
    fitted = tiles.within((64, 32), (99, 48)).pictures[0]
    assert fitted.shape == (64, 48)
    assert (fitted[:40] == picture[:, :48]).all()
    assert (fitted[40] == picture[39, :48]).all()
