"""Every format gives back what was written, and the tools' own readers read it alike."""

from __future__ import annotations

import base64
import json
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays
from numpy.typing import NDArray

from magtiles_seg import cli, shapes
from magtiles_seg.config import DataLoadParams
from magtiles_seg.dataset import formats
from magtiles_seg.dataset.formats import (
    FORMATS,
    LabelledPicture,
    Region,
    coco,
    cvat,
    labelme,
    labelstudio,
)
from magtiles_seg.dataset.layouts import FORMAT_NAMES, LAYOUTS
from magtiles_seg.labels import IGNORE, IGNORED

LABELS = ("background", "scratch", "dent")
HW = (60, 80)
MASKS = arrays.arrays(np.bool_, arrays.array_shapes(min_dims=2, max_dims=2, max_side=12))


@pytest.fixture
def pictures(tmp_path: Path) -> list[LabelledPicture]:
    """Six pictures, two of them sound; rings, lines one pixel wide, parts at the border."""
    rng, found = np.random.default_rng(0), []
    (tmp_path / "source").mkdir()
    for number in range(6):
        path = tmp_path / "source" / f"p{number}.png"
        cv2.imwrite(str(path), rng.integers(0, 255, HW, dtype=np.uint8))
        target = np.zeros(HW, np.uint8)
        if number % 3:
            cv2.ellipse(target, (30, 30), (12, 7), 20, 0, 360, number % 3, -1)
            cv2.circle(target, (30, 30), 3, 0, -1)
            cv2.line(target, (50, 5), (79, 40), number % 3, 1)
        found.append(formats.from_target(path.stem, path, target, LABELS))
    return found


def targets(found: Sequence[LabelledPicture]) -> dict[str, NDArray[np.uint8]]:
    return {picture.id: picture.target(LABELS) for picture in found}


def alike(found: Sequence[LabelledPicture], pictures: Sequence[LabelledPicture]) -> bool:
    got, wanted = targets(found), targets(pictures)
    return got.keys() == wanted.keys() and all((got[k] == wanted[k]).all() for k in wanted)


@pytest.mark.parametrize("name", FORMATS)
def test_format_written_and_read_again_has_the_same_masks(
    name: str, pictures: list[LabelledPicture], tmp_path: Path
) -> None:
    out = tmp_path / "out"
    formats.write(name, pictures, out, LABELS)
    assert formats.detect(out) == [name]
    found = formats.read(name, out)
    assert (found.problems, found.notes.lines()) == ([], [])
    assert alike(found.pictures, pictures)
    assert all(picture.labelled for picture in found.pictures)


@pytest.mark.parametrize("name", ["labelme", "coco", "cvat", "label-studio"])
@pytest.mark.parametrize("as_polygons", [True, False])
def test_format_of_masks_and_polygons_keeps_both(
    name: str, as_polygons: bool, pictures: list[LabelledPicture], tmp_path: Path
) -> None:
    out = tmp_path / "out"
    formats.write(name, pictures, out, LABELS, as_polygons=as_polygons)
    found = formats.read(name, out).pictures
    assert alike(found, pictures)
    drawn = [region.runs is None for picture in found for region in picture.regions]
    assert drawn
    assert all(one == as_polygons for one in drawn)


@pytest.mark.parametrize("name", ["labelme", "coco", "cvat", "label-studio", "yolo"])
def test_polygon_that_was_drawn_survives_the_way_through_a_format(
    name: str, pictures: list[LabelledPicture], tmp_path: Path
) -> None:
    points = np.array([[10.25, 8.5], [60.75, 12.125], [40.5, 50.25]])
    region = Region("dent", (points,))
    formats.write(name, [replace(pictures[0], regions=(region,))], tmp_path / "out", LABELS)
    (again,) = formats.read(name, tmp_path / "out").pictures[0].regions
    assert again.polygons[0] == pytest.approx(points, abs=1e-4)


@pytest.mark.parametrize("name", ["masks", "voc", "coco", "labelme"])
def test_ignored_region_stays_ignored_and_lies_over_all_others(
    name: str, pictures: list[LabelledPicture], tmp_path: Path
) -> None:
    box = np.zeros(HW, np.bool_)
    box[20:40, 20:40] = True
    ignored = replace(pictures[1], regions=(Region.of_mask(IGNORE, box), *pictures[1].regions))
    formats.write(name, [ignored], tmp_path / "out", LABELS)
    (found,) = formats.read(name, tmp_path / "out").pictures
    assert ((found.target(LABELS) == IGNORED) == box).all()


def test_formats_are_those_that_the_parameters_know() -> None:
    assert tuple(FORMATS) == FORMAT_NAMES
    for layout in (*LAYOUTS, *FORMAT_NAMES):
        assert DataLoadParams(layout=layout).layout == layout


