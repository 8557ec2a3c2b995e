"""What is wrong with a file of another tool is said, with its name and what was expected."""

from __future__ import annotations

import base64
import json
import re
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
import yaml
from PIL import Image

from magtiles_seg import pipeline
from magtiles_seg.config import load_params
from magtiles_seg.dataset import formats
from magtiles_seg.dataset.archive import fetch, read_summary, verify
from magtiles_seg.dataset.formats.convert import Wanted, format_of, mapped
from magtiles_seg.dataset.formats.pictures import LabelledPicture, Reading, Region
from magtiles_seg.dataset.samples import load_target
from magtiles_seg.errors import ConfigError, DataError
from magtiles_seg.files import encode_png

LABELS = ("background", "dent")
TRIANGLE = [[2, 2], [20, 2], [20, 20]]


def put(path: Path, hw: tuple[int, int] = (40, 50)) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    cv2.imwrite(str(path), np.full(hw, 80, np.uint8))
    return path


def label(path: Path, picture: object, *shapes: dict[str, Any], **more: Any) -> None:  # noqa: ANN401
    path.parent.mkdir(parents=True, exist_ok=True)
    content = {"shapes": list(shapes), "imagePath": picture, "imageData": None, **more}
    path.write_text(json.dumps(content))


def shape(points: object = TRIANGLE, name: str = "dent", kind: str = "polygon") -> dict[str, Any]:
    return {"label": name, "points": points, "shape_type": kind}


@pytest.mark.parametrize(
    ("picture", "drawn", "more", "said"),
    [
        ("b.png", shape(), {}, "picture 'b.png' is missing"),
        ("a.png", shape(), {"imageHeight": 41, "imageWidth": 50}, "50 x 41 px.*is 50 x 40 px"),
        ("a.png", shape(), {"imageHeight": 50, "imageWidth": 40}, "EXIF"),
        ("a.png", shape([["x", 1]]), {}, "shape 0: no points"),
        ("a.png", shape([[1, 2], [3, float("inf")], [4, 5]]), {}, "not finite"),
        ("a.png", {"label": 3}, {}, "expected a text, got 3"),
        ("a.png", shape(kind="mask"), {}, "no mask as PNG"),
        (7, shape(), {}, "expected a file name"),
    ],
)
def test_labelme_file_at_fault_is_named_with_the_reason(
    picture: object,
    drawn: dict[str, Any],
    more: dict[str, Any],
    said: str,
    tmp_path: Path,
) -> None:
    put(tmp_path / "a.png")
    label(tmp_path / "a.json", picture, drawn, **more)
    (problem,) = formats.read("labelme", tmp_path).problems
    assert problem.startswith(str(tmp_path / "a.json"))
    with pytest.raises(DataError, match=said):
        raise DataError(problem)


@pytest.mark.parametrize(
    ("points", "note"),
    [
        ([[1, 1], [5, 5]], "enclose no area"),
        ([[1, 1], [5, 5], [9, 9]], "enclose no area"),
        ([[60, 1], [70, 1], [70, 9]], "outside of the picture"),
        ([[40, 1], [70, 1], [70, 9]], "cut at its border"),
    ],
)
def test_polygon_outside_or_empty_is_noted(
    points: list[list[float]], note: str, tmp_path: Path
) -> None:
    put(tmp_path / "a.png")
    label(tmp_path / "a.json", "a.png", shape(), shape(points))
    found = mapped(formats.read("labelme", tmp_path), Wanted(LABELS))
    assert found.problems == []
    assert note in found.notes.lines()[0]
    assert found.pictures[0].target(LABELS).shape == (40, 50)


def test_path_out_of_the_data_set_is_never_read(tmp_path: Path) -> None:
    secret = put(tmp_path / "secret.png")
    inside = tmp_path / "set"
    label(inside / "a.json", "../secret.png", shape())
    label(inside / "b.json", str(secret), shape())
    found = formats.read("labelme", inside)
    assert found.pictures == []
    assert all("is missing in" in problem for problem in found.problems)
    put(inside / "data" / "secret.png")
    found = formats.read("labelme", inside)
    assert [picture.path for picture in found.pictures] == [inside / "data" / "secret.png"]
    assert "of the picture" in found.problems[0]


