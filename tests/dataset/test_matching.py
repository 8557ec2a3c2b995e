"""Pictures of one surface, on synthetic tiles: turned, mirrored, cropped, in another light."""

from __future__ import annotations

import csv
import json
from pathlib import Path

import cv2
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray

from magtiles_seg import cli
from magtiles_seg.dataset import find_leaks, find_matches, save_proposal
from magtiles_seg.dataset import matching as subject
from magtiles_seg.dataset.fingerprints import find_candidates, fingerprint
from magtiles_seg.dataset.matching import Match, Matches
from magtiles_seg.dataset.samples import find_samples
from magtiles_seg.dataset.synthetic import synthetic_tile
from magtiles_seg.errors import DataError, ImageError

HW = (200, 150)
STILL = ((1.0, 0.0, 0.0), (0.0, 1.0, 0.0))


def surface(seed: int, hw: tuple[int, int] = HW) -> NDArray[np.uint8]:
    """Draw grain that no other seed has, at two sizes."""
    random = np.random.default_rng(seed)
    grain = sum(
        cv2.GaussianBlur(random.normal(0, 40 * size, hw).astype(np.float32), (0, 0), size)
        for size in (1.0, 2.0)
    )
    return np.clip(128 + grain, 0, 255).astype(np.uint8)