@given(MASKS)
def test_outline_of_a_mask_fills_to_that_mask(mask: NDArray[np.bool_]) -> None:
    assert (shapes.fill(shapes.outlines(mask), *mask.shape) == mask).all()


@given(MASKS)
def test_run_lengths_of_a_mask_decode_to_that_mask(mask: NDArray[np.bool_]) -> None:
    counts = shapes.rle_from_text(shapes.rle_to_text(shapes.encode_rle(mask)))
    assert (shapes.decode_rle(counts, *mask.shape) == mask).all()
    brush = labelstudio.decode_brush(labelstudio.encode_brush(mask))
    assert (brush.reshape(*mask.shape, 4)[..., 3] > 0).tolist() == mask.tolist()


@given(st.lists(st.tuples(st.floats(-20, 30), st.floats(-20, 30)), min_size=3, max_size=8))
@settings(max_examples=60)
def test_polygon_that_is_cut_at_the_border_fills_the_same_pixels(
    points: list[tuple[float, float]],
) -> None:
    polygon = np.array(points)
    cut = shapes.clip(polygon, 10, 12)
    assert len(cut) == 0 or (cut.min() >= 0 and (cut.max(axis=0) <= (12, 10)).all())
    moved = [polygon + 30 + (dx, dy) for dx in (-1e-6, 1e-6) for dy in (-1e-6, 1e-6)]
    whole = [shapes._even_odd(one, 70, 72)[30:40, 30:42] for one in moved]
    if len(cut) > 2:
        differs = shapes._even_odd(cut, 10, 12) ^ whole[0]
        on_the_line = np.logical_or.reduce([one ^ whole[0] for one in whole])
        assert not (differs & ~on_the_line).any()


def test_thin_polygon_keeps_the_pixels_that_it_passes() -> None:
    hair = np.array([[1.1, 2.6], [8.9, 2.6], [8.9, 2.7]])
    assert shapes.fill([hair], 6, 10).sum() == 8


# What the tools' own packages make of it. None is a dependency; the tests run where they are.


@pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")  # pycocotools'
def test_pycocotools_reads_run_lengths_and_polygons_as_we_do(
    pictures: list[LabelledPicture], tmp_path: Path
) -> None:
    pytest.importorskip("pycocotools")
    from pycocotools.coco import COCO

    for as_polygons in (False, True):
        out = tmp_path / str(as_polygons)
        opened = COCO(str(coco.write(pictures, out, LABELS, as_polygons=as_polygons)))
        for picture, entry in zip(pictures, opened.loadImgs(opened.getImgIds()), strict=True):
            target = np.zeros(HW, np.uint8)
            for annotation in opened.loadAnns(opened.getAnnIds(entry["id"])):
                target[opened.annToMask(annotation) > 0] = annotation["category_id"]
            overlap = (target > 0) & (picture.target(LABELS) > 0)
            union = (target > 0) | (picture.target(LABELS) > 0)
            share = overlap.sum() / max(1, union.sum())
            assert not union.any() or share == 1 or (as_polygons and share > 0.9)


def test_run_lengths_of_pycocotools_are_read(tmp_path: Path) -> None:
    pytest.importorskip("pycocotools")
    from pycocotools import mask as tool

    mask = np.random.default_rng(1).random(HW) < 0.4
    text = tool.encode(np.asfortranarray(mask.astype(np.uint8)))["counts"].decode()
    assert shapes.rle_to_text(shapes.encode_rle(mask)) == text
    assert (shapes.decode_rle(shapes.rle_from_text(text), *HW) == mask).all()
    assert tmp_path.exists()


def test_labelme_s_own_reader_reads_what_is_written(
    pictures: list[LabelledPicture], tmp_path: Path
) -> None:
    tool = pytest.importorskip("labelme._label_file")
    labelme.write(pictures, tmp_path / "out", LABELS)
    labels = tool.LabelFile(str(tmp_path / "out" / "p1.json"))
    assert {shape["label"] for shape in labels.shapes} == {"scratch"}


def test_label_studio_s_own_brush_decodes_ours_and_is_decoded() -> None:
    tool = pytest.importorskip("label_studio_converter.brush")
    mask = np.random.default_rng(2).random((40, 50)) < 0.3
    ours = tool.decode_rle(labelstudio.encode_brush(mask))
    assert (ours.reshape(40, 50, 4)[..., 3] > 0).tolist() == mask.tolist()
    theirs = tool.mask2rle(mask.astype(np.uint8) * 255)
    assert (
        labelstudio.decode_brush(theirs).reshape(40, 50, 4)[..., 3] > 0
    ).tolist() == mask.tolist()


