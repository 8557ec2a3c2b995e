"""Which files make a data set: none is passed over in silence, none is taken twice."""

from __future__ import annotations

import os
import unicodedata
from pathlib import Path

import pytest
from PIL import Image

from magtiles_seg.dataset.archive import verify
from magtiles_seg.dataset.layouts import list_files, locate
from magtiles_seg.dataset.samples import find_samples, load_image
from magtiles_seg.errors import DataError

LABELS = ("background", "scratch")


def put(root: Path, *names: str) -> Path:
    for name in names:
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        Image.new("L", (8, 6)).save(root / name, lossless=True)
    return root


@pytest.mark.parametrize(
    ("files", "both"),
    [
        (("images/a.png", "images/a.jpg", "masks/a.png"), ("a.png", "a.jpg")),
        (("images/a.jpg", "images/a.JPG", "masks/a.png"), ("a.jpg", "a.JPG")),
        (("images/A.png", "images/a.png", "masks/a.png"), ("A.png", "a.png")),
        (("images/a.png", "masks/a.png", "masks/a.bmp"), ("a.png", "a.bmp")),
        (("images/ü.png", "images/u\u0308.png", "masks/ü.png"), ("ü.png", "u\u0308.png")),
        (
            ("MT_Free/Imgs/exp1_num_1.jpg", "MT_Free/Imgs/exp1_num_1.jpeg",
             "MT_Free/Imgs/exp1_num_1.png"),
            ("exp1_num_1.jpg", "exp1_num_1.jpeg"),
        ),
        (
            ("MT_Free/Imgs/exp1_num_1.jpg", "MT_Free/Imgs/exp1_num_1.png",
             "MT_Crack/Imgs/exp1_num_1.jpg", "MT_Crack/Imgs/exp1_num_1.png"),
            ("MT_Free", "MT_Crack"),
        ),
    ],
)  # fmt: skip
def test_two_files_of_one_stem_are_refused_with_both_names(
    tmp_path: Path, files: tuple[str, ...], both: tuple[str, str]
) -> None:
    with pytest.raises(DataError, match="same name as") as raised:
        find_samples(put(tmp_path, *files))
    assert all(name in str(raised.value) for name in both)


def test_suffixes_of_every_picture_format_are_read_in_any_case(tmp_path: Path) -> None:
    put(tmp_path, "images/a.webp", "masks/a.WEBP", "images/b.TIFF", "masks/b.Bmp")
    put(tmp_path, "images/c.JPEG", "masks/c.tif")
    found = verify(tmp_path, labels=LABELS)
    assert [load_image(sample).shape for sample in found] == [(6, 8)] * 3


def test_names_that_differ_in_case_or_unicode_form_are_one_picture(tmp_path: Path) -> None:
    put(tmp_path, "images/Tile.png", "masks/tile.png", "images/u\u0308.png", "masks/ü.png")
    assert [sample.id for sample in find_samples(tmp_path)] == ["Tile", "ü"]
    assert all(unicodedata.is_normalized("NFC", s.id) for s in find_samples(tmp_path))


def test_what_systems_leave_behind_is_not_part_of_the_data(tmp_path: Path) -> None:
    put(tmp_path, "set/images/a.png", "set/masks/a.png", "__MACOSX/images/._a.png")
    for name in ("Thumbs.db", ".DS_Store", "._a.png", "desktop.ini"):
        (tmp_path / "set/images" / name).write_bytes(b"junk")
    put(tmp_path, "set/images/.ipynb_checkpoints/a-checkpoint.png", ".incoming/images/b.png")
    assert [sample.id for sample in verify(tmp_path, labels=LABELS)] == ["a"]


def test_pictures_in_folders_below_are_refused_by_name(tmp_path: Path) -> None:
    put(tmp_path, "images/a.png", "masks/a.png", "images/left/deep/b.png")
    put(tmp_path, "images/empty/.thumbnails/a.png")
    with pytest.raises(DataError, match=r"1 problem:\n.*left: a folder with pictures"):
        find_samples(tmp_path)


