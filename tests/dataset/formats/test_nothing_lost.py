"""What somebody drew is read or refused, never left out unsaid; what is written is whole."""

from __future__ import annotations

import base64
import json
import os
from dataclasses import replace
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
from folders import forbid

from magtiles_seg import cli
from magtiles_seg.dataset import formats
from magtiles_seg.dataset.formats.convert import Wanted, mapped
from magtiles_seg.dataset.formats.labelstudio import encode_brush
from magtiles_seg.dataset.formats.pictures import LabelledPicture, Reading, Region
from magtiles_seg.errors import DataError
from magtiles_seg.files import encode_png

LABELS = ("background", "dent")
BOX = [[10, 10], [40, 10], [40, 30], [10, 30]]


def put(path: Path, value: int = 80) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    cv2.imwrite(str(path), np.full((40, 50), value, np.uint8))
    return path


def labelme(folder: Path, kind: str, points: object = BOX) -> Reading:
    put(folder / "a.png")
    drawn = {"label": "dent", "shape_type": kind, "points": points}
    (folder / "a.json").write_text(json.dumps({"imagePath": "a.png", "shapes": [drawn]}))
    return formats.read("labelme", folder)


def area(reading: Reading) -> int:
    (picture,) = reading.pictures
    return int(np.count_nonzero(picture.target(("background", "dent"))))


@pytest.mark.parametrize("kind", ["rectangle", "rotation", "oriented_rectangle", "quadrilateral"])
def test_labelme_box_of_four_corners_is_that_area(kind: str, tmp_path: Path) -> None:
    assert area(labelme(tmp_path, kind)) == 30 * 20


def test_labelme_shape_of_an_unknown_kind_is_refused(tmp_path: Path) -> None:
    (problem,) = [p for p in labelme(tmp_path, "cloud").problems if "shape" in p]
    assert "'cloud' is not read; expected polygons" in problem


def test_labelme_box_of_three_corners_is_refused(tmp_path: Path) -> None:
    assert "of two points was expected" in labelme(tmp_path, "rectangle", BOX[:3]).problems[0]


@pytest.mark.parametrize(
    ("kind", "value", "said"),
    [
        ("polygon", {"points": BOX}, "drawn as 'polygon', apart from its class"),
        ("labels", {"x": 1, "y": 1, "width": 9, "height": 9, "labels": ["dent"]}, "apart from"),
        ("bitmasklabels", {"imageDataURL": "data:", "bitmasklabels": ["dent"]}, "are not read"),
    ],
)
def test_label_studio_region_that_is_not_read_is_refused(
    kind: str, value: dict[str, Any], said: str, tmp_path: Path
) -> None:
    put(tmp_path / "a.png")
    size = {"original_width": 50, "original_height": 40}
    tasks = [
        {
            "data": {"image": "?d=a.png"},
            "annotations": [{"result": [{**size, "type": kind, "value": value}]}],
        }
    ]
    (tmp_path / "t.json").write_text(json.dumps(tasks))
    assert any(said in problem for problem in formats.read("label-studio", tmp_path).problems)


def test_region_without_area_beside_another_is_left_out_with_a_note(tmp_path: Path) -> None:
    put(tmp_path / "a.png")
    shapes = [{"label": "dent", "shape_type": k, "points": BOX} for k in ("polygon", "linestrip")]
    content = {"imagePath": "a.png", "shapes": shapes}
    (tmp_path / "a.json").write_text(json.dumps(content))
    found = mapped(formats.read("labelme", tmp_path), Wanted(("background", "dent")))
    assert not found.problems
    assert found.notes.lines() == [
        f"{tmp_path / 'a.json'}: shape 1: left out, for a linestrip has no area"
    ]
    assert area(found) == 30 * 20


def json_of(content: object) -> bytes:
    return json.dumps(content).encode()


def png_of(value: int) -> bytes:
    return encode_png(np.full((40, 50), value, np.uint8))


def labelme_file(**shape: object) -> dict[str, bytes]:
    return {"a.json": json_of({"imagePath": "a.png", "shapes": [{"label": "dent", **shape}]})}


