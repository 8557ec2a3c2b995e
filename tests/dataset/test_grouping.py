from __future__ import annotations

from pathlib import Path

import cv2
import numpy as np
import pytest

from magtiles_seg import pipeline
from magtiles_seg.config import load_params
from magtiles_seg.dataset.grouping import group_pictures, regrouped
from magtiles_seg.dataset.samples import Sample
from magtiles_seg.errors import ConfigError, DataError


def found(names: list[str], group_by: str) -> dict[str, list[str]]:
    return {group.name: list(group.pictures) for group in group_pictures(names, group_by)}


def test_pattern_groups_names_by_what_its_groups_hold_in_order() -> None:
    names = ["p7_light1.png", "p10_light1.png", "p7_light2.JPG"]
    assert found(names, r"(\w+)_light\d") == {"p7": [names[0], names[2]], "p10": [names[1]]}
    assert found(["exp1_num_42.jpg", "exp2_num_42.jpg"], r"exp\d+_num_(\d+)").keys() == {"42"}


def test_pattern_with_several_groups_joins_what_fits() -> None:
    names = ["01_5_a_crop.jpg", "01_6_a_crop.jpg", "KGT-7_crop.jpg"]
    assert list(found(names, r"^01_\d_(.)_crop|^(KGT-\d)")) == ["a", "KGT-7"]


def test_pattern_without_a_slash_does_not_reach_over_folders_and_one_with_it_does() -> None:
    names = ["light1/p7.png", "light2/p7.png"]
    assert list(found(names, r"(\w+)")) == ["light1/p7", "light2/p7"]
    assert found(names, r"light\d/(.+)") == {"p7": names}
    assert found(["light1\\p7.png", "light2\\p7.png"], r"light\d/(.+)").keys() == {"p7"}


def test_pattern_on_addresses_sees_no_query() -> None:
    names = ["http://host/a/p7_1.png?size=full", "http://host/a/p7_2.png?size=full"]
    assert list(found(names, r"(.+)_\d$")) == ["p7"]


def test_pattern_that_does_not_fit_a_name_names_it() -> None:
    with pytest.raises(DataError, match=r"tells no tile for 2 pictures, such as a\.png, b\.png"):
        group_pictures(["p7_light1.png", "a.png", "b.png"], r"(\w+)_light\d")
    with pytest.raises(DataError, match=r"for 1 picture, such as x\.png"):
        group_pictures(["x.png"], r"x(y?)")


@pytest.mark.parametrize(
    ("pattern", "words"),
    [("(", "no valid pattern: missing"), (r"light\d", "a pattern without a group")],
)
def test_pattern_without_sense_is_a_config_error(pattern: str, words: str) -> None:
    with pytest.raises(ConfigError, match=words):
        group_pictures(["a.png"], pattern)


def test_groups_file_groups_as_it_does_for_a_data_set(tmp_path: Path) -> None:
    path = tmp_path / "groups.csv"
    path.write_text("image;group\nA1.png;Tile 1\na2;tile 1\nb1.png;other\n")
    names = ["x/a1.png", "x/a2.png", "y/b1.png"]
    assert found(names, str(path)) == {"Tile 1": names[:2], "other": names[2:]}


def test_groups_file_that_lacks_a_picture_or_is_none_is_an_error(tmp_path: Path) -> None:
    path = tmp_path / "groups.csv"
    with pytest.raises(FileNotFoundError, match="no groups file"):
        group_pictures(["a.png"], str(path))
    path.write_text("image,group\na.png,1\n")
    with pytest.raises(DataError, match=r"no line for the picture b\.png"):
        group_pictures(["a.png", "b.png"], str(path))
    with pytest.raises(DataError, match=r"x/a\.png and y/a\.png share a name"):
        group_pictures(["x/a.png", "y/a.png"], str(path))


def test_regrouped_samples_have_the_tiles_of_the_pattern() -> None:
    samples = [
        Sample(name, "free", Path(f"images/{name}.png"), None) for name in ("a_1", "b_1", "a_2")
    ]
    assert [sample.group for sample in regrouped(samples, r"(.)_\d")] == [0, 1, 0]


def test_regrouped_samples_of_one_tile_stay_together_over_the_folders_of_classes() -> None:
    samples = [
        Sample(name, kind, Path(f"MT_{kind}/Imgs/{name}.jpg"), None)
        for name, kind in (("a_1", "Crack"), ("b_1", "Free"), ("a_2", "Free"))
    ]
    assert [sample.group for sample in regrouped(samples, r"(.)_\d")] == [0, 1, 0]


def test_pattern_with_a_group_of_that_name_is_named_by_it_alone() -> None:
    names = ["day1_p7_light1.png", "day2_p7_light2.png"]
    assert found(names, r"day(\d)_(?P<group>\w+)_light") == {"p7": names}
    with pytest.raises(DataError, match=r"tells no tile for 1 picture, such as x\.png"):
        found(["p7_1.png", "x.png"], r"(?P<group>p\d)?")


def test_group_pattern_of_the_parameters_groups_the_split_and_refuses_what_it_does_not_fit(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    for part in range(10):
        for light in range(2):
            for folder, level in (("images", 90), ("masks", 255 * (part % 2))):
                path = tmp_path / folder / f"p{part}_{light}.png"
                path.parent.mkdir(exist_ok=True)
                cv2.imwrite(str(path), np.full((40, 40), level, np.uint8))
    common = [f"data_load.source={tmp_path}", "data_load.labels=[background, x]"]
    params = load_params(None, [*common, r"data_split.group_pattern='^(p\d+)_'"])
    assert pipeline.count_tiles(pipeline.load(params), params) == 10
    drawn = pipeline.split(params)
    parts = [{name.split("_")[0] for name in part} for part in (drawn.train, drawn.test)]
    assert len(drawn.test) == 4
    assert not parts[0] & parts[1]
    params = load_params(None, [*common, r"data_split.group_pattern='^(p[1-9])_'"])
    with pytest.raises(DataError, match=r"tells no tile for 2 pictures"):
        pipeline.split(params)
    params = load_params(None, [*common, "data_split.group_pattern='p['"])
    with pytest.raises(ConfigError, match="no valid pattern"):
        pipeline.split(params)


def test_pattern_that_gives_two_tiles_one_name_is_refused_with_both() -> None:
    with pytest.raises(DataError, match=r"two tiles 'a_b_c': that of a-b_c.png and .* a_b-c.png"):
        found(["a-b_c.png", "a_b-c.png"], r"(\w+)-(\w+)")