def test_two_pictures_that_a_name_may_mean_are_both_named(tmp_path: Path) -> None:
    put(tmp_path / "x" / "a.png"), put(tmp_path / "y" / "a.png")
    label(tmp_path / "a.json", "a.png", shape())
    assert "2 pictures may be 'a.png'" in formats.read("labelme", tmp_path).problems[0]


@pytest.mark.parametrize(
    ("line", "said"),
    [
        ("0 .5 .5 .2 .2", "a box alone"),
        ("0 .1 .1 .2 .2 .3", "5 numbers; expected pairs"),
        ("7 .1 .1 .2 .2 .3 .3", "class 7; expected 0 to 0: dent"),
        ("0 10 10 20 10 20 20", "expected shares of the size"),
        ("dent .1 .1", "expected a class and numbers"),
    ],
)
def test_yolo_line_at_fault_is_named_with_the_reason(line: str, said: str, tmp_path: Path) -> None:
    put(tmp_path / "images" / "a.png")
    (tmp_path / "labels").mkdir()
    (tmp_path / "labels" / "a.txt").write_text(f"\n{line}\n")
    (tmp_path / "labels" / "lost.txt").write_text("")
    (tmp_path / "data.yaml").write_text("names: [dent]")
    assert formats.detect(tmp_path) == ["yolo"]
    problems = formats.read("yolo", tmp_path).problems
    assert said in problems[0]
    assert "a.txt: line 2" in problems[0]
    assert "lost.txt: its picture is missing" in problems[1]


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"category_id": 5}, "category 5 is not listed"),
        ({"image_id": 9}, "of the image 9, which is not listed"),
        ({"segmentation": []}, "a box alone"),
        ({"segmentation": {"size": [40, 50], "counts": [3]}}, "run lengths of 3 px; expected 2000"),
        ({"segmentation": {"size": [40, 51], "counts": "x"}}, "51 x 40 px"),
        ({"segmentation": {"size": [40, 50], "counts": "\u00e9"}}, "no run lengths"),
    ],
)
def test_coco_annotation_at_fault_is_named_with_the_reason(
    change: dict[str, Any], said: str, tmp_path: Path
) -> None:
    put(tmp_path / "a.png")
    drawn = {"id": 1, "image_id": 1, "category_id": 1, "segmentation": [[2, 2, 9, 2, 9, 9]]}
    content = {
        "images": [{"id": 1, "file_name": "a.png", "height": 40, "width": 50}],
        "categories": [{"id": 1, "name": "dent"}],
        "annotations": [{**drawn, **change}],
    }
    (tmp_path / "coco.json").write_text(json.dumps(content))
    assert said in formats.read("coco", tmp_path).problems[0]


def test_label_studio_task_takes_the_ground_truth_and_leaves_a_skipped_one_bare(
    tmp_path: Path,
) -> None:
    def result(name: str) -> list[dict[str, Any]]:
        value = {"points": [[0, 0], [50, 0], [50, 50]], "polygonlabels": [name]}
        size = {"original_width": 50, "original_height": 40}
        return [{"type": "polygonlabels", "value": value, **size}]

    put(tmp_path / "a.png"), put(tmp_path / "b.png")
    first = {"result": result("dent"), "ground_truth": True, "updated_at": "2024"}
    tasks = [
        {
            "data": {"image": "/data/upload/1/1a2b3c4d-a.png"},
            "annotations": [first, {"result": result("other"), "updated_at": "2025"}],
        },
        {
            "data": {"image": "/data/local-files/?d=x/b.png"},
            "annotations": [{"was_cancelled": True}],
        },
    ]
    (tmp_path / "export.json").write_text(json.dumps(tasks))
    found = formats.read("label-studio", tmp_path)
    assert found.problems == []
    assert [(p.id, p.labelled) for p in found.pictures] == [("a", True), ("b", False)]
    assert found.pictures[0].regions[0].label == "dent"


