from __future__ import annotations

import io
import json
from pathlib import Path

import cv2
import numpy as np
import pytest
from PIL import Image
from predictions import segment

from magtiles_seg.errors import ConfigError
from magtiles_seg.image import read_image
from magtiles_seg.marking import (
    HEAD_BYTES,
    encode_result,
    is_marked,
    is_result,
    mark_png,
    read_manifest,
)
from magtiles_seg.writing import discard_result, stale_results

PIXELS = np.arange(96, dtype=np.uint8).reshape(8, 12)


def test_marked_png_is_a_whole_png_of_the_same_pixels() -> None:
    png = encode_result(PIXELS)
    with Image.open(io.BytesIO(png)) as picture:
        picture.verify()
        assert picture.info["Software"] == "magtiles_seg"
    assert (read_image(png) == PIXELS).all()
    assert is_marked(png[:HEAD_BYTES])


@pytest.mark.parametrize("software", ["GIMP", "magtiles_segment"])
def test_png_of_another_program_is_not_marked(tmp_path: Path, software: str) -> None:
    from PIL.PngImagePlugin import PngInfo

    text = PngInfo()
    text.add_text("Software", software)
    path = tmp_path / "a_mask.png"
    Image.fromarray(PIXELS).save(path, pnginfo=text)
    assert not is_result(path)
    path.write_bytes(b"")
    assert not is_result(path)


@pytest.mark.parametrize(
    ("name", "known"),
    [
        ("mask.png", True),
        ("a_probability.png", True),
        ("masks/00000001/00012.png", True),
        ("web_000004096.png", True),
        ("001_tile.png", True),
        ("picture_07.png", True),
        ("report/curve_0.png", True),
        ("bench.png", True),
        ("20261127T143927219Z-random-0747-11125942.draft.png", True),
        ("worker-71/07.png", True),
        ("charts/roc.png", True),
        ("plots/reliability_pixels.png", True),
        ("07.png", False),
        ("mine.png", False),
        ("00012.png", False),
    ],
)
def test_result_is_known_by_its_name_and_its_mark(tmp_path: Path, name: str, known: bool) -> None:
    path = tmp_path / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(encode_result(PIXELS))
    assert is_result(path) is known


def test_every_file_of_a_saved_result_is_known(tmp_path: Path) -> None:
    manifest = segment([[0.9, 0.1]]).save(tmp_path, stem="a")
    assert read_manifest(manifest) is not None
    assert all(is_result(path) for path in tmp_path.glob("*.png"))


@pytest.mark.parametrize("content", [b"", b"[]", b"{}", b'{"verdict": 1}', b"[" * 100_000, b"\xff"])
def test_json_of_somebody_else_is_no_manifest(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "result.json").write_bytes(content)
    assert read_manifest(tmp_path / "result.json") is None


@pytest.mark.parametrize("name", ["a_mask.png", "a_overlay.png", "a_result.json"])
def test_save_over_a_file_of_somebody_else_is_refused(tmp_path: Path, name: str) -> None:
    theirs = cv2.imencode(".png", PIXELS)[1].tobytes()
    (tmp_path / name).write_bytes(theirs)
    with pytest.raises(ConfigError, match=rf"{name} would be overwritten, and is no result"):
        segment([[0.9]]).save(tmp_path, stem="a")
    assert [path.name for path in tmp_path.iterdir()] == [name]
    discard_result(tmp_path, "a")
    assert (tmp_path / name).read_bytes() == theirs


def test_save_under_a_name_that_is_too_long_is_refused_before_a_file_is_written(
    tmp_path: Path,
) -> None:
    with pytest.raises(ConfigError, match="more than 255 bytes"):
        segment([[0.9]]).save(tmp_path, stem="ü" * 125)
    assert list(tmp_path.iterdir()) == []


def test_discard_takes_a_result_away_whole(tmp_path: Path) -> None:
    segment([[0.9]]).save(tmp_path, stem="a")
    segment([[0.9]]).save(tmp_path, stem="b")
    discard_result(tmp_path, "a")
    assert {path.name[0] for path in tmp_path.iterdir()} == {"b"}


def test_stale_results_are_those_of_pictures_that_are_gone(tmp_path: Path) -> None:
    (tmp_path / "here.png").write_bytes(b"x")
    written = {
        segment([[0.9]], source=str(tmp_path / name)).save(tmp_path / "out", stem=stem)
        for stem, name in (("a", "here.png"), ("b", "gone.png"), ("c", "gone.png"))
    }
    (tmp_path / "out" / "d_result.json").write_text(json.dumps({"source": "gone.png"}))
    mine = {path for path in written if path.name.startswith("c")}
    assert [path.name for path in stale_results(tmp_path / "out", mine)] == ["b_result.json"]


def test_mark_is_a_chunk_behind_the_header() -> None:
    png = cv2.imencode(".png", PIXELS)[1].tobytes()
    assert len(mark_png(png)) - len(png) == HEAD_BYTES - 33