def relit(pixels: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """Light a picture from the left, darker, and add noise."""
    light = np.linspace(0.9, 0.5, pixels.shape[1])
    noise = np.random.default_rng(0).normal(0, 3, pixels.shape)
    lit: NDArray[np.float64] = pixels * light + noise
    return lit.clip(0, 255).astype(np.uint8)


def write(path: Path, pixels: NDArray[np.generic]) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    cv2.imwrite(str(path), np.ascontiguousarray(pixels))
    return path


def strangers(folder: Path, count: int = 4) -> list[Path]:
    return [write(folder / f"z{seed}.png", surface(100 + seed)) for seed in range(count)]


def match(first: int, second: int, certainty: float, **other: float) -> Match:
    values: dict[str, float] = {"angle_degrees": 0, "scale": 1, "overlap": 1, "correlation": 0.8}
    return Match(
        first=first, second=second, certainty=certainty, inliers=20, mirrored=False,
        matrix=STILL, **{**values, **other},
    )  # fmt: skip


@pytest.mark.parametrize("mirrored", [False, True])
@pytest.mark.parametrize("quarters", [0, 1, 2, 3])
def test_find_matches_of_a_turned_picture_in_another_light_says_how_it_is_turned(
    tmp_path: Path, quarters: int, mirrored: bool
) -> None:
    seen = np.rot90(surface(1), quarters)
    paths = [
        write(tmp_path / "a.png", surface(1)),
        *strangers(tmp_path),
        write(tmp_path / "b.png", relit(seen[:, ::-1] if mirrored else seen)),
    ]
    found = find_matches(paths, threads=1)
    assert found.groups() == [0, 1, 2, 3, 4, 0]
    best = found.found[0]
    assert (best.first, best.second, best.mirrored) == (0, 5, mirrored)
    assert best.certainty > 0.99
    expected = {0: "", 1: "90", 2: "180", 3: "90"}[quarters]
    assert expected in best.relation
    assert ("mirrored" in best.relation) == mirrored


def test_find_matches_of_a_crop_knows_that_it_is_a_section(tmp_path: Path) -> None:
    whole = surface(1, (240, 240))
    paths = [
        write(tmp_path / "a.png", whole),
        *strangers(tmp_path),
        write(tmp_path / "b.png", relit(whole[100:230, 20:150])),
    ]
    found = find_matches(paths, threads=1)
    assert found.groups() == [0, 1, 2, 3, 4, 0]
    assert found.found[0].correlation > 0.8


def test_find_matches_of_neighbours_of_a_video_joins_them_one_by_one(tmp_path: Path) -> None:
    web = surface(1, (600, 150))
    paths = [write(tmp_path / f"{at:03d}.png", web[at : at + 200]) for at in range(0, 401, 80)]
    found = find_matches([*paths, *strangers(tmp_path)], threads=1)
    assert found.groups()[:6] == [0] * 6
    assert found.groups()[6:] == [6, 7, 8, 9]


def test_find_matches_of_the_exposures_of_synthetic_tiles_groups_them(tmp_path: Path) -> None:
    (root,) = {
        write(tmp_path / "s" / f"{seed}_{light}.png", relit(tile) if light else tile).parent
        for seed in range(5)
        for tile in [synthetic_tile(seed, size_hw=(220, 180)).image]
        for light in range(2)
    }
    paths = sorted(root.iterdir())
    assert find_matches(paths, threads=2).groups() == [0, 0, 2, 2, 4, 4, 6, 6, 8, 8]


def test_find_matches_of_blank_pictures_names_them_and_joins_none(tmp_path: Path) -> None:
    paths = [write(tmp_path / f"{grey}.png", np.full(HW, grey, np.uint8)) for grey in (90, 91)]
    found = find_matches(paths, threads=1)
    assert (found.groups(), found.plain) == ([0, 1], (0, 1))
    assert "too little texture to be told apart: 2 pictures" in found.remarks[0]


def test_find_matches_of_nothing_is_nothing_and_a_damaged_picture_is_named(tmp_path: Path) -> None:
    assert find_matches([]).found == ()
    broken = tmp_path / "broken.png"
    broken.write_bytes(b"no picture")
    with pytest.raises(ImageError, match="broken"):
        find_matches([broken, *strangers(tmp_path)])


def test_find_matches_tells_each_step_to_its_end(tmp_path: Path) -> None:
    told: dict[str, tuple[int, int | None]] = {}
    paths = [write(tmp_path / f"{k}.png", relit(surface(1)) if k else surface(1)) for k in (0, 1)]
    find_matches(paths, progress=lambda step, done, total: told.update({step: (done, total)}))
    assert list(told) == ["read", "search", "verify"]
    assert all(done == total for done, total in told.values())


def test_fixed_view_of_other_parts_is_remarked(tmp_path: Path) -> None:
    fixture = surface(7).astype(float) - 128
    paths = [
        write(tmp_path / f"{k:02d}.png", np.clip(surface(k + 20) * 0.5 + 64 + fixture, 0, 255))
        for k in range(24)
    ]
    assert subject.fixed_share(paths) > subject.MOST_FIXED
    plain = [write(tmp_path / "p" / f"{k}.png", surface(k + 60)) for k in range(24)]
    assert subject.fixed_share(plain) < 0.05
    (said,) = Matches((), (), (), 0.8).remarks
    assert "group_pattern" in said


def test_groups_join_over_a_third_and_doubtful_are_those_that_decide() -> None:
    pairs = (
        match(0, 1, 0.99),
        match(1, 2, 0.99),
        match(0, 2, 0.6),
        match(2, 3, 0.4),
        match(1, 3, 0.01),
    )
    found = Matches(tuple(Path(name) for name in "abcd"), pairs, ())
    assert found.groups() == [0, 0, 0, 3]
    assert found.groups(0.3) == [0] * 4
    assert found.doubtful() == (pairs[3],)


@pytest.mark.parametrize(
    ("given_", "words"),
    [
        ({}, "same surface"),
        ({"angle_degrees": -91.0}, "turned by -90°"),
        ({"angle_degrees": 30.0}, "turned by 30°"),
        ({"overlap": 0.4}, "another section"),
        ({"correlation": 0.99}, "copy"),
    ],
)
def test_relation_says_what_the_second_is(given_: dict[str, float], words: str) -> None:
    assert match(0, 1, 0.9, **given_).relation == words


@given(st.integers(0, 60), st.floats(-1, 1))
def test_certainty_rises_with_points_and_with_correlation(points: int, correlation: float) -> None:
    here = subject.certainty_of(points, correlation)
    assert 0 <= here <= subject.certainty_of(points + 1, correlation) <= 1
    assert here <= subject.certainty_of(points, correlation + 0.1)


def test_find_candidates_of_many_alike_takes_no_more_pairs_than_its_bound() -> None:
    descriptors = fingerprint(np.random.default_rng(0).normal(0, 1, HW).astype(np.float32))
    count = 300
    empty = [np.zeros((0, 32), np.uint8)] * count
    found = find_candidates([descriptors.descriptors] * count, empty)
    assert count - 1 <= len(found.pairs) <= 12 * count
    assert not found.mirrored.any()


def test_find_leaks_names_the_pair_and_no_other(tmp_path: Path) -> None:
    train = [write(tmp_path / "a.png", surface(1)), *strangers(tmp_path)]
    test = [write(tmp_path / "t.png", relit(np.rot90(surface(1)))),
            write(tmp_path / "u.png", surface(9))]  # fmt: skip
    ((seen, tested, how),) = find_leaks(train, test)
    assert (seen, tested) == (train[0], test[0])
    assert how.certainty > 0.99


def test_save_proposal_writes_groups_that_the_split_reads(tmp_path: Path) -> None:
    root = tmp_path / "set"
    for seed in range(3):
        for light in range(2):
            pixels = relit(surface(seed)) if light else surface(seed)
            write(root / "images" / f"p{seed}_{light}.png", pixels)
            write(root / "masks" / f"p{seed}_{light}.png", np.zeros(HW, np.uint8))
    found = find_matches(sorted((root / "images").iterdir()), threads=1)
    save_proposal(found, root)
    groups = [sample.group for sample in find_samples(root, labels=("background", "x"))]
    assert groups == [0, 0, 1, 1, 2, 2]
    rows = list(csv.DictReader((root / "pairs.csv").read_text(encoding="utf-8").splitlines()))
    assert len([row for row in rows if float(row["certainty"]) > 0.9]) == 3


def test_save_proposal_shows_a_pair_in_doubt_in_the_page_itself(tmp_path: Path) -> None:
    paths = (write(tmp_path / "a<b>.png", surface(1)), write(tmp_path / "c.png", surface(2)))
    _, _, page = save_proposal(Matches(paths, (match(0, 1, 0.6),), ()), tmp_path / "out")
    text = page.read_text(encoding="utf-8")
    assert text.count("data:image/png;base64,") == 1
    assert "a&lt;b&gt;.png" in text
    assert "<b>.png" not in text
    assert "joined, certainty 0.60" in text


def test_save_proposal_of_two_pictures_of_one_name_is_refused(tmp_path: Path) -> None:
    found = Matches((tmp_path / "x" / "a.png", tmp_path / "y" / "A.jpg"), (), ())
    with pytest.raises(DataError, match=r"share a name"):
        save_proposal(found, tmp_path / "out")


def test_group_and_check_verbs_write_and_name_what_leaks(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    write(tmp_path / "train" / "a.png", surface(1))
    strangers(tmp_path / "train")
    write(tmp_path / "test" / "b.png", relit(surface(1)))
    write(tmp_path / "test" / "c.png", surface(8))
    lists = ["--train", str(tmp_path / "train"), "--test", str(tmp_path / "test")]
    assert cli.main(["data", "check", *lists, "--surface"]) == 1
    said = capsys.readouterr().out
    assert "test pictures with a tile-mate in train: 1 (50.0%)" in said
    assert "b.png shows" in said
    assert cli.main(["data", "check", *lists, "--surface", "--json"]) == 1
    (pair,) = json.loads(capsys.readouterr().out)["pairs"]
    assert pair["certainty"] > 0.9
    assert cli.main(["data", "group", str(tmp_path / "test"), "--out", str(tmp_path / "o")]) == 0
    assert "2 pictures of 2 surfaces" in capsys.readouterr().out
    assert cli.main(["data", "check", *lists[:2], "--surface"]) == 2
    assert "give --test" in capsys.readouterr().err
