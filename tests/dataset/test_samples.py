from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from magtiles_seg.dataset.samples import (
    Sample,
    check_sample,
    find_samples,
    load_image,
    load_mask,
    load_soft_mask,
    load_target,
    scan,
)
from magtiles_seg.errors import ConfigError, DataError
from magtiles_seg.labels import LABELS

GREY = np.array([[0, 1, 127], [128, 200, 255]], np.uint8)


def write(path: Path, pixels: np.ndarray) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(pixels).save(path)


def tile(root: Path, label: str, stem: str, mask: np.ndarray = GREY) -> None:
    write(root / f"MT_{label}" / "Imgs" / f"{stem}.jpg", np.full(mask.shape, 90, np.uint8))
    write(root / f"MT_{label}" / "Imgs" / f"{stem}.png", mask)


def pair(root: Path, stem: str, mask: np.ndarray) -> None:
    write(root / "images" / f"{stem}.png", np.full(mask.shape[:2], 90, np.uint8))
    write(root / "masks" / f"{stem}.png", mask)


def test_find_samples_magnetic_tile_reads_names_classes_and_groups(tmp_path: Path) -> None:
    root = tmp_path / "archive-master"
    tile(root, "Crack", "exp2_num_1020")
    tile(root, "Free", "exp1_num_1000")
    tile(root, "Free", "exp1_num_1200")
    (root / "MT_Free" / "Imgs" / "Thumbs.db").touch()
    imgs = root / "MT_Crack" / "Imgs"
    assert find_samples(tmp_path)[2] == Sample(
        "exp2_num_1020",
        "crack",
        imgs / "exp2_num_1020.jpg",
        imgs / "exp2_num_1020.png",
        group=1000,
        exposure=2,
    )
    assert [(s.id, s.num, s.group) for s in find_samples(tmp_path)][:2] == [
        ("exp1_num_1000", 1000, 1000),
        ("exp1_num_1200", 1200, 1200),
    ]


def test_find_samples_incomplete_names_every_file_at_once(tmp_path: Path) -> None:
    tile(tmp_path, "Free", "exp1_num_1")
    tile(tmp_path, "Free", "exp1_num_2")
    tile(tmp_path, "Crack", "exp1_num_3")
    tile(tmp_path, "Crack", "exp1_num_1")
    tile(tmp_path, "Dent", "exp1_num_4")
    tile(tmp_path, "Fray", "copy")
    (tmp_path / "MT_Free/Imgs/exp1_num_2.png").unlink()
    (tmp_path / "MT_Crack/Imgs/exp1_num_3.jpg").unlink()
    with pytest.raises(DataError, match="5 problems") as raised:
        find_samples(tmp_path)
    for part in (
        "exp1_num_2.png: mask is missing",
        "exp1_num_3.jpg: picture is missing",
        "same name as",
        "class 'dent' is none of",
        "copy.jpg: unknown name",
    ):
        assert part in str(raised.value)


@pytest.mark.parametrize(
    ("layout", "error", "match"),
    [
        ("auto", DataError, "holds no data set"),
        ("coco", ConfigError, "unknown layout 'coco'"),
    ],
)
def test_find_samples_nothing_there_is_an_error(
    tmp_path: Path, layout: str, error: type[Exception], match: str
) -> None:
    with pytest.raises(error, match=match):
        find_samples(tmp_path, layout=layout)


def test_find_samples_missing_directory_is_file_not_found(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="data load"):
        find_samples(tmp_path / "none")


def test_find_samples_empty_class_folders_are_an_error(tmp_path: Path) -> None:
    (tmp_path / "MT_Free" / "Imgs").mkdir(parents=True)
    with pytest.raises(DataError, match="no picture in it"):
        find_samples(tmp_path)


def test_load_mask_rules_differ_on_the_soft_edge(tmp_path: Path) -> None:
    tile(tmp_path, "Crack", "exp1_num_1")
    (sample,) = find_samples(tmp_path)
    assert load_image(sample).shape == (2, 3)
    assert load_soft_mask(sample).tolist() == GREY.tolist()
    assert load_mask(sample).tolist() == [[0, 0, 0], [1, 1, 1]]
    assert load_mask(sample, rule="gt0").tolist() == [[0, 1, 1], [1, 1, 1]]
    assert load_target(sample).tolist() == [[0, 0, 0], [3, 3, 3]]
    with pytest.raises(ConfigError, match="unknown mask rule 'half'"):
        load_mask(sample, rule="half")  # type: ignore[arg-type]


def test_load_mask_truncated_file_is_a_data_error_with_its_name(tmp_path: Path) -> None:
    tile(tmp_path, "Crack", "exp1_num_1", np.zeros((64, 64), np.uint8))
    (sample,) = find_samples(tmp_path)
    assert sample.mask_path is not None
    sample.mask_path.write_bytes(sample.mask_path.read_bytes()[:40])
    with pytest.raises(DataError, match=r"mask '.*exp1_num_1\.png' .*; expected"):
        load_mask(sample)


