"""`data check` on published lists: of names alone, or against a data set."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from folders import forbid

from magtiles_seg import cli
from magtiles_seg.dataset.leakage import leaks_of_lists, read_list
from magtiles_seg.dataset.samples import Sample
from magtiles_seg.dataset.synthetic import write_dataset
from magtiles_seg.errors import DataError


def sample(name: str, label: str, group: int) -> Sample:
    return Sample(name, label, Path(f"{name}.jpg"), None, group=group)


SAMPLES = (
    sample("a1", "free", 1),
    sample("a2", "free", 1),
    sample("a3", "crack", 1),
    sample("b1", "free", 2),
    sample("c1", "crack", 3),
)


def check(*words: object) -> int:
    return cli.main(["data", "check", *map(str, words)])


def test_leaks_of_a_training_list_test_all_others_and_count_by_class() -> None:
    report = leaks_of_lists(["Imgs/a1.jpg", "gone.jpg"], None, SAMPLES)
    assert report.leaked_test == ("a2", "a3")
    assert report.by_class == {"crack": (1, 2), "free": (1, 2)}
    assert (report.torn_groups, report.unknown_ids) == ((1,), ("gone",))
    assert report.leaked_test_fraction == 0.5
    assert not report.clean
    assert "  crack: 1 of 2\n  free: 1 of 2\n" in report.summary()
    assert "was made from" not in report.summary()


def test_leaks_of_two_lists_leave_the_others_unused() -> None:
    report = leaks_of_lists(["a1"], ["b1.jpg", "c1.jpg"], SAMPLES)
    assert (report.leaked_test, report.unused_ids) == ((), ("a2", "a3"))
    assert report.clean


def test_read_list_takes_lines_or_the_pictures_of_a_folder(tmp_path: Path) -> None:
    path = tmp_path / "list.txt"
    path.write_bytes("\ufeff# train\r\na1.jpg\r\n\r\n  b1.jpg \r\n".encode())
    assert read_list(path) == ("a1.jpg", "b1.jpg")
    folder = tmp_path / "train"
    (folder / "deep").mkdir(parents=True)
    (folder / "MT_Crack" / "Imgs").mkdir(parents=True)
    for name in ("b.png", "deep/a.JPG", "notes.txt", "MT_Crack/Imgs/mask.png"):
        (folder / name).touch()
    assert read_list(folder) == (str(folder / "b.png"), str(folder / "deep" / "a.JPG"))


@pytest.mark.parametrize("content", [b"", b"# nothing\n", b"\xff\xfe\x00"])
def test_read_list_without_names_is_a_data_error(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "list.txt"
    path.write_bytes(content)
    with pytest.raises(DataError, match=r"list\.txt (names no picture|is no text)"):
        read_list(path)


def test_check_train_list_against_the_data_set(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    root = write_dataset(tmp_path / "data", tiles=2, seed=0)
    pictures = sorted(path.name for path in root.rglob("*.jpg"))
    listed = tmp_path / "train.txt"
    listed.write_text("\n".join(name for name in pictures if name.startswith("exp1")))
    source = ("--set", f"data_load.source={root}")
    assert check("--train", listed, "--json", *source) == 1
    report = json.loads(capsys.readouterr().out)
    assert len(report["leaked_test"]) == 10
    assert sum(total for _, total in report["by_class"].values()) == 10
    assert report["data_matches"] is None


def test_check_lists_of_names_alone_needs_no_data_set(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    train, test = tmp_path / "train.txt", tmp_path / "test.txt"
    train.write_text("01_1_90_crop.jpg\n01_2_45_crop.jpg\n")
    test.write_text("01_3_90_crop.jpg\n01_4_10_crop.jpg\n")
    assert check("--train", train, "--test", test, "--group-by", r"_(\d+)_crop") == 1
    assert "test pictures with a tile-mate in train: 1 (50.0%)" in capsys.readouterr().out
    assert check("--train", train, "--test", test, "--group-by", r"01_(\d)") == 0
    assert capsys.readouterr().out.startswith("no leak")


@pytest.mark.parametrize(
    ("words", "said"),
    [
        ((), "expected a MANIFEST or --train LIST"),
        (("split.json", "--train", "a.txt"), "and not both"),
        (("split.json", "--test", "a.txt"), "--test goes with --train"),
        (("--train", "a.txt", "--copies"), "give --train and --test"),
        (("split.json", "--group-by", "(.)"), "give --train and --test"),
    ],
)
def test_check_words_that_do_not_go_together_are_refused(
    words: tuple[str, ...], said: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert check(*words) == 2
    assert said in capsys.readouterr().err


def test_read_list_below_a_folder_that_cannot_be_listed_is_an_error(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "deep").mkdir()
    (tmp_path / "a.png").touch()
    forbid(monkeypatch, tmp_path / "deep")
    with pytest.raises(DataError, match="deep cannot be listed: Permission denied"):
        read_list(tmp_path)