def bsdata(root: Path) -> Path:
    put(root / "data" / "a.jpg"), put(root / "data" / "b.jpg"), put(root / "data" / "c.jpg")
    label(root / "label" / "a.json", "a.jpg", shape(name="Pitting"))
    label(
        root / "label" / "b.json",
        "b.jpg",
        shape(name="blur"),
        shape([[30, 30], [40, 30], [40, 39]], "Pitting"),
    )
    return root


def test_load_converts_a_folder_of_labelme_and_says_what_it_found(tmp_path: Path) -> None:
    source = bsdata(tmp_path / "set")
    wanted = [
        f"data_load.source={source}",
        f"data_load.directory={tmp_path / 'out'}",
        "data_load.labels=[background, pitting]",
        "data_load.class_map=[blur=ignore]",
        "data_load.unlabelled=sound",
    ]
    params = load_params(None, wanted)
    loaded = pipeline.load(params)
    assert loaded.summary is not None
    assert "labelme: 2 labelled pictures" in loaded.summary
    assert "1 picture without a label counts as sound" in loaded.summary
    samples = {sample.id: sample for sample in pipeline.samples_of(params)}
    assert {key: sample.label for key, sample in samples.items()} == {
        "a": "pitting", "b": "pitting", "c": "free",
    }  # fmt: skip
    target = load_target(samples["b"], labels=params.data_load.labels)
    assert sorted(np.unique(target)) == [0, 1, 255]
    assert pipeline.load(params).samples == loaded.samples
    label(source / "label" / "c.json", "c.jpg", shape(name="Pitting"))
    assert pipeline.load(params).samples[2].label == "pitting"


def test_load_refuses_what_it_would_have_to_guess(tmp_path: Path) -> None:
    source = bsdata(tmp_path / "set")
    with pytest.raises(DataError) as raised:
        fetch(str(source), tmp_path / "out", wanted=Wanted(LABELS))
    assert "c.jpg: no label; set data_load.unlabelled" in str(raised.value)
    assert "'Pitting' (2 regions), 'blur' (1 region)" in str(raised.value)
    assert not (tmp_path / "out" / "images").exists()


def test_class_map_renames_merges_drops_and_takes_the_rest(tmp_path: Path) -> None:
    reading = formats.read("labelme", bsdata(tmp_path))
    everything = mapped(reading, Wanted(LABELS, ("*=dent",), "skip"))
    assert everything.problems == []
    assert everything.regions() == {"dent": 3}
    dropped = mapped(reading, Wanted(LABELS, ("pitting=dent", "blur=background"), "skip"))
    assert dropped.regions() == {"dent": 2}
    assert len(dropped.pictures) == 2


@pytest.mark.parametrize(
    ("entries", "said"),
    [("[dent]", "name=label"), ("[a=dent, a=ignore]", "twice"), ("[a=dnt]", "did you mean 'dent'")],
)
def test_class_map_at_fault_is_refused_with_the_parameters(entries: str, said: str) -> None:
    with pytest.raises(ConfigError, match=said):
        load_params(None, ["data_load.labels=[background, dent]", f"data_load.class_map={entries}"])


@pytest.mark.parametrize("name", ["#ff0000", "3", "no", "a: b", "*", "dent, deep"])
def test_parameters_that_are_proposed_for_an_unknown_class_are_yaml_as_they_stand(
    name: str, tmp_path: Path
) -> None:
    drawn = (Region(name, (np.array(TRIANGLE, np.float64),)),)
    picture = LabelledPicture("a", tmp_path / "a.png", 40, 50, drawn)
    (problem,) = mapped(Reading([picture]), Wanted(("background", "scratch"))).problems
    labels = re.search(r"data_load\.labels: (\[.*\]), or what", problem)
    entry = re.search(r"data_load\.class_map: (\[.*\]) \(", problem)
    assert labels
    assert yaml.safe_load(labels[1]) == ["background", name]
    assert entry
    assert yaml.safe_load(entry[1]) == [f"{name}=…"]