def test_load_mask_colour_file_is_a_data_error(tmp_path: Path) -> None:
    tile(tmp_path, "Crack", "exp1_num_1")
    (sample,) = find_samples(tmp_path)
    assert sample.mask_path is not None
    write(sample.mask_path, np.array([[[0, 0, 9]]], np.uint8))
    with pytest.raises(DataError, match="mask of RGB; expected one channel"):
        load_mask(sample)


def test_find_samples_folder_layout_reads_class_indices(tmp_path: Path) -> None:
    labels = ("background", "scratch", "dent")
    pair(tmp_path, "a", np.array([[0, 2, 2], [0, 1, 0]], np.uint8))
    pair(tmp_path, "b", np.zeros((2, 3), np.uint8))
    a, b = find_samples(tmp_path, labels=labels)
    assert (a.label, b.label) == ("dent", "free")
    assert a.group != b.group
    assert load_mask(a).tolist() == [[0, 1, 1], [0, 1, 0]]
    assert load_target(a, labels=labels).tolist() == [[0, 2, 2], [0, 1, 0]]


def test_find_samples_folder_layout_palette_mask_keeps_its_indices(tmp_path: Path) -> None:
    pair(tmp_path, "a", np.zeros((2, 2), np.uint8))
    palette = Image.fromarray(np.array([[0, 1], [2, 0]], np.uint8), mode=None).convert("P")
    palette.putdata([0, 1, 2, 0])
    palette.save(tmp_path / "masks" / "a.png")
    (sample,) = find_samples(tmp_path, labels=("background", "x", "y"))
    assert load_target(sample, labels=("background", "x", "y")).tolist() == [[0, 1], [2, 0]]


def test_find_samples_folder_layout_two_labels_reads_grey_masks(tmp_path: Path) -> None:
    pair(tmp_path, "a", GREY)
    pair(tmp_path, "b", np.zeros((2, 3), np.uint8))
    a, b = find_samples(tmp_path, labels=("background", "dent"))
    assert (a.label, b.label) == ("dent", "free")
    assert load_mask(a).tolist() == [[0, 0, 0], [1, 1, 1]]


def test_find_samples_folder_layout_grey_masks_of_many_classes_are_refused(tmp_path: Path) -> None:
    pair(tmp_path, "a", GREY)
    with pytest.raises(DataError, match=r"a\.png: value 255; expected class indices 0\.\.5"):
        find_samples(tmp_path)


def test_find_samples_folder_layout_missing_and_damaged_masks_are_named(tmp_path: Path) -> None:
    for stem in "abc":
        pair(tmp_path, stem, np.zeros((2, 3), np.uint8))
    (tmp_path / "masks/a.png").unlink()
    (tmp_path / "masks/b.png").write_bytes(b"no picture")
    with pytest.raises(DataError, match="2 problems") as raised:
        find_samples(tmp_path)
    assert "a.png: mask is missing" in str(raised.value)
    assert "b.png' is no picture" in str(raised.value)


def test_find_samples_folder_layout_groups_csv_joins_pictures(tmp_path: Path) -> None:
    for stem in "abc":
        pair(tmp_path, stem, np.zeros((2, 3), np.uint8))
    (tmp_path / "groups.csv").write_text("image,group\na.png,left\nb,right\nc,left\n")
    a, b, c = find_samples(tmp_path)
    assert a.group == c.group != b.group
    (tmp_path / "groups.csv").write_text("image,group\na,left\n")
    with pytest.raises(DataError, match="no line for the picture b"):
        find_samples(tmp_path)
    (tmp_path / "groups.csv").write_text("file;tile\n")
    with pytest.raises(DataError, match="expected the columns image,group"):
        find_samples(tmp_path)


def test_scan_magnetic_tile_tells_of_folders_of_pictures_that_are_no_classes(
    tmp_path: Path,
) -> None:
    tile(tmp_path, "Blowhole", "exp1_num_1")
    (tmp_path / "docs").mkdir()
    assert scan(tmp_path).notes == []
    tile(tmp_path, "Free", "exp1_num_2")
    (tmp_path / "MT_Free").rename(tmp_path / "Free")
    (note,) = scan(tmp_path).notes
    assert note.startswith(f"{tmp_path / 'Free'}: left out with its pictures")


def test_check_sample_tells_of_an_empty_mask_of_a_class_of_defects(tmp_path: Path) -> None:
    tile(tmp_path, "Blowhole", "exp1_num_1", np.zeros_like(GREY))
    tile(tmp_path, "Free", "exp1_num_2", np.zeros_like(GREY))
    notes = [check_sample(sample, LABELS).notes for sample in find_samples(tmp_path)]
    assert len(notes[0]) == 1
    assert "filed under 'blowhole'" in notes[0][0]
    assert notes[1] == []
