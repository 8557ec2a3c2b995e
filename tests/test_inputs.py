"""Which pictures words mean, with everything that people's folders hold."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from folders import forbid

from magtiles_seg.errors import DataError
from magtiles_seg.inputs import Survey, find_pictures
from magtiles_seg.marking import mark_png

PNG = b"\x89PNG\r\n\x1a\n" + bytes(40)


def touch(root: Path, *names: str) -> None:
    for name in names:
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_bytes(PNG)


def found(root: Path, *words: object, survey: Survey | None = None) -> list[str]:
    pictures = find_pictures([str(word) for word in words], survey)
    return [os.path.relpath(path, root) for path in pictures]


def test_folder_is_sorted_naturally_and_words_keep_their_order(tmp_path: Path) -> None:
    touch(tmp_path, "s/10.png", "s/2.png", "s/1.png", "s/day10/1.png", "s/day9/1.png", "z.png")
    inside = ["s/1.png", "s/2.png", "s/10.png", "s/day9/1.png", "s/day10/1.png"]
    assert found(tmp_path, tmp_path / "z.png", tmp_path / "s") == ["z.png", *inside]
    assert found(tmp_path, tmp_path / "s" / "*.png") == inside[:3]
    assert found(tmp_path, tmp_path / "s" / "**" / "*.png") == inside
    assert found(tmp_path, tmp_path / "s/10.png", tmp_path / "s/2.png") == ["s/10.png", "s/2.png"]


def test_what_systems_leave_is_left_out_and_said(tmp_path: Path) -> None:
    touch(
        tmp_path, "a.PNG", "._a.png", ".DS_Store", "__MACOSX/._a.png", "__MACOSX/b.png",
        ".ipynb_checkpoints/a-checkpoint.png", "notes.txt", "b.gif", "c.webp", "d.JFIF",
    )  # fmt: skip
    survey = Survey()
    assert found(tmp_path, tmp_path, survey=survey) == ["a.PNG", "c.webp", "d.JFIF"]
    said = "\n".join(survey.lines())
    assert "left out 3 hidden files or folders, such as" in said
    assert "left out 1 picture of a format that is not read, such as" in said
    assert found(tmp_path, tmp_path / "._a.png") == ["._a.png"]


def test_results_are_left_out_and_a_user_s_own_mask_is_not(tmp_path: Path) -> None:
    touch(tmp_path, "a.png", "b_mask.png")
    for name in ("a_mask.png", "masks/00000000/00001.png", "web_000004096.png", "001_a.png"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_bytes(mark_png(PNG))
    for word in (tmp_path, tmp_path / "**" / "*.png"):
        survey = Survey()
        assert found(tmp_path, word, survey=survey) == ["a.png", "b_mask.png"]
        assert "left out 4 results of an earlier run, such as" in survey.lines()[0]
    assert found(tmp_path, tmp_path / "a_mask.png") == ["a_mask.png"]


def test_masks_of_a_data_set_are_left_out_and_other_pictures_are_not(tmp_path: Path) -> None:
    touch(tmp_path, "MT_Crack/Imgs/a.jpg", "MT_Crack/Imgs/a.png", "own/images/b.png")
    touch(tmp_path, "own/masks/b.png", "masks/c.png", "MT_Crack/d.png")
    for word in (tmp_path, tmp_path / "**" / "*"):
        survey = Survey()
        assert found(tmp_path, word, survey=survey) == [
            "MT_Crack/Imgs/a.jpg", "MT_Crack/d.png", "masks/c.png", "own/images/b.png",
        ]  # fmt: skip
        said = "\n".join(survey.lines())
        assert "left out 1 mask of a labelled picture, such as" in said
        assert "left out 1 folder of masks beside images, such as" in said
    assert found(tmp_path, tmp_path / "own" / "masks") == ["own/masks/b.png"]
    assert found(tmp_path, tmp_path / "MT_Crack/Imgs/a.png") == ["MT_Crack/Imgs/a.png"]


def test_folder_of_results_alone_is_refused_with_the_reason(tmp_path: Path) -> None:
    (tmp_path / "a_overlay.png").write_bytes(mark_png(PNG))
    with pytest.raises(DataError, match=r"no picture in .*; left out 1 result of an earlier run"):
        find_pictures([str(tmp_path)])


def test_linked_folders_are_followed_once(tmp_path: Path) -> None:
    touch(tmp_path, "s/a.png", "s/real/b.png", "other/c.png", "up.png")
    for link, target in {
        "s/aa": "s/real", "s/loop": "s", "s/up": ".", "s/out": "other", "other/back": "s",
    }.items():  # fmt: skip
        (tmp_path / link).symlink_to(tmp_path / target)
    expected = ["s/a.png", "s/out/c.png", "s/real/b.png"]
    assert found(tmp_path, tmp_path / "s") == expected
    assert found(tmp_path, tmp_path / "s" / "**" / "*.png") == expected


def test_same_picture_by_several_names_of_its_folder_comes_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    touch(tmp_path, "s/a.png")
    (tmp_path / "link").symlink_to("s")
    (tmp_path / "s" / "b.png").symlink_to("a.png")
    monkeypatch.chdir(tmp_path)
    assert found(tmp_path, "s/a.png", "link", str(tmp_path / "s"), "s/../s/a.png", "s/a.png") == [
        "s/a.png",
        "link/b.png",
    ]


def test_broken_links_and_pipes_are_kept_to_be_named_as_pictures(tmp_path: Path) -> None:
    (tmp_path / "gone.png").symlink_to("nowhere.png")
    (tmp_path / "day").symlink_to("unmounted")
    os.mkfifo(tmp_path / "pipe.png")
    os.mkfifo(tmp_path / "a_mask.png")
    survey = Survey()
    assert found(tmp_path, tmp_path, survey=survey) == ["a_mask.png", "gone.png", "pipe.png"]
    assert "left out 1 broken link, such as" in survey.lines()[0]


def test_folder_without_permission_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    touch(tmp_path, "a.png", "closed/b.png")
    forbid(monkeypatch, tmp_path / "closed")
    survey = Survey()
    assert found(tmp_path, tmp_path, survey=survey) == ["a.png"]
    assert "closed cannot be listed: Permission denied" in survey.problems()[0]


def test_odd_names_mean_themselves(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    names = ["[1].png", "-x.png", "a\nb.png", "~", "shots[2]/*.png", "x.png/y.png", "*.png"]
    touch(tmp_path, *names)
    touch(tmp_path, "1.png", "shots2/no.png")
    for name in names:
        assert found(tmp_path, name) == [name]
    touch(tmp_path, "shots[2]/z1.png")
    assert found(tmp_path, "shots[2]/z?.png") == ["shots[2]/z1.png"]
    assert found(tmp_path, "x.png") == ["x.png/y.png"]
    monkeypatch.setenv("HOME", str(tmp_path / "x.png"))
    assert found(tmp_path, "~/y.png") == ["x.png/y.png"]


@pytest.mark.parametrize("word", ["", " "])
def test_empty_word_is_not_the_working_directory(word: str) -> None:
    with pytest.raises(DataError, match="a path is empty"):
        find_pictures([word])


def test_name_that_is_too_long_is_no_error_yet(tmp_path: Path) -> None:
    assert len(find_pictures([str(tmp_path / ("x" * 5000 + ".png"))])) == 1


def test_very_deep_folders_are_walked(tmp_path: Path) -> None:
    deep = tmp_path.joinpath(*["d"] * 300)
    deep.mkdir(parents=True)
    touch(deep, "a.png")
    assert len(find_pictures([str(tmp_path)])) == 1


@pytest.mark.parametrize("word", ["http://host/a.png", "file:///tmp/a.png", "s3://bucket/a.png"])
def test_url_is_data_error_that_names_the_verb_for_it(word: str) -> None:
    with pytest.raises(DataError, match="magtiles-seg batch"):
        find_pictures([word])