def test_supervision_reads_coco_and_yolo_as_we_do(
    pictures: list[LabelledPicture], tmp_path: Path
) -> None:
    tool = pytest.importorskip("supervision")
    coco.write(pictures, tmp_path / "coco", LABELS, as_polygons=True)
    sets = [
        tool.DetectionDataset.from_coco(
            str(tmp_path / "coco"), str(tmp_path / "coco" / coco.NAME), force_masks=True
        )
    ]
    formats.write("yolo", pictures, tmp_path / "yolo", LABELS)
    yolo = tmp_path / "yolo"
    sets.append(
        tool.DetectionDataset.from_yolo(
            str(yolo / "images"), str(yolo / "labels"), str(yolo / "data.yaml"), force_masks=True
        )
    )
    wanted = {key: value > 0 for key, value in targets(pictures).items()}
    for opened in sets:
        for path, _, found in opened:
            mask = np.zeros(HW, np.bool_) if not len(found) else found.mask.any(axis=0)
            truth = wanted[Path(path).stem]
            assert (mask & truth).sum() >= 0.7 * truth.sum()


def test_datasets_reads_the_image_folder(pictures: list[LabelledPicture], tmp_path: Path) -> None:
    tool = pytest.importorskip("datasets")
    formats.write("huggingface", pictures, tmp_path / "hf", LABELS)
    opened: Any = tool.load_dataset(
        "imagefolder", data_dir=str(tmp_path / "hf"), cache_dir=str(tmp_path / "cache")
    )
    rows = list(opened["train"])
    assert len(rows) == len(pictures)
    held = [np.asarray(row["mask"]) for row in rows]
    assert sorted(int(mask.max()) for mask in held) == [0, 0, 1, 1, 2, 2]


def test_labelme_picture_inside_the_json_is_read(tmp_path: Path) -> None:
    done, png = cv2.imencode(".png", np.full(HW, 90, np.uint8))
    content = {
        "shapes": [{"label": "dent", "points": [[1, 1], [9, 1], [9, 9]], "shape_type": "polygon"}],
        "imagePath": "..\\elsewhere\\a.png",
        "imageData": base64.b64encode(png.tobytes()).decode(),
        "imageHeight": HW[0],
        "imageWidth": HW[1],
    }
    (tmp_path / "a.json").write_text(json.dumps(content))
    (picture,) = formats.read("labelme", tmp_path).pictures
    assert done
    assert picture.embedded
    assert picture.content() == png.tobytes()
    assert picture.copy_to(tmp_path) == "a.png"


def test_cvat_export_of_boxes_ellipses_and_masks_is_read(tmp_path: Path) -> None:
    cv2.imwrite(str(tmp_path / "a.png"), np.zeros((8, 10), np.uint8))
    (tmp_path / "annotations.xml").write_text(
        '<annotations><image id="0" name="a.png" width="10" height="8">'
        '<mask label="dent" rle="1, 2, 1" left="3" top="2" width="2" height="2"/>'
        '<box label="dent" xtl="0" ytl="0" xbr="2" ybr="1"/>'
        '<ellipse label="dent" cx="7.5" cy="5.5" rx="1" ry="1"/>'
        '<polyline label="dent" points="0,0;5,5"/></image></annotations>'
    )
    found = cvat.read(tmp_path)
    mask = found.pictures[0].target(("background", "dent"))
    assert np.argwhere(mask[:4]).tolist() == [[0, 0], [0, 1], [2, 4], [3, 3]]
    assert mask[5, 7] == 1
    assert found.kept()[1] == []
    assert "a polyline has no area" in found.notes.lines()[0]


@pytest.mark.parametrize("name", FORMATS)
def test_data_convert_writes_any_format_from_any_other(
    name: str, pictures: list[LabelledPicture], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    before, after, again = tmp_path / "before", tmp_path / "after", tmp_path / "again"
    formats.write("coco", pictures, before, LABELS)
    assert cli.main(["data", "convert", str(before), str(after), "--to", name]) == 0
    assert "coco: 6 labelled pictures, 2 of them sound" in capsys.readouterr().out
    words = ["data", "convert", str(after), str(again), "--to", "coco"]
    assert cli.main(words) == 0
    assert alike(formats.read("coco", again).pictures, pictures)
    assert cli.main(words) == 2
    assert "is not empty" in capsys.readouterr().err


def test_data_convert_checks_target_and_tolerance_before_it_reads_anything(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    source, taken = tmp_path / "source", tmp_path / "taken"
    source.mkdir()
    (source / "instances.json").write_text("damaged", encoding="utf-8")
    taken.write_text("mine", encoding="utf-8")
    words = ["data", "convert", str(source), "--to", "coco"]
    for more, said in (
        ([str(tmp_path / "new"), "--tolerance", "-1"], "tolerance_px is -1.0"),
        ([str(taken)], f"{taken} is no folder"),
        ([str(source.parent)], "is not empty"),
    ):
        assert cli.main([*words, *more]) == 2
        assert said in capsys.readouterr().err