def test_colours_and_values_of_masks_become_classes(tmp_path: Path) -> None:
    put(tmp_path / "set" / "img" / "a.png"), put(tmp_path / "set" / "img" / "b.png")
    colours = np.zeros((40, 50, 3), np.uint8)
    colours[5:9, 5:9] = (0, 0, 255)
    colours[20:, 20:] = (255, 255, 255)
    (tmp_path / "set" / "mask").mkdir()
    cv2.imwrite(str(tmp_path / "set" / "mask" / "a.png"), colours)
    assert format_of(tmp_path / "set", Wanted(LABELS)) == "masks"
    wanted = Wanted(LABELS, ("#ff0000=dent", "#ffffff=ignore"), "sound")
    root = fetch(str(tmp_path / "set"), tmp_path / "out", wanted=wanted)
    first, second = verify(root, labels=LABELS)
    target = load_target(first, labels=LABELS)
    assert (target == 1).sum() == 16
    assert (target == 255).sum() == 600
    assert second.label == "free"
    assert "masks: 1 labelled picture" in (read_summary(root) or "")


def test_groups_of_the_source_are_kept(tmp_path: Path) -> None:
    source = bsdata(tmp_path / "set")
    (source / "groups.csv").write_text("image,group\na.jpg,1\nb.jpg,1\nc.jpg,2\n")
    wanted = Wanted(("background", "pitting"), ("blur=ignore",), "sound")
    samples = verify(fetch(str(source), tmp_path / "out", wanted=wanted), labels=wanted.labels)
    assert [sample.group for sample in samples] == [0, 0, 1]


def test_mvtec_folders_name_a_mask_that_is_missing(tmp_path: Path) -> None:
    for name in ("train/good/000", "test/good/000", "test/dent/000", "test/dent/001"):
        put(tmp_path / f"{name}.png")
    put(tmp_path / "ground_truth" / "dent" / "000_mask.png")
    assert formats.detect(tmp_path) == ["mvtec"]
    found = formats.read("mvtec", tmp_path)
    assert "001_mask.png: mask is missing" in found.problems[0]
    assert sorted(picture.id for picture in found.pictures) == [
        "test_dent_000", "test_good_000", "train_good_000",
    ]  # fmt: skip


def one_of(tmp_path: Path, name: str, files: dict[str, bytes]) -> formats.Reading:
    """Read a data set of one picture of 50 x 40 px and some files."""
    (tmp_path / "images").mkdir()
    Image.new("L", (50, 40)).save(tmp_path / "images" / "a.png")
    for file, content in files.items():
        path = tmp_path / file
        path.parent.mkdir(exist_ok=True)
        path.write_bytes(content)
    return formats.read(name, tmp_path)


def coco_file(drawn: object, **change: object) -> bytes:
    annotation = {"id": 1, "image_id": 1, "category_id": 1, "segmentation": drawn, **change}
    content = {
        "images": [{"id": 1, "file_name": "a.png", "height": 40, "width": 50}],
        "categories": [{"id": 1, "name": "dent"}],
        "annotations": [annotation],
    }
    return json.dumps(content).encode()


SQUARE = [[1, 1, 20, 1, 20, 20, 1, 20]]