def coco_file(segmentation: object) -> dict[str, bytes]:
    drawn = {"id": 7, "image_id": 1, "category_id": 1, "segmentation": segmentation}
    content = {
        "images": [{"id": 1, "file_name": "a.png"}],
        "categories": [{"id": 1, "name": "dent"}],
        "annotations": [drawn],
    }
    return {"c.json": json_of(content)}


def cvat_file(shape: str) -> dict[str, bytes]:
    image = f'<image name="a.png" width="50" height="40">{shape}</image>'
    return {"a.xml": f"<annotations>{image}</annotations>".encode()}


def task_file(kind: str, **value: object) -> dict[str, bytes]:
    item = {
        "original_width": 50,
        "original_height": 40,
        "type": kind,
        "value": {kind: ["dent"], **value},
    }
    return {
        "t.json": json_of([{"data": {"image": "?d=a.png"}, "annotations": [{"result": [item]}]}])
    }


NO_PIXELS = np.zeros((40, 50), np.bool_)
OUTSIDE = [[60, 1], [70, 1], [70, 9]]
EMPTY_PNG = base64.b64encode(encode_png(np.zeros((2, 2), np.uint8))).decode()


@pytest.mark.parametrize(
    ("name", "files", "said"),
    [
        ("labelme", labelme_file(points=BOX[:2]), "a.json: shape 0: its points enclose no area"),
        ("labelme", labelme_file(points=OUTSIDE), "shape 0: it lies outside of the picture"),
        ("labelme", labelme_file(points=BOX[:1], shape_type="point"), "a point has no area"),
        ("labelme", labelme_file(points=[[1, 1], [2, 2]], shape_type="mask", mask=EMPTY_PNG),
         "a region of the class 'dent': it marks no pixel"),
        ("coco", coco_file([[1, 1, 20, 20]]), "annotation 7 of a.png: its points enclose no area"),
        ("coco", coco_file({"size": [40, 50], "counts": [2000]}), "it marks no pixel"),
        ("yolo", {"a.txt": b"0 .1 .1 .2 .2 .3 .3\n"}, "a.txt: line 1: its points enclose no area"),
        ("cvat", cvat_file('<polyline label="dent" points="0,0;5,5"/>'), "a polyline has no area"),
        ("cvat", cvat_file('<mask label="dent" rle="4" left="0" top="0" width="2" height="2"/>'),
         "it marks no pixel"),
        ("label-studio", task_file("keypointlabels", x=1, y=1), "keypointlabels have no area"),
        ("label-studio", task_file("brushlabels", rle=encode_brush(NO_PIXELS)),
         "it marks no pixel"),
        ("mvtec", {"test/dent/b.png": png_of(80), "ground_truth/dent/b_mask.png": png_of(0)},
         "b_mask.png: no pixel of it is 128 or brighter"),
    ],
)  # fmt: skip
def test_picture_whose_only_defect_marks_no_pixel_never_counts_as_sound(
    name: str, files: dict[str, bytes], said: str, tmp_path: Path
) -> None:
    put(tmp_path / "a.png")
    for file, content in files.items():
        (tmp_path / file).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / file).write_bytes(content)
    wanted = Wanted(("background", "dent"), unlabelled="skip")
    found = mapped(formats.read(name, tmp_path), wanted)
    assert found.pictures == []
    (problem,) = found.problems
    assert f"{said}, and without it the picture would count as sound" in problem
    sound = replace(wanted, class_map=("dent=background", "0=background"))
    found = mapped(formats.read(name, tmp_path), sound)
    assert found.problems == []
    assert [picture.regions for picture in found.pictures] == [()]


def test_yolo_classes_without_names_are_no_indices_of_labels(tmp_path: Path) -> None:
    put(tmp_path / "a.png")
    (tmp_path / "a.txt").write_text("0 .1 .1 .5 .1 .5 .5\n1 .1 .1 .5 .1 .5 .5\n")
    wanted = Wanted(("background", "dent", "crack"))
    (problem,) = mapped(formats.read("yolo", tmp_path), wanted).problems
    assert "the classes '0' (1 region), '1' (1 region) are none of" in problem
    named = replace(wanted, class_map=("0=dent", "1=crack"))
    assert mapped(formats.read("yolo", tmp_path), named).regions() == {"dent": 1, "crack": 1}


