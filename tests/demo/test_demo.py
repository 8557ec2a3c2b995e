from __future__ import annotations

import asyncio
import csv
import io
import re
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager
from dataclasses import asdict, replace
from pathlib import Path
from typing import TypeVar

import cv2
import numpy as np
import pytest

pytest.importorskip("gradio")

from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import PlainTextResponse
from starlette.routing import Route
from starlette.testclient import TestClient

from magtiles_seg import ImageError, Segmentation, Segmenter
from magtiles_seg.dataset.synthetic import synthetic_tile
from magtiles_seg.demo import create_app, mount
from magtiles_seg.demo.many import MAX_PICTURES, _inspect
from magtiles_seg.demo.models import Models, Results, _size
from magtiles_seg.demo.tile import MAX_PIXELS, Judge
from magtiles_seg.demo.web import _pass
from magtiles_seg.infer import BUNDLED_MODEL

T = TypeVar("T")


def in_a_loop(make: Callable[[], T]) -> T:
    """Call a function inside an event loop: outside, Gradio makes loops and leaves them open."""

    async def call() -> T:
        return make()

    return asyncio.run(call())


@pytest.fixture(scope="module")
def client(segmenter: Segmenter) -> Iterator[TestClient]:
    with TestClient(in_a_loop(lambda: create_app(segmenter))) as opened:
        yield opened


@pytest.fixture(scope="module")
def segmenter() -> Iterator[Segmenter]:
    with Segmenter() as opened:
        yield opened


@pytest.fixture(scope="module")
def judge(segmenter: Segmenter) -> Judge:
    return Judge(segmenter)


@pytest.fixture
def tile(tmp_path: Path) -> str:
    path = tmp_path / "tile.png"
    cv2.imwrite(str(path), synthetic_tile(25, defect="crack", exposure=3, size_hw=(80, 96)).image)
    return str(path)


class Counting:
    """A Segmenter that counts its calls."""

    def __init__(self, segmenter: Segmenter) -> None:
        self.decision, self.calls, self._segmenter = segmenter.decision, 0, segmenter
        self.spec = segmenter.spec

    def __call__(self, image: object) -> object:
        self.calls += 1
        return self._segmenter(image)  # type: ignore[arg-type]


def test_moving_a_slider_decides_anew_without_inference(segmenter: Segmenter, tile: str) -> None:
    counting = Counting(segmenter)
    judge = Judge(counting)  # type: ignore[arg-type]
    result = judge.inspect(tile, 0.001, 0.999)
    strict = judge.decide(result, 0.999, 0.001)
    assert counting.calls == 1
    assert strict.mask.sum() < result.mask.sum()
    assert (result.verdict, strict.verdict) == ("accept", "reject")


def test_sliders_at_rest_mean_the_models_own_thresholds_to_the_last_digit(
    judge: Judge, segmenter: Segmenter, tile: str
) -> None:
    own = segmenter.decision
    result = judge.inspect(tile, round(own.threshold, 3), round(own.reject_score, 3))
    assert result.decision == own


def test_reject_slider_below_the_review_score_lowers_that_too(tile: str) -> None:
    with Segmenter(reject_score=0.8, review_score=0.5) as segmenter:
        result = Judge(segmenter).inspect(tile, 0.5, 0.2)
    assert result.decision.review_score == result.decision.reject_score == 0.2


def test_text_file_is_refused_with_a_message_that_names_no_path(
    judge: Judge, tmp_path: Path
) -> None:
    path = tmp_path / "notes.png"
    path.write_text("not a picture")
    with pytest.raises(ImageError, match="no picture in a format that is read") as caught:
        judge.inspect(str(path), 0.5, 0.5)
    assert str(tmp_path) not in str(caught.value)


def test_picture_over_the_demos_size_is_refused(judge: Judge, tmp_path: Path) -> None:
    path = tmp_path / "large.png"
    side = int(MAX_PIXELS**0.5) + 1
    cv2.imwrite(str(path), np.zeros((side, side), np.uint8))
    with pytest.raises(ImageError, match="expected at most 4,000,000 px"):
        judge.inspect(str(path), 0.5, 0.5)


def test_many_files_with_a_bad_one_give_a_csv_with_a_line_for_each(
    judge: Judge, tile: str, tmp_path: Path
) -> None:
    bad = tmp_path / "bad.png"
    bad.write_bytes(b"\x89PNG")
    shown = list(_inspect(judge, [tile, str(bad)], (0.5, 0.5, 0.1), str(tmp_path)))
    assert len(shown) == 3
    content = Path(shown[-1][2].value["path"]).read_text(encoding="utf-8")
    rows = list(csv.DictReader(io.StringIO(content)))
    assert {row["picture"] for row in rows} == {"tile.png", "bad.png"}
    (refused,) = (row for row in rows if row["picture"] == "bad.png")
    assert refused["verdict"] == "not read"
    assert "damaged header" in refused["error"]