def test_class_folder_with_pictures_elsewhere_than_in_imgs_is_refused(tmp_path: Path) -> None:
    put(tmp_path, "MT_Free/exp1_num_1.jpg", "MT_Crack/Imgs/exp1_num_9.jpg")
    with pytest.raises(DataError, match=r"MT_Free: expected its pictures in .*Imgs"):
        find_samples(tmp_path)


def test_files_that_are_not_read_are_told(tmp_path: Path) -> None:
    put(tmp_path, "images/a.png", "masks/a.png")
    (tmp_path / "images" / "notes.txt").write_text("x")
    notes: list[str] = []
    verify(tmp_path, labels=LABELS, note=notes.append)
    assert notes == [
        f"{tmp_path / 'images/notes.txt'}: left out, for its name does not end as a picture's"
    ]
    with pytest.warns(UserWarning, match=r"notes\.txt: left out"):
        verify(tmp_path, labels=LABELS)


def test_partner_in_a_format_that_is_not_read_is_named_as_the_reason(tmp_path: Path) -> None:
    put(tmp_path, "images/a.png", "masks/a.jpg", "images/b.gif", "masks/b.png")
    with pytest.raises(DataError, match="2 problems") as raised:
        find_samples(tmp_path)
    assert "mask is missing; a.jpg is not read: save it as PNG" in str(raised.value)
    assert "picture is missing; b.gif is not read" in str(raised.value)


@pytest.mark.parametrize("second", ["val/images/b.png", "train/MT_Free/Imgs/exp1_num_1.jpg"])
def test_several_data_sets_side_by_side_are_refused(tmp_path: Path, second: str) -> None:
    put(tmp_path, "train/images/a.png", second)
    with pytest.raises(DataError, match=r"holds 2 data sets, .*train"):
        locate(tmp_path)


def test_links_are_followed_once_and_loops_end(tmp_path: Path) -> None:
    put(tmp_path, "v1/images/a.png", "v1/masks/a.png")
    (tmp_path / "latest").symlink_to(tmp_path / "v1")
    (tmp_path / "v1" / "images" / "here").symlink_to(tmp_path / "v1" / "images")
    (tmp_path / "v1" / "images" / "up").symlink_to(tmp_path)
    assert [sample.id for sample in find_samples(tmp_path)] == ["a"]
    (tmp_path / "loop").mkdir()
    (tmp_path / "loop" / "loop").symlink_to(tmp_path / "loop")
    with pytest.raises(DataError, match="holds no data set"):
        locate(tmp_path / "loop")


def test_linked_folder_with_pictures_is_refused_as_any_folder(tmp_path: Path) -> None:
    put(tmp_path, "set/images/a.png", "set/masks/a.png", "elsewhere/b.png")
    (tmp_path / "set/images/more").symlink_to(tmp_path / "elsewhere")
    with pytest.raises(DataError, match="more: a folder with pictures"):
        find_samples(tmp_path)


def test_link_to_nothing_is_named(tmp_path: Path) -> None:
    put(tmp_path, "images/a.png", "masks/a.png")
    (tmp_path / "images/b.png").symlink_to(tmp_path / "gone.png")
    with pytest.raises(DataError, match=r"b\.png: no regular file"):
        find_samples(tmp_path)


def test_name_that_is_no_utf8_is_refused_and_can_be_printed(tmp_path: Path) -> None:
    put(tmp_path, "images/a.png", "masks/a.png")
    (tmp_path / "images" / os.fsdecode(b"\xfc.png")).write_bytes(b"")
    with pytest.raises(DataError, match=r"xfc\.png'.*not valid UTF-8") as raised:
        find_samples(tmp_path)
    assert str(raised.value).encode()


def test_list_files_of_a_folder_that_is_not_there_is_empty(tmp_path: Path) -> None:
    listing = list_files(tmp_path / "none", {".png"})
    assert (listing.files, listing.problems, listing.left_out) == ({}, [], [])