@pytest.mark.parametrize(
    ("drawn", "change", "said"),
    [
        (SQUARE, {"category_id": [1]}, r"category_id: expected .*, got \[1\]"),
        (SQUARE, {"image_id": {"a": 1}}, "image_id: expected .*, got {'a': 1}"),
        ([[10**400, 1, 20, 1, 20, 20]], {}, "no points of a polygon"),
        ({"size": 5, "counts": [2000]}, {}, "size: expected a list, got 5"),
        ({"size": [40], "counts": [2000]}, {}, r"size \(40,\); expected height and width"),
        ({"size": [40, 50], "counts": [2**62] * 4 + [2000]}, {}, "px; expected 2000"),
        ({"size": [40, 50], "counts": [2**70]}, {}, "a run of 1.18059e"),
        ({"size": [40, 50], "counts": [1000.5, 999.5]}, {}, "expected whole numbers, got 1000.5"),
        ([[1, 1, 20, 1, 20, 20, 1]], {}, "7 numbers; expected pairs of x and y"),
        ({"size": ["40", "50"], "counts": [2000]}, {}, r"size \('40', '50'\); expected height"),
        ({"size": [40, 50], "counts": "oooooooooooo?"}, {}, "no run lengths in COCO's form"),
    ],
)
def test_coco_value_that_is_no_id_size_or_run_is_named(
    drawn: object, change: dict[str, object], said: str, tmp_path: Path
) -> None:
    (problem,) = one_of(tmp_path, "coco", {"a.json": coco_file(drawn, **change)}).problems
    assert re.search(rf"a\.json: annotation.*{said}", problem)


@pytest.mark.parametrize("own", [1, 1.0])
def test_coco_ids_that_a_table_made_decimal_are_those_numbers(own: float, tmp_path: Path) -> None:
    content = json.loads(coco_file({"size": [40.0, 50.0], "counts": [1900.0, 100.0]}))
    content["categories"][0]["id"] = content["images"][0]["id"] = own
    content["annotations"][0] |= {"category_id": 1.0, "image_id": 1.0}
    found = one_of(tmp_path, "coco", {"a.json": json.dumps(content).encode()})
    assert [[region.label for region in one.regions] for one in found.pictures] == [["dent"]]


MASK = b'<mask label="dent" left="0" top="0" width="%s" height="1" rle="%s"/>'


@pytest.mark.parametrize(
    ("inside", "said"),
    [
        (MASK % (b"20000000000", b"0,20000000000"), "expected at most the picture's 50 x 40"),
        (MASK % (b"9", b"9" * 30), "expected numbers"),
        (MASK % (b"9", b"4611686018427387904," * 4 + b"9"), "run lengths are not of 9 x 1 px"),
        (b'<polygon label="dent" z_order="top" points="1,1;9,1;9,9"/>', "z_order is 'top'"),
    ],
)
def test_cvat_shape_that_would_fill_the_memory_or_is_no_number_is_named(
    inside: bytes, said: str, tmp_path: Path
) -> None:
    text = b'<annotations><image name="a.png" width="50" height="40">%s</image></annotations>'
    (problem,) = one_of(tmp_path, "cvat", {"a.xml": text % inside}).problems
    assert said in problem


def test_cvat_file_of_an_unknown_encoding_is_named_as_no_label(tmp_path: Path) -> None:
    text = b'<?xml version="1.0" encoding="nonsense"?><annotations/>'
    (problem,) = one_of(tmp_path, "cvat", {"a.xml": text}).problems
    assert "a.xml: no label of the format 'cvat'" in problem


@pytest.mark.parametrize(
    ("names", "said"),
    [
        ("names: {999999999: dent}", "names: 999999999: str; expected a number from 0 to 9999"),
        ("names: {-1: dent}", "names: -1: str; expected"),
        ("a: &a [x]\nnames: [*a]", "names: 0: list; expected"),
    ],
)
def test_yolo_names_that_would_fill_the_memory_are_refused(
    names: str, said: str, tmp_path: Path
) -> None:
    text = b"0 .1 .1 .2 .2 .3 .1\n"
    files = {"data.yaml": names.encode(), "labels/a.txt": text}
    assert said in one_of(tmp_path, "yolo", files).problems[0]