def test_picture_of_no_tile_among_many_is_doubted_in_table_and_csv(
    judge: Judge, tmp_path: Path
) -> None:
    path = tmp_path / "black.png"
    cv2.imwrite(str(path), np.zeros((3, 3), np.uint8))
    first, last = _inspect(judge, [str(path)], (0.5, 0.5, 0), str(tmp_path))
    assert "Is this a tile?" in first[1]
    (row,) = csv.DictReader(Path(last[2].value["path"]).read_text("utf-8").splitlines())
    assert "no upright grain" in row["doubt"]


def test_more_files_than_the_limit_are_refused_with_the_number(
    judge: Judge, tile: str, tmp_path: Path
) -> None:
    (shown,) = _inspect(judge, [tile] * (MAX_PICTURES + 1), (0.5, 0.5, 0), str(tmp_path))
    assert f"Got {MAX_PICTURES + 1}; expected up to {MAX_PICTURES}" in shown[0]


def test_several_exposures_of_one_tile_get_one_verdict_together(
    judge: Judge, tile: str, tmp_path: Path
) -> None:
    *_, last = _inspect(judge, [tile] * 3, (0.5, 0.5, 0), str(tmp_path), one_tile=True)
    score = judge.inspect(tile, 0.5, 0.5).score
    assert "One tile, 3 pictures" in last[0]
    assert f"Score {score:.3g} ({', '.join([f'{score:.3g}'] * 3)} together)," in last[0]
    rows = list(csv.DictReader(Path(last[2].value["path"]).read_text("utf-8").splitlines()))
    assert {row["tile_verdict"] for row in rows} == {judge.inspect(tile, 0.5, 0.5).verdict}
    assert {row["tile_score"] for row in rows} == {f"{score:.6f}"}


def test_tile_verdict_is_by_the_models_tile_limit_until_the_slider_moves(
    segmenter: Segmenter, tile: str, tmp_path: Path
) -> None:
    score = segmenter(tile).score
    own = replace(segmenter.decision, reject_score=score, tile_reject_score=1.0)

    class Given:
        spec, decision = segmenter.spec, own

        def __call__(self, image: object) -> Segmentation:
            return segmenter(image).redecide(**asdict(own))  # type: ignore[arg-type]

    judge = Judge(Given())  # type: ignore[arg-type]
    verdicts = []
    for slider in (round(score, 3), 0.001):
        *_, last = _inspect(judge, [tile] * 2, (0.5, slider, 0), str(tmp_path), one_tile=True)
        verdicts.append(re.search(r"<b>(\w+)</b>.*?the reject score ([\d.]+)", last[0]))
    assert [one and one.groups() for one in verdicts] == [("Accept", "1"), ("Reject", "0.001")]


def test_tile_with_a_picture_that_cannot_be_read_gets_no_verdict(
    judge: Judge, tile: str, tmp_path: Path
) -> None:
    bad = tmp_path / "bad.png"
    bad.write_bytes(b"no picture")
    *_, last = _inspect(judge, [tile, str(bad)], (0.5, 0.5, 0), str(tmp_path), one_tile=True)
    assert "No verdict" in last[0]
    rows = list(csv.DictReader(Path(last[2].value["path"]).read_text("utf-8").splitlines()))
    assert [row["error"] != "" for row in rows].count(True) == 1
    assert {(row["tile_verdict"], row["tile_score"]) for row in rows} == {("", "")}


def test_every_model_of_the_package_can_be_chosen_and_is_loaded_then(
    segmenter: Segmenter, tmp_path: Path
) -> None:
    other = tmp_path / "other.onnx"
    other.write_bytes(BUNDLED_MODEL.read_bytes())
    models = Models(segmenter, {"magnetic-tile": BUNDLED_MODEL, "other": other})
    assert models.names == (segmenter.spec.card.name, "other")
    assert models.get() is models.get("no such model") is segmenter
    with models.get("other") as chosen:
        assert chosen.spec.path == other
        assert models.get("other") is chosen


def test_own_web_as_a_tall_picture_passes_and_its_lines_are_counted(
    segmenter: Segmenter, tmp_path: Path
) -> None:
    path = tmp_path / "web.png"
    cv2.imwrite(str(path), np.full((300, 120), 90, np.uint8))
    *_, (cards, picture, _) = _pass(segmenter, 0.5, str(path))
    assert "<b>300 lines</b>passed" in cards
    assert picture.visible


def test_own_web_as_a_video_passes(segmenter: Segmenter, tmp_path: Path) -> None:
    path = tmp_path / "web.mp4"
    writer = cv2.VideoWriter(str(path), cv2.VideoWriter.fourcc(*"mp4v"), 10, (128, 64))
    if not writer.isOpened():
        pytest.skip("this OpenCV writes no MP4")
    for _ in range(4):
        writer.write(np.full((64, 128, 3), 90, np.uint8))
    writer.release()
    *_, (cards, _, _) = _pass(segmenter, 0.5, str(path))
    assert "<b>256 lines</b>passed" in cards