def test_mask_that_cannot_be_read_in_full_is_named_and_gives_no_colours(tmp_path: Path) -> None:
    classes = np.zeros((40, 50), np.uint16)
    classes[:9], classes[20:] = 300, 400  # at 8 bits both would be white
    colours = np.zeros((40, 50, 3), np.uint16)
    colours[:9] = 3  # at 8 bits black
    for name, mask in (("a", classes), ("b", colours)):
        put(tmp_path / "images" / f"{name}.png")
        (tmp_path / "masks").mkdir(exist_ok=True)
        cv2.imwrite(str(tmp_path / "masks" / f"{name}.png"), mask)
    put(tmp_path / "images" / "c.png")
    cv2.imwritemulti(str(tmp_path / "masks" / "c.tif"), [np.zeros((40, 50), np.uint8)] * 2)
    said = formats.read("masks", tmp_path).problems
    assert "a.png' is a 16-bit mask with the value 400" in said[0]
    assert "b.png' is a mask of 16-bit colour" in said[1]
    assert "c.tif' holds several frames or pages" in said[2]


def test_grey_mask_without_a_bright_pixel_never_counts_as_sound(tmp_path: Path) -> None:
    put(tmp_path / "images/a.png"), put(tmp_path / "masks/a.png")
    cv2.imwrite(str(tmp_path / "masks/a.png"), np.tile(np.arange(50, dtype=np.uint8), (40, 1)))
    found = mapped(formats.read("masks", tmp_path), Wanted(("background", "dent")))
    (problem,) = found.problems
    assert "masks/a.png: no pixel of it is 128 or brighter" in problem


@pytest.mark.parametrize(
    ("inside", "said"),
    [
        ('<cuboid label="dent" xtl1="1"/>', "cuboid 0: not read"),
        ('<polygon points="1,1;20,1;20,20"/>', "polygon 0: has no label"),
    ],
)
def test_cvat_shape_that_is_not_read_or_has_no_class_is_refused(
    inside: str, said: str, tmp_path: Path
) -> None:
    put(tmp_path / "a.png")
    image = f'<image name="a.png" width="50" height="40"><tag label="x"/>{inside}</image>'
    (tmp_path / "a.xml").write_text(f"<annotations>{image}</annotations>")
    assert any(said in problem for problem in formats.read("cvat", tmp_path).problems)


def coco(folder: Path, names: list[str], classes: list[str]) -> Path:
    """Write a COCO set of a region of each class in turn, on the pictures of these names."""
    for name in names:
        put(folder / name)
    points = [value for point in BOX for value in point]
    content = {
        "images": [{"id": number, "file_name": name} for number, name in enumerate(names)],
        "categories": [{"id": number, "name": name} for number, name in enumerate(classes)],
        "annotations": [
            {"id": n, "image_id": n, "category_id": n % len(classes), "segmentation": [points]}
            for n in range(len(names))
        ],
    }
    (folder / "c.json").write_text(json.dumps(content))
    return folder


def test_coco_picture_that_two_images_name_is_refused_with_both(tmp_path: Path) -> None:
    found = formats.read("coco", coco(tmp_path, ["a.png", "b.png", "a.png"], ["dent"]))
    (problem,) = found.problems
    assert "image 2 is the picture" in problem
    assert "named already" in problem


def test_cvat_picture_that_two_images_name_is_refused(tmp_path: Path) -> None:
    images = "".join(
        f'<image id="{number}" name="{put(tmp_path / name).name}" width="50" height="40"/>'
        for number, name in enumerate(["a.png", "b.png", "a.png"])
    )
    (tmp_path / "a.xml").write_text(f"<annotations>{images}</annotations>")
    (problem,) = formats.read("cvat", tmp_path).problems
    assert "image 2 is the picture" in problem


