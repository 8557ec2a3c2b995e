from __future__ import annotations

import os
import time
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
from folders import forbid
from numpy.typing import NDArray

from magtiles_seg.errors import ConfigError, DataError, ImageError
from magtiles_seg.linescan.sources import (
    ArraySource,
    FolderSource,
    LineBlock,
    LineSource,
    Replay,
    VideoSource,
)
from magtiles_seg.marking import encode_result


def rows_of(source: LineSource) -> NDArray[np.uint8]:
    blocks = list(source)
    starts = np.cumsum([0, *(len(block.rows) for block in blocks)])[:-1]
    assert [block.start_line for block in blocks] == starts.tolist()
    assert {block.rows.shape[1] for block in blocks} == {source.width_px}
    source.close()
    source.close()
    return np.vstack([block.rows for block in blocks])


def noise(height: int, width: int) -> NDArray[np.uint8]:
    return np.random.default_rng(0).integers(0, 256, (height, width), np.uint8)


def test_array_comes_whole_and_numbered() -> None:
    picture = noise(101, 9)
    assert (rows_of(ArraySource(picture, block_rows=10)) == picture).all()
    blocks = [picture[:40], picture[40:40], picture[40:]]
    assert (rows_of(ArraySource(blocks)) == picture).all()


def test_empty_iterable_is_data_error() -> None:
    with pytest.raises(DataError, match="no lines"):
        ArraySource([])


@pytest.mark.parametrize(
    ("rows", "got"),
    [
        (np.zeros(40, np.uint8), r"uint8 \(40,\)"),
        (np.zeros((4, 40, 3), np.uint8), r"uint8 \(4, 40, 3\)"),
        (np.zeros((4, 40), np.uint16), r"uint16 \(4, 40\)"),
        ([[1, 2], [3, 4]], "list"),
    ],
)
def test_what_is_no_grey_lines_is_an_image_error_that_says_what_it_is(
    rows: Any,  # noqa: ANN401
    got: str,
) -> None:
    for given in (rows, [rows[0]] if isinstance(rows, list) else [rows]):
        with pytest.raises(ImageError, match=f"the lines are {got}; expected a uint8 array"):
            ArraySource(given)


def test_folder_comes_in_the_order_of_names(tmp_path: Path) -> None:
    picture = noise(60, 33)
    for index, part in enumerate(np.split(picture, 3)):
        cv2.imwrite(str(tmp_path / f"{index}.png"), part)
    assert (rows_of(FolderSource(tmp_path)) == picture).all()


@pytest.mark.parametrize("word", ["", "*.png", "**/*.png"])
def test_folder_comes_in_natural_order_without_results(tmp_path: Path, word: str) -> None:
    picture = noise(240, 33)
    for index, part in enumerate(np.split(picture, 12)):
        cv2.imwrite(str(tmp_path / f"{index}.png"), part)
    (tmp_path / "web_000000000.png").write_bytes(encode_result(noise(20, 33)))
    told: list[str] = []
    source = FolderSource(tmp_path / word, note=told.append)
    assert (rows_of(source) == picture).all()
    assert "left out 1 result of an earlier run" in told[0]


def test_folder_with_a_part_that_cannot_be_listed_is_data_error(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    cv2.imwrite(str(tmp_path / "1.png"), noise(8, 30))
    (tmp_path / "closed").mkdir()
    forbid(monkeypatch, tmp_path / "closed")
    with pytest.raises(DataError, match=r"closed cannot be listed: Permission denied; .* whole"):
        FolderSource(tmp_path)


def test_folder_with_pictures_of_two_widths_is_data_error(tmp_path: Path) -> None:
    for index, width in enumerate((30, 31)):
        cv2.imwrite(str(tmp_path / f"{index}.png"), noise(8, width))
    with pytest.raises(DataError, match="31 px wide; expected 30 px"):
        list(FolderSource(tmp_path))


def test_video_comes_in_grey(tmp_path: Path) -> None:
    path = tmp_path / "web.avi"
    fourcc = cv2.VideoWriter.fourcc(*"MJPG")
    writer = cv2.VideoWriter(str(path), fourcc, 25.0, (64, 48))
    for grey in (40, 90, 140):
        writer.write(np.full((48, 64, 3), grey, np.uint8))
    writer.release()
    rows = rows_of(VideoSource(path)).astype(int)
    assert rows.shape == (144, 64)
    assert np.abs(rows - np.repeat([40, 90, 140], 48)[:, None]).max() <= 4


def test_video_with_a_damaged_stretch_is_an_error_after_what_can_be_read(tmp_path: Path) -> None:
    path = tmp_path / "web.mp4"
    writer = cv2.VideoWriter(str(path), cv2.VideoWriter.fourcc(*"mp4v"), 25.0, (128, 96))
    if not writer.isOpened():
        pytest.skip("this OpenCV writes no MP4")
    rng = np.random.default_rng(0)
    for _ in range(8):
        writer.write(rng.integers(0, 256, (96, 128, 3), dtype=np.uint8))
    writer.release()
    assert len(rows_of(VideoSource(path))) == 8 * 96
    content = bytearray(path.read_bytes())
    third = len(content) // 3
    content[third : 2 * third] = bytes(third)
    path.write_bytes(content)
    blocks: list[LineBlock] = []
    with pytest.raises(DataError, match=r"is damaged: \d frames can be read; expected 8"):
        blocks.extend(VideoSource(path))
    assert blocks


def test_video_that_is_none_or_missing_says_so(tmp_path: Path) -> None:
    (tmp_path / "web.avi").write_text("no video")
    with pytest.raises(DataError, match="no video that OpenCV can read"):
        VideoSource(tmp_path / "web.avi")
    with pytest.raises(FileNotFoundError, match=r"gone\.avi"):
        VideoSource(tmp_path / "gone.avi")
    (tmp_path / "folder.avi").mkdir()
    with pytest.raises(IsADirectoryError, match=r"folder\.avi"):  # the system says why
        VideoSource(tmp_path / "folder.avi")


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="this system has no named pipes")
def test_video_that_is_a_pipe_is_refused_where_opencv_would_wait_for_ever(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "web.avi")
    with pytest.raises(DataError, match=r"web\.avi is a pipe; expected a video file"):
        VideoSource(tmp_path / "web.avi")


def test_replay_keeps_the_line_rate_with_jitter() -> None:
    source = Replay(ArraySource(noise(400, 4), block_rows=20), line_rate_hz=2000, jitter=0.5)
    began_s = time.perf_counter()
    arrivals = [block.arrived_s or 0.0 for block in source]
    took_s = arrivals[-1] - began_s
    assert took_s >= 0.19  # 20 blocks of 10 ms, the last one up to 5 ms early
    assert np.ptp(np.diff(arrivals)) > 0.001
    source.close()


def test_replay_loses_lines_but_never_shifts_those_that_come() -> None:
    picture = noise(1000, 5)
    blocks = list(Replay(ArraySource(picture, block_rows=20), lost_fraction=0.3, seed=0))
    came = sum(len(block.rows) for block in blocks)
    assert 500 < came < 950
    assert blocks[-1].start_line + len(blocks[-1].rows) == 1000
    for block in blocks:
        part = picture[block.start_line : block.start_line + len(block.rows)]
        assert (block.rows == part).all()


@pytest.mark.parametrize("option", ["line_rate_hz", "jitter", "lost_fraction"])
def test_replay_option_of_no_sense_is_config_error(option: str) -> None:
    with pytest.raises(ConfigError, match=option):
        Replay(ArraySource(noise(2, 2)), **{option: -1.0})  # type: ignore[arg-type]