def test_video_that_is_cut_off_is_refused_as_such(segmenter: Segmenter, tmp_path: Path) -> None:
    path = tmp_path / "web.mp4"
    path.write_bytes(b"\0\0\0\x1cftypisom\0\0\2\0isomiso2")
    (shown,) = _pass(segmenter, 0.5, str(path))
    assert "no video that can be read: it is damaged" in shown[0]


@pytest.mark.parametrize("name", ["list.m3u8", "list.mp4", "list.avi", "web.txt"])
def test_playlist_as_a_web_is_refused_and_never_reaches_the_decoder(
    segmenter: Segmenter, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    path = tmp_path / name
    path.write_text("#EXTM3U\n#EXTINF:1,\nfile:///etc/passwd\n", encoding="utf-8")
    monkeypatch.setattr(cv2, "VideoCapture", None)  # an error, were it called
    (shown,) = _pass(segmenter, 0.5, str(path))
    assert "neither a picture nor a video" in shown[0]
    assert str(tmp_path) not in shown[0]


def test_web_that_is_too_wide_is_refused(segmenter: Segmenter, tmp_path: Path) -> None:
    path = tmp_path / "wide.png"
    cv2.imwrite(str(path), np.zeros((40, 2100), np.uint8))
    (shown,) = _pass(segmenter, 0.5, str(path))
    assert "expected 32 to 2048 px a line" in shown[0]


def test_results_that_nobody_asks_for_go_first_when_there_is_no_room(
    segmenter: Segmenter, tile: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    clock = [0.0]
    monkeypatch.setattr("magtiles_seg.demo.models.time.monotonic", lambda: clock[0])
    result = segmenter(tile)
    monkeypatch.setattr("magtiles_seg.demo.models._MAX_BYTES", 2 * _size(result))
    monkeypatch.setattr("magtiles_seg.demo.models._KEPT_S", 60)
    kept = Results()
    first, second = kept.keep(result), kept.keep(result)
    assert kept.get(first) is result
    third = kept.keep(result)
    assert [kept.get(key) is result for key in (first, second, third)] == [True, False, True]
    clock[0] = 50
    assert kept.get(third) is result
    clock[0] = 100
    assert [kept.get(key) is result for key in (first, third)] == [False, True]


def test_list_that_takes_too_long_ends_and_names_what_was_not_inspected(
    judge: Judge, tile: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("magtiles_seg.demo.many.RUN_S", -1.0)
    *_, shown, _ = _inspect(judge, [tile, tile], (0.5, 0.5, 0.0), str(tmp_path))
    assert shown[1].count("not inspected: the demo ends a list after -1 s") == 2


@pytest.mark.parametrize("limit", ["_MAX_LINES", "RUN_S"])
def test_web_without_an_end_is_ended(
    segmenter: Segmenter, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, limit: str
) -> None:
    monkeypatch.setattr(f"magtiles_seg.demo.web.{limit}", 0)
    path = tmp_path / "tall.png"
    cv2.imwrite(str(path), np.full((400, 64), 128, np.uint8))
    shown = list(_pass(segmenter, 0.5, str(path)))
    assert "<b>75 lines</b>passed" in shown[-1][0]


def test_web_first_block_shows_its_lines_before_any_verdict(segmenter: Segmenter) -> None:
    cards, picture, table = next(_pass(segmenter, 0.5))
    assert "<b>0</b>lines inspected" in cards
    assert picture.visible
    assert "Nothing found yet" in table


def test_page_names_no_font_or_style_of_another_host(client: TestClient) -> None:
    theme = client.get("/demo/theme.css").text
    assert "system-ui" in theme
    assert "fonts.g" not in theme
    assert "@import" not in theme


def test_page_sends_no_telemetry_and_offers_no_call_but_its_own(client: TestClient) -> None:
    config = client.get("/demo/config").json()
    assert config["analytics_enabled"] is False
    assert {call["api_visibility"] for call in config["dependencies"]} <= {"private"}


def test_root_of_the_demo_alone_leads_to_its_page(client: TestClient) -> None:
    assert client.get("/", follow_redirects=False).headers["location"] == "/demo/"
    assert "Defects of magnetic tiles" in client.get("/demo/").text


def test_mount_keeps_the_application_its_routes_and_its_lifespan(segmenter: Segmenter) -> None:
    @asynccontextmanager
    async def lifespan(_: Starlette) -> AsyncIterator[dict[str, str]]:
        yield {"model": "loaded"}

    def say(request: Request) -> PlainTextResponse:
        return PlainTextResponse(request.state.model)

    app = Starlette(routes=[Route("/say", say)], lifespan=lifespan)
    assert in_a_loop(lambda: mount(app, segmenter)) is app
    with TestClient(app) as client:
        assert client.get("/say").text == "loaded"
        assert client.get("/demo/").status_code == 200