@pytest.mark.parametrize(
    ("name", "files", "said"),
    [
        ("masks", ("images/a.png", "masks/a.png", "masks/a.bmp"), "a second mask"),
        ("masks", ("images/a.png", "masks/a.png", "masks/a_mask.png"), "two masks"),
        ("masks", ("images/a.png", "masks/a.png", "masks/b.png"), "its picture is missing"),
        ("voc", ("JPEGImages/a.png", "SegmentationClass/a.png", "SegmentationClass/a.bmp"),
         "a second mask"),
        ("mvtec", ("test/dent/a.png", "ground_truth/dent/a.png", "ground_truth/dent/a_mask.png"),
         "a second mask"),
    ],
)  # fmt: skip
def test_mask_that_would_not_be_used_is_named(
    name: str, files: tuple[str, ...], said: str, tmp_path: Path
) -> None:
    for file in files:
        put(tmp_path / file, value=1)
    found = formats.read(name, tmp_path)
    assert any(said in problem for problem in found.problems)
    assert len(found.pictures) <= 1


def convert(source: Path, out: Path, to: str) -> int:
    return cli.main(["data", "convert", str(source), str(out), "--to", to])


@pytest.mark.parametrize("name", ["../../outside", "a/b", "..", "good", "OK"])
def test_class_that_is_no_name_of_a_folder_never_leaves_the_folder(
    name: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    source = coco(tmp_path / "source", ["a.png", "b.png"], ["dent", name])
    before = sorted(tmp_path.rglob("*"))
    assert convert(source, tmp_path / "deep" / "out", "mvtec") == 2
    assert repr(name) in capsys.readouterr().err
    assert [path for path in sorted(tmp_path.rglob("*")) if path.is_file()] == [
        path for path in before if path.is_file()
    ]


@pytest.mark.parametrize("name", ["a:b", "#dent"])
def test_class_that_the_labelmap_cannot_hold_is_refused(
    name: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert convert(coco(tmp_path / "in", ["a.png"], [name]), tmp_path / "out", "voc") == 2
    assert "VOC's labelmap cannot hold" in capsys.readouterr().err


@pytest.mark.parametrize("classes", [["Dent", "dent"], [" dent"], ["de\x01nt"], ["de\nnt"], [""]])
def test_classes_that_no_data_set_of_ours_may_have_are_refused(
    classes: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    source = coco(tmp_path / "in", ["a.png", "b.png"], classes)
    assert convert(source, tmp_path / "out", "cvat") == 2
    assert "class names: expected names" in capsys.readouterr().err


def test_class_that_is_the_background_is_no_class(tmp_path: Path) -> None:
    source = coco(tmp_path / "in", ["a.png", "b.png"], ["dent", "Background"])
    assert convert(source, tmp_path / "out", "coco") == 0
    content = json.loads((tmp_path / "out/annotations.json").read_text())
    assert [one["name"] for one in content["categories"]] == ["dent"]
    assert len(content["annotations"]) == 1


def test_format_that_fails_midway_leaves_no_part_of_a_data_set(tmp_path: Path) -> None:
    sound = LabelledPicture("a", put(tmp_path / "a.png"), 40, 50)
    box = (np.array(BOX, np.float64),)
    both = (Region("dent", box), Region("crack", (box[0] / 2,)))
    pictures = [sound, LabelledPicture("b", put(tmp_path / "b.png"), 40, 50, both)]
    out = tmp_path / "out"
    with pytest.raises(DataError, match="one class a picture"):
        formats.write("mvtec", pictures, out, ("background", "dent", "crack"))
    assert list(out.iterdir()) == []
    assert formats.write("coco", pictures, out, ("background", "dent", "crack")).is_file()


@pytest.mark.parametrize("name", ["b.png", "b.json"])
def test_file_that_would_be_waited_for_or_is_not_there_is_refused(
    name: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    source = coco(tmp_path / "in", ["a.png"], ["dent"])
    (source / "other").symlink_to("/nowhere")  # nothing that is read
    assert convert(source, tmp_path / "first", "coco") == 0
    for make in (os.mkfifo, lambda path: path.symlink_to("/nowhere")):
        make(source / name)
        assert convert(source, tmp_path / "out", "coco") == 2
        assert f"{name}: no regular file" in capsys.readouterr().err
        (source / name).unlink()


def test_linked_folder_is_read_once_and_circles_end(tmp_path: Path) -> None:
    root = tmp_path / "set"
    for folder in ("elsewhere", "set/images"):
        (tmp_path / folder).mkdir(parents=True)
    (root / "images/more").symlink_to(tmp_path / "elsewhere")
    (root / "again").symlink_to(root / "images")
    (tmp_path / "elsewhere/back").symlink_to(tmp_path)
    found = formats.read("coco", coco(root, ["images/more/a.png", "images/b.png"], ["dent"]))
    assert not found.problems
    paths = sorted(picture.path.relative_to(root).as_posix() for picture in found.pictures)
    assert paths == ["images/b.png", "images/more/a.png"]


def test_folder_without_permission_is_refused_by_name(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    source = coco(tmp_path / "in", ["a.png"], ["dent"])
    for name in ("lost+found", "closed"):
        (source / name).mkdir()
        forbid(monkeypatch, source / name)
    assert convert(source, tmp_path / "out", "coco") == 2
    said = capsys.readouterr().err
    assert "closed: Permission denied" in said
    assert "lost+found" not in said
    with pytest.raises(DataError, match="closed cannot be listed: Permission denied"):
        formats.read("coco", source)
    (source / "closed").rmdir()
    assert convert(source, tmp_path / "out", "coco") == 0


@pytest.mark.parametrize(("name", "pictures", "masks"), [
    ("masks", "images", "masks"), ("voc", "JPEGImages", "SegmentationClass"),
])  # fmt: skip
@pytest.mark.parametrize("suffix", [".jpg", ".gif", ".npy"])
def test_picture_whose_mask_is_of_an_unread_format_is_not_without_a_label(
    name: str, pictures: str, masks: str, suffix: str, tmp_path: Path
) -> None:
    for stem in ("a", "b"):
        put(tmp_path / pictures / f"{stem}.png")
    put(tmp_path / masks / "a.png", 0)
    (tmp_path / masks / f"b{suffix}").write_bytes(b"a mask")
    (tmp_path / masks / f"a{suffix}").write_bytes(b"a preview of the mask beside it")
    (problem,) = formats.read(name, tmp_path).problems
    assert f"b.png: mask is missing; {tmp_path / masks / f'b{suffix}'} is not read" in problem


def test_polygon_in_shares_of_the_size_is_refused_where_px_are_expected(tmp_path: Path) -> None:
    shares = [[0.2, 0.2], [0.6, 0.2], [0.6, 0.4]]
    assert any("shares of the picture" in p for p in labelme(tmp_path, "polygon", shares).problems)
    first_pixel = [[0, 0], [1, 0], [1, 1], [0, 1]]
    assert area(labelme(tmp_path / "whole", "polygon", first_pixel)) == 1


def test_voc_masks_of_255_alone_are_not_all_ignored_unsaid(tmp_path: Path) -> None:
    put(tmp_path / "JPEGImages" / "a.png")
    put(tmp_path / "SegmentationClass" / "a.png", 255)
    (problem,) = formats.read("voc", tmp_path).problems
    assert "no mask holds anything but 255" in problem
    (tmp_path / "labelmap.txt").write_text("background:0,0,0::\ndent:255,255,255::\n")
    assert area(formats.read("voc", tmp_path)) == 40 * 50


@pytest.mark.parametrize("suffix", [".jpg", ".gif"])
def test_masks_that_are_all_of_an_unread_format_are_told_as_such(
    suffix: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    put(tmp_path / "set" / "imgs" / "a.png")
    put(tmp_path / "set" / "labels" / "a.png", 0).rename(tmp_path / f"set/labels/a{suffix}")
    words = [f"data_load.source={tmp_path / 'set'}", f"data_load.directory={tmp_path / 'out'}"]
    words += ["data_load.labels=[background, dent]", "data_load.checksums=null"]
    sets = [part for word in words for part in ("--set", word)]
    assert cli.main(["data", "load", *sets]) == 2
    assert f"mask is missing; {tmp_path / f'set/labels/a{suffix}'}" in capsys.readouterr().err


@pytest.mark.parametrize("name", ["labelme", "coco", "label-studio", "cvat"])
def test_labels_of_another_format_than_the_one_asked_for_are_no_sound_pictures(
    name: str, tmp_path: Path
) -> None:
    put(tmp_path / "a.png")
    assert not formats.read(name, tmp_path).problems
    (tmp_path / "a.json").write_text('[{"image": "a.png", "label": []}]')  # JSON-MIN
    (tmp_path / "a.xml").write_text("<annotation/>")  # Pascal VOC's boxes
    (problem,) = formats.read(name, tmp_path).problems
    assert f"no label of the format {name!r}" in problem


def test_tasks_that_nobody_has_labelled_yet_are_of_their_format_all_the_same(
    tmp_path: Path,
) -> None:
    put(tmp_path / "a.png")
    (tmp_path / "other.json").write_text("{}")
    (tmp_path / "t.json").write_text('[{"data": {"image": "a.png"}, "predictions": []}]')
    reading = formats.read("label-studio", tmp_path)
    assert reading.problems == []
    assert [picture.labelled for picture in reading.pictures] == [False]


def test_voc_class_that_is_black_is_no_background(tmp_path: Path) -> None:
    put(tmp_path / "JPEGImages" / "a.png")
    put(tmp_path / "SegmentationClass" / "a.png", 0)
    labelmap = tmp_path / "labelmap.txt"
    for black, regions in (("dent", {"dent": 1}), ("background", {}), ("_background_", {})):
        labelmap.write_text(f"{black}:0,0,0::\nother:255,255,255::\n")
        assert formats.read("voc", tmp_path).regions() == regions


@pytest.mark.parametrize("mark", [";", "\t"])
def test_metadata_of_a_spreadsheet_is_read_by_its_separator(mark: str, tmp_path: Path) -> None:
    put(tmp_path / "a.png"), put(tmp_path / "m.png", 255)
    rows = (("file_name", "mask_file_name"), ("a.png", "m.png"))
    (tmp_path / "metadata.csv").write_text("\n".join(mark.join(row) for row in rows))
    assert formats.read("huggingface", tmp_path).regions() == {"255": 1}


@pytest.mark.parametrize("masks", ["masks", "SegmentationClass"])
def test_mask_of_a_damaged_picture_does_not_lack_it(masks: str, tmp_path: Path) -> None:
    name, folder = ("masks", "images") if masks == "masks" else ("voc", "JPEGImages")
    put(tmp_path / masks / "a.png", 0)
    (tmp_path / folder).mkdir()
    (tmp_path / folder / "a.png").write_bytes(b"")
    (problem,) = formats.read(name, tmp_path).problems
    assert problem.startswith(f"picture {tmp_path / folder / 'a.png'} is empty")


CHOICE = {"type": "choices", "value": {"choices": ["Dent"]}}


@pytest.mark.parametrize(
    ("name", "files"),
    [
        ("cvat", cvat_file('<tag label="Dent"/>')),
        ("label-studio", {"t.json": json_of(
            [{"data": {"image": "a.png"}, "annotations": [{"result": [CHOICE]}]}]
        )}),
        ("labelme", {"a.json": json_of(
            {"imagePath": "a.png", "shapes": [], "flags": {"Dent": True, "other": False}}
        )}),
    ],
)  # fmt: skip
def test_picture_that_is_defective_as_a_whole_never_counts_as_sound(
    name: str, files: dict[str, bytes], tmp_path: Path
) -> None:
    put(tmp_path / "a.png")
    for path, content in files.items():
        (tmp_path / path).write_bytes(content)
    reading = formats.read(name, tmp_path)
    (problem,) = mapped(reading, Wanted(LABELS)).problems
    assert "a.png: is 'Dent' as a whole, but nothing is drawn on it" in problem
    assert mapped(reading, Wanted(LABELS, ("dent=background",))).problems == []
    assert mapped(reading, Wanted(("background", "other"))).problems == []  # a word, no class


def test_labelme_file_that_names_another_picture_than_its_own_is_refused(tmp_path: Path) -> None:
    """Pictures were renamed with their files, and imagePath says another's name now."""
    put(tmp_path / "a.png")
    (tmp_path / "b.json").write_bytes(labelme_file(points=BOX)["a.json"])
    assert formats.read("labelme", tmp_path).problems == []
    put(tmp_path / "b.jpg")
    (problem,) = formats.read("labelme", tmp_path).problems
    assert f"names the picture {tmp_path / 'a.png'}, but {tmp_path / 'b.jpg'}" in problem


def test_label_studio_task_of_two_pictures_is_refused(tmp_path: Path) -> None:
    put(tmp_path / "a.png"), put(tmp_path / "b.png")
    task = {"data": {"reference": "b.png", "image": "a.png"}, "annotations": [{"result": []}]}
    (tmp_path / "t.json").write_bytes(json_of([task]))
    assert "2 pictures" in formats.read("label-studio", tmp_path).problems[0]
    (tmp_path / "b.png").unlink()
    (picture,) = formats.read("label-studio", tmp_path).pictures
    assert picture.id == "a"


def test_metadata_with_two_columns_that_may_be_masks_is_refused(tmp_path: Path) -> None:
    for name in ("a", "depth", "segm"):
        put(tmp_path / f"{name}.png", 1)
    listed = tmp_path / "metadata.csv"
    listed.write_text("file_name,depth_file_name,segm_file_name\na.png,depth.png,segm.png\n")
    (problem,) = formats.read("huggingface", tmp_path).problems
    assert "depth_file_name, segm_file_name name files" in problem
    listed.write_text("file_name,depth_file_name,mask_file_name\na.png,depth.png,segm.png\n")
    assert formats.read("huggingface", tmp_path).problems == []


def test_entry_of_a_class_map_that_no_class_answers_to_is_told(tmp_path: Path) -> None:
    put(tmp_path / "a.png")
    (tmp_path / "a.json").write_bytes(labelme_file(points=BOX)["a.json"])
    reading = mapped(formats.read("labelme", tmp_path), Wanted(LABELS, ("dentt=ignore", "*=dent")))
    (note,) = reading.notes.lines()
    assert note.endswith("class_map: 'dentt': no class of this data set is called so; it has dent")
    reading = mapped(formats.read("labelme", tmp_path), Wanted(LABELS, ("DENT=dent", "*=ignore")))
    assert reading.notes.lines() == []


@pytest.mark.parametrize(
    ("name", "picture", "mask", "others"),
    [
        ("masks", "train/images/a", "train/masks/a", ("test/images/b", "c")),
        ("voc", "JPEGImages/a", "SegmentationClass/a", ("test/JPEGImages/b", "c")),
        ("mvtec", "test/dent/a", "ground_truth/dent/a_mask", ("test/dent/more/b", "test/c")),
    ],
)
def test_pictures_that_no_folder_of_masks_belongs_to_are_told(
    name: str, picture: str, mask: str, others: tuple[str, ...], tmp_path: Path
) -> None:
    put(tmp_path / f"{picture}.png"), put(tmp_path / f"{mask}.png", 255)
    assert formats.read(name, tmp_path).notes.lines() == []
    for other in others:
        put(tmp_path / f"{other}.png")
    reading = formats.read(name, tmp_path)
    assert [one.id for one in reading.pictures] == ["a"]
    assert "and 1 more: left out" in reading.notes.lines()[0]


@pytest.mark.parametrize(
    ("picture", "text", "said"),
    [
        ("Images/a.png", "Labels/a.txt", "not read as the label of"),
        ("images/a.png", "annotations/A.txt", "not read as the label of"),
        ("images/b.png", "images/b.txt", "a second label of the picture beside it"),
    ],
)
def test_yolo_label_that_would_not_be_used_is_named(
    picture: str, text: str, said: str, tmp_path: Path
) -> None:
    put(tmp_path / picture), put(tmp_path / "images" / "b.png")
    for path in ("labels/b.txt", text):
        (tmp_path / path).parent.mkdir(exist_ok=True)
        (tmp_path / path).write_text("")
    (tmp_path / "readme_of_all.txt").write_text("no label")
    (problem,) = formats.read("yolo", tmp_path).problems
    assert problem.startswith(f"{tmp_path / text}: {said}")


def test_voc_mask_in_a_folder_of_its_own_is_named(tmp_path: Path) -> None:
    put(tmp_path / "JPEGImages" / "a.png"), put(tmp_path / "JPEGImages" / "b.png")
    put(tmp_path / "SegmentationClass" / "a.png", 0)
    mask = put(tmp_path / "SegmentationClass" / "val" / "b.png", 0)
    put(tmp_path / "SegmentationObject" / "val" / "b.png", 0)
    (problem,) = formats.read("voc", tmp_path).problems
    assert problem.startswith(f"{mask}: expected it directly")
