"""groups.csv as spreadsheets and hands write it: nothing leaks, and what is refused says why."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from magtiles_seg.dataset.archive import verify
from magtiles_seg.dataset.groups import read_groups
from magtiles_seg.dataset.layouts import name_key
from magtiles_seg.dataset.samples import find_samples
from magtiles_seg.errors import DataError

PLAIN = "image,group\na.png,tile1\nb.png,tile1\nc.png,tile2\n"


def data_set(root: Path, names: str = "abc") -> Path:
    for folder, level in (("images", 120), ("masks", 0)):
        (root / folder).mkdir(parents=True)
        for name in names:
            Image.fromarray(np.full((6, 8), level, np.uint8)).save(root / folder / f"{name}.png")
    return root


def groups_of(root: Path, content: str | bytes) -> list[int]:
    if isinstance(content, str):
        content = content.encode()
    (root / "groups.csv").write_bytes(content)
    return [sample.group for sample in find_samples(root)]


@pytest.mark.parametrize(
    "content",
    [
        PLAIN,
        PLAIN.replace("\n", "\r\n"),
        PLAIN.replace("\n", "\r"),
        b"\xef\xbb\xbf" + PLAIN.encode(),
        PLAIN.replace(",", ";"),
        PLAIN.replace(",", "\t").encode("utf-16"),
        "sep=;\n" + PLAIN.replace(",", ";"),
        PLAIN.replace("image,group", " Image , GROUP"),
        PLAIN.replace("image,group", '"image","group"'),
        'group,note,image\ntile1,x,a\ntile1,,b\ntile2,"y, z",c\n',
        PLAIN + "\n,\n  ,  \n",
        PLAIN.replace("tile1\n", "tile1,,,\n"),
        PLAIN.replace("a.png", "images/a.png").replace("b.png", "C:\\shots\\b.PNG"),
        PLAIN.replace("a.png,tile1", "a.jpg,tile1 ").replace("b.png,", "B,\u00a0"),
        PLAIN.replace("b.png,tile1", "b.png,TILE1\u200b"),
        PLAIN.replace("tile1", "tile-1", 1).replace(",tile1", ",tile\u20131"),
        PLAIN.replace("b.png,tile1", "b.png,'tile1"),
        PLAIN.replace("b.png,tile1", "b.png,\u201ctile1\u201d"),
        PLAIN + "a.png,Tile1\n",
        PLAIN + "gone.png,tile3\n",
    ],
)
def test_groups_csv_spelled_in_any_usual_way_keeps_parts_together(
    tmp_path: Path, content: str | bytes
) -> None:
    assert groups_of(data_set(tmp_path), content) == [0, 0, 1]


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        ("image,group\nä.png,1\n".encode("cp1252"), r"line 2 is not UTF-8 \(byte 0xe4\)"),
        (PLAIN.encode("utf-16-le"), "NUL characters"),
        (b"PK\x03\x04 sheet", "a spreadsheet's own format"),
        ("", "expected the columns image,group; got ''"),
        ("file,tile\n", "expected the columns image,group; got 'file,tile'"),
        ("image,group,group\n", "columns image,group once"),
        (
            PLAIN + "a.png,tile2\n",
            r"line 5: 'a\.png' is of the group 'tile2', by line 2 of 'tile1'",
        ),
        (PLAIN + "images/A.png,tile2\n", "expected one group"),
        (PLAIN.replace("c.png,tile2", "c.png"), r"line 4: no group for 'c\.png'"),
        (PLAIN.replace("tile2", " "), r"line 4: no group for 'c\.png'"),
        (PLAIN.replace("tile2", "\u200b"), r"line 4: no group for 'c\.png'"),
        (PLAIN.replace("c.png", ""), "line 4: no image"),
        (PLAIN.replace("c.png,", "c.png,left,"), "line 4: 3 cells; expected 2"),
        (PLAIN.replace("c.png,tile2", '"c.png,tile2\nc.png,tile2"'), "line 5: no group"),
        (PLAIN.replace("tile2", '"tile\n2"'), "line 5: a line break in a cell"),
        (PLAIN.replace("tile2", '"tile2'), "line 4: unexpected end of data"),
        ("image,group\na,1\nb,1\n", r"no line for the picture c\.png"),
        (
            "image,group\na,1\nb,01\nc,2\n",
            "line 3: the group '01' and '1' of line 2 are one number",
        ),
        ("image,group\na,1.0\nb,1\nc,2\n", "are one number"),
        ("image;group\na;1,50\nb;1.5\nc;2\n", "are one number"),
        ("image,group\na,1e3\nb,1000\nc,2\n", "are one number"),
        ('image,group\na,"1,000"\nb,1000\nc,2\n', "are one number"),
        ("image;group\na;1.000.000\nb;1000000\nc;2\n", "are one number"),
        *(
            (PLAIN.replace("b.png,tile1", f"b.png,{other}"), "separators or leading zeros alone")
            for other in ("tile01", "tile 1", "tile_1", "Tile-001")
        ),
        *(
            (PLAIN.replace("tile2", none), r"line 4: no group for 'c\.png'")
            for none in ("#N/A", "#REF!", "NaN", "''")
        ),
    ],
)
def test_groups_csv_that_may_leak_is_refused_with_its_reason(
    tmp_path: Path, content: str | bytes, reason: str
) -> None:
    with pytest.raises(DataError, match=rf"groups\.csv: .*{reason}"):
        groups_of(data_set(tmp_path), content)


def test_groups_csv_with_groups_that_differ_in_more_keeps_them_apart(tmp_path: Path) -> None:
    content = "image,group\na,1-1\nb,11\nc,1-2\n"
    assert len(set(groups_of(data_set(tmp_path), content))) == 3
    assert len(set(groups_of(tmp_path, "image,group\na,t+\nb,t\nc,t2\n"))) == 3


def test_groups_csv_with_stripped_zeros_in_names_says_which_lines_fit_nothing(
    tmp_path: Path,
) -> None:
    root = tmp_path
    for folder in ("images", "masks"):
        (root / folder).mkdir()
        Image.new("L", (8, 6)).save(root / folder / "001.png")
    with pytest.raises(DataError, match=r"line 2: no picture '1'\n.*no line for the picture 001"):
        groups_of(root, "image,group\n1,left\n")


def test_groups_csv_that_names_a_picture_that_is_gone_is_noted(tmp_path: Path) -> None:
    root = data_set(tmp_path)
    (root / "groups.csv").write_text(PLAIN + "d.png,tile3\n")
    notes: list[str] = []
    assert len(verify(root, note=notes.append)) == 3
    assert notes == [f"{root / 'groups.csv'}: line 5: no picture 'd.png'"]


def test_groups_csv_unicode_forms_of_one_name_are_one_picture_and_one_group(
    tmp_path: Path,
) -> None:
    composed, decomposed = "\u00fc", "u\u0308"
    root = data_set(tmp_path, composed + "b")
    lines = f"image,group\n{decomposed}.png,T{decomposed}r\nb.png,t{composed}r\n"
    assert groups_of(root, lines) == [0, 0]


@pytest.mark.parametrize(
    "name",
    [
        "Groups.csv",
        "group.csv",
        "groups.csv.txt",
        "groups.xlsx",
        "groups (1).csv",
        "images/groups.csv",
    ],
)
def test_groups_file_under_another_name_is_not_passed_over(tmp_path: Path, name: str) -> None:
    (data_set(tmp_path) / name).write_text(PLAIN)
    with pytest.raises(DataError, match=r"not read; expected .*groups\.csv"):
        find_samples(tmp_path)


def test_annotations_beside_pictures_whose_names_start_with_group_are_left_out(
    tmp_path: Path,
) -> None:
    root = data_set(tmp_path)
    for name in ("images/groups_1.json", "images/group7.txt", "groupphoto.txt"):
        (root / name).touch()
    assert len(find_samples(root)) == 3


def test_groups_csv_that_is_a_link_to_nothing_is_no_missing_file(tmp_path: Path) -> None:
    (data_set(tmp_path) / "groups.csv").symlink_to(tmp_path / "nowhere")
    with pytest.raises(DataError, match=r"groups\.csv: .*No such file"):
        find_samples(tmp_path)


@pytest.mark.parametrize("make", [os.mkfifo, Path.mkdir, lambda path: path.symlink_to("/dev/zero")])
def test_groups_csv_that_is_no_file_is_not_waited_for(
    tmp_path: Path, make: Callable[[Path], object]
) -> None:
    make(data_set(tmp_path) / "groups.csv")
    with pytest.raises(DataError, match=r"groups\.csv: no regular file"):
        find_samples(tmp_path)


def test_groups_csv_beside_the_public_layout_is_refused(tmp_path: Path) -> None:
    (tmp_path / "MT_Free" / "Imgs").mkdir(parents=True)
    (tmp_path / "groups.csv").write_text(PLAIN)
    with pytest.raises(DataError, match="not read in the layout 'magnetic-tile'"):
        find_samples(tmp_path)


def test_read_groups_names_with_dots_are_whole_stems(tmp_path: Path) -> None:
    names = ("tile.1.png", "tile.2.png", "tile.png", "tile.png.png")
    pictures = {name_key(Path(name).stem): tmp_path / name for name in names}
    (tmp_path / "groups.csv").write_text(
        "image,group\ntile.1,a\ntile.2.png,b\ntile.png,c\ntile.png.png,d\n"
    )
    groups = read_groups(tmp_path, pictures)
    assert (groups.problems, groups.notes) == ([], [])
    assert groups.of == {"tile.1": 0, "tile.2": 1, "tile": 2, "tile.png": 3}


def test_groups_csv_names_two_spellings_of_one_group_once(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="1 problem:"):
        groups_of(data_set(tmp_path), "image,group\na,t1\nb,t_1\nc,t_1\n")