@pytest.mark.parametrize(
    ("names", "label"),
    [
        ("names: [yes, no]", "no"),  # to YAML these are true and false
        ("names: [01, 02]", "02"),
        ("names: {'0': a, '1': b}", "b"),
        ("names:\n  1: ~", "~"),
        ("names: {0: a, 1: }", "1"),
    ],
)
def test_yolo_names_are_as_they_are_written(names: str, label: str, tmp_path: Path) -> None:
    files = {"data.yaml": names.encode(), "labels/a.txt": b"1 .1 .1 .2 .2 .3 .1\n"}
    assert one_of(tmp_path, "yolo", files).pictures[0].regions[0].label == label


def test_yolo_blank_line_at_the_end_of_the_classes_is_no_class(tmp_path: Path) -> None:
    files = {"classes.txt": b"a\r\nb\r\n", "labels/a.txt": b"2 .1 .1 .2 .2 .3 .1\n"}
    found = one_of(tmp_path, "yolo", files)
    assert "class 2; expected 0 to 1: a, b" in found.problems[0]


def test_yolo_empty_names_are_as_none(tmp_path: Path) -> None:
    files = {"data.yaml": b"names: {}", "labels/a.txt": b"0 .1 .1 .2 .2 .3 .1\n"}
    found = one_of(tmp_path, "yolo", files)
    assert not found.problems
    assert found.pictures[0].regions[0].label == "0"


@pytest.mark.parametrize(
    ("name", "files"),
    [
        ("yolo", {"classes.txt": "Schäden".encode("latin-1"), "labels/a.txt": b""}),
        (
            "voc",
            {"labelmap.txt": "Schäden:1,2,3::".encode("latin-1"), "SegmentationClass/a.png": b""},
        ),
        ("huggingface", {"metadata.csv": "file_name,mask\nä.png,".encode("latin-1")}),
        ("labelme", {"a.json": '{"shapes": "ä"}'.encode("latin-1")}),
    ],
)
def test_text_in_another_encoding_is_named_once(
    name: str, files: dict[str, bytes], tmp_path: Path
) -> None:
    problems = one_of(tmp_path, name, files).problems
    said = [problem for problem in problems if "no text in UTF-8" in problem]
    assert len(said) == 1
    assert said[0].count(str(tmp_path)) == 1


def test_metadata_of_a_row_too_long_or_of_two_lines_is_read(tmp_path: Path) -> None:
    text = b'file_name,note,mask_file_name\nimages/a.png,"two\nlines",,more\n'
    found = one_of(tmp_path, "huggingface", {"metadata.csv": text})
    assert not found.problems
    assert [one.id for one in found.pictures] == ["a"]


def test_metadata_without_a_column_of_masks_whose_row_is_too_long_is_named(tmp_path: Path) -> None:
    text = b"file_name\nimages/a.png,more\n"
    (problem,) = one_of(tmp_path, "huggingface", {"metadata.csv": text}).problems
    assert "no column of masks among None, file_name" in problem


def test_metadata_line_with_a_line_separator_in_a_text_is_one_line(tmp_path: Path) -> None:
    line = '{"file_name": "images/a.png", "text": "x\u2028y", "mask": null}\n'
    found = one_of(tmp_path, "huggingface", {"metadata.jsonl": line.encode()})
    assert not found.problems


def test_label_studio_result_that_is_no_list_is_named(tmp_path: Path) -> None:
    tasks = [{"data": {"image": "?d=images/a.png"}, "annotations": [{"result": 7}]}]
    (problem,) = one_of(tmp_path, "label-studio", {"t.json": json.dumps(tasks).encode()}).problems
    assert "result: expected a list, got 7" in problem


def test_labelme_mask_at_infinity_is_named(tmp_path: Path) -> None:
    png = base64.b64encode(encode_png(np.full((2, 2), 255, np.uint8))).decode()
    drawn = {"label": "dent", "shape_type": "mask", "mask": png, "points": [[float("inf"), 0]]}
    content = {"shapes": [drawn], "imagePath": "images/a.png"}
    (problem,) = one_of(tmp_path, "labelme", {"a.json": json.dumps(content).encode()}).problems
    assert "no corner of the mask" in problem
