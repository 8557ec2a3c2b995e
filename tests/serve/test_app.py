from __future__ import annotations

import gzip
import io
import json
import re
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
from PIL import Image
from starlette.testclient import TestClient

from magtiles_seg import Segmenter
from magtiles_seg.serve import batching
from magtiles_seg.serve.auth import new_key
from magtiles_seg.serve.decoding import Budget

OpenClient = Callable[..., TestClient]
PROBLEM = "application/problem+json"


def send(client: TestClient, data: bytes, query: str = "", **headers: str) -> Any:  # noqa: ANN401
    return client.post(f"/analyze{query}", files={"image": ("t.png", data)}, headers=headers)


def assert_problem(reply: Any, status: int, words: str) -> None:  # noqa: ANN401
    assert (reply.status_code, reply.headers["content-type"]) == (status, PROBLEM)
    problem = reply.json()
    assert problem["status"] == status
    assert re.search(words, problem["detail"]), problem
    assert not re.search(r"Traceback|\.py|0x[0-9a-f]|/(tmp|work|usr|home)", reply.text)


def test_analyze_answers_pred_alone_as_the_library_does(
    client: TestClient, png: bytes, model: Path
) -> None:
    with Segmenter(model, threads=1) as segmenter:
        expected = segmenter(png)
    reply = send(client, png)
    assert reply.json() == {"pred": expected.mask.tolist()}
    assert (reply.headers["x-verdict"], reply.headers["x-model-name"]) == (expected.verdict, "nano")
    assert reply.headers["x-model-sha256"] == segmenter.spec.sha256


@pytest.mark.parametrize(("kind", "size_hw"), [("JPEG", (64, 200)), ("BMP", (90, 64))])
def test_analyze_any_size_and_format_gets_a_mask_of_its_own_size(
    client: TestClient, kind: str, size_hw: tuple[int, int]
) -> None:
    file = io.BytesIO()
    Image.fromarray(np.full(size_hw, 90, np.uint8)).save(file, kind)
    assert np.shape(send(client, file.getvalue()).json()["pred"]) == size_hw


def test_analyze_png_and_words_are_given_where_asked(client: TestClient, png: bytes) -> None:
    pred = np.array(send(client, png).json()["pred"])
    reply = send(client, png, accept="image/png")
    mask = cv2.imdecode(np.frombuffer(reply.content, np.uint8), cv2.IMREAD_UNCHANGED)
    assert np.array_equal(np.asarray(mask), pred * 255)
    answer = send(client, png, "?include=verdict,defects&mask=none").json()
    assert answer.keys() == {"verdict", "score", "defects"}


def test_analyze_several_files_only_where_the_setting_allows(
    client: TestClient, open_client: OpenClient, png: bytes
) -> None:
    files = [("image", ("a.png", png)), ("image", ("b.png", png))]
    assert_problem(client.post("/analyze", files=files), 400, "Too many files")
    several = open_client(max_files=2)
    answers = several.post("/analyze", files=files).json()["results"]
    assert answers[0] == answers[1] == send(several, png).json()
    refused = several.post("/analyze", files=files, headers={"accept": "image/png"})
    assert_problem(refused, 400, "one mask")


def test_analyze_tile_answers_one_verdict_and_every_picture_s_answer(
    client: TestClient, open_client: OpenClient, png: bytes, model: Path
) -> None:
    several = open_client(max_files=3)
    rng = np.random.default_rng(0)
    noisy = [png, *(_encoded(rng.integers(0, 256, (70, 90), np.uint8)) for _ in range(2))]
    files = [("image", (f"{index}.png", data)) for index, data in enumerate(noisy)]
    query = "?tile=true&include=verdict,overlay&mask=none"
    reply = several.post(f"/analyze{query}", files=files)
    with Segmenter(model, threads=1) as segmenter:
        tile = segmenter.tile(noisy)
    answer = reply.json()
    assert answer["tile"]["score"] == pytest.approx(tile.score)
    assert (answer["tile"]["verdict"], answer["tile"]["pictures"]) == (tile.verdict, 3)
    assert answer["tile"]["onto"] == tile.middle
    assert answer["tile"]["left_out"] == tile.overlay_dict()["left_out"] != []
    assert [one["score"] for one in answer["results"]] == [
        pytest.approx(one.score) for one in tile.exposures
    ]
    assert reply.headers["x-verdict"] == tile.verdict
    assert float(reply.headers["x-score"]) == pytest.approx(tile.score, abs=1e-4)
    plain = several.post("/analyze?mask=none", files=files)
    assert plain.json() == {"results": [{}, {}, {}]}
    assert "x-verdict" not in plain.headers
    one = send(client, png, "?tile=true&mask=none").json()
    assert one["results"] == [{}]
    assert one["tile"]["pictures"] == 1


def test_analyze_tile_is_refused_where_it_has_no_sense(client: TestClient, png: bytes) -> None:
    assert_problem(send(client, png, "?tile=yes"), 400, "tile: expected one of false, true")
    assert_problem(send(client, png, "?tile=true", accept="image/png"), 400, "no verdict on a tile")
    assert send(client, png, "?tile=false").json() == send(client, png).json()
    files = [("image", ("a.png", png)), ("image", ("b.png", png))]
    assert_problem(client.post("/analyze?tile=true", files=files), 400, "Too many files")


def test_analyze_tile_limit_of_the_body_holds_over_all_its_pictures(
    open_client: OpenClient, png: bytes
) -> None:
    small = open_client(max_files=3, max_body_mb=2.5 * len(png) / 1e6)
    files = [("image", (f"{index}.png", png)) for index in range(3)]
    assert small.post("/analyze?tile=true", files=files[:2]).status_code == 200
    assert_problem(small.post("/analyze?tile=true", files=files), 413, "at most|larger|limit")


def _encoded(pixels: np.ndarray[Any, Any]) -> bytes:
    return bytes(cv2.imencode(".png", pixels)[1])


@pytest.mark.parametrize(
    ("data", "status", "words"),
    [
        (b"", 400, "empty"),
        (b"%PDF-1.7", 415, "none of BMP, JPEG"),
        (b"\x89PNG\r\n\x1a\n broken", 400, "damaged|decoded"),
        (b"\xff\xd8\xff broken", 400, "damaged|decoded"),
    ],
)
def test_analyze_what_is_no_picture_is_refused(
    client: TestClient, data: bytes, status: int, words: str
) -> None:
    assert_problem(send(client, data), status, words)


def test_analyze_bomb_is_refused_before_it_is_decoded(open_client: OpenClient) -> None:
    file = io.BytesIO()
    Image.new("1", (9_000, 9_000)).save(file, "PNG")
    assert_problem(send(open_client(), file.getvalue()), 413, "9000 x 9000 px; expected at most")


def test_analyze_body_that_is_zipped_is_415_with_the_reason(client: TestClient) -> None:
    body, kind = gzip.compress(b"--b--"), "multipart/form-data; boundary=b"
    headers = {"Content-Type": kind, "Content-Encoding": "gzip"}
    reply = client.post("/analyze", content=body, headers=headers)
    assert_problem(reply, 415, "without Content-Encoding")
    assert reply.headers["accept-encoding"] == "identity"


def test_analyze_form_without_the_field_or_no_form_is_refused(client: TestClient) -> None:
    assert_problem(client.post("/analyze", files={"picture": b"x"}), 400, "no such field")
    assert_problem(client.post("/analyze", files={"other": (None, "x")}), 400, "no such field")
    text = client.post("/analyze", files={"image": (None, "x")})
    assert_problem(text, 400, "a text there")
    assert_problem(client.post("/analyze", json={}), 415, "multipart/form-data")
    bare = client.post("/analyze", content=b"x", headers={"content-type": "multipart/form-data"})
    assert_problem(bare, 400, "boundary")


@pytest.mark.parametrize("cut", [2, 9, 100])
def test_analyze_form_that_is_cut_off_gets_no_verdict_on_its_first_pictures(
    open_client: OpenClient, png: bytes, cut: int
) -> None:
    head = b'--x\r\nContent-Disposition: form-data; name="image"; filename="a"\r\n\r\n'
    whole = (head + png + b"\r\n") * 3 + b"--x--"
    kind = {"Content-Type": "multipart/form-data; boundary=x"}
    client = open_client(max_files=3)
    assert client.post("/analyze?tile=true", content=whole, headers=kind).status_code == 200
    reply = client.post("/analyze?tile=true", content=whole[:-cut], headers=kind)
    assert_problem(reply, 400, "ends before its last boundary")


def test_analyze_leaves_no_picture_out_that_came_by_another_name_or_as_a_text(
    open_client: OpenClient, png: bytes
) -> None:
    client = open_client(max_files=3)
    file = ("a.png", png)
    other = client.post("/analyze?tile=true", files=[("image", file), ("image2", file)])
    assert_problem(other, 400, "a file is in the field 'image2'")
    text = client.post("/analyze?tile=true", files=[("image", file), ("image", (None, "x"))])
    assert_problem(text, 400, "a text there")


@pytest.mark.parametrize(
    ("bad", "status", "words"),
    [
        (b"", 400, "picture 2 of 3: the file in the field 'image' is empty"),
        (b"%PDF-1.7", 415, "picture 2 of 3: the file in the field 'image' is none of"),
        (b"\x89PNG\r\n\x1a\n broken", 400, "picture 2 of 3: the picture .* is damaged"),
        (_encoded(np.zeros((101, 100), np.uint8)), 413, "picture 2 of 3: the picture .* expected"),
    ],
)
def test_analyze_says_which_of_several_pictures_is_refused(
    open_client: OpenClient, png: bytes, bad: bytes, status: int, words: str
) -> None:
    client = open_client(max_files=3, max_pixels=10_000)
    files = [("image", (f"{index}.png", data)) for index, data in enumerate((png, bad, png))]
    assert_problem(client.post("/analyze?mask=none", files=files), status, words)


@pytest.mark.parametrize("query", ["?tile=true&tile=false", "?mask=rle&mask=none"])
def test_analyze_word_that_is_given_twice_is_refused(
    client: TestClient, png: bytes, query: str
) -> None:
    assert_problem(send(client, png, query), 400, "expected one word, got")


def test_analyze_body_over_the_limit_is_413_counted_or_declared(open_client: OpenClient) -> None:
    client = open_client(max_body_mb=0.01)
    assert_problem(send(client, bytes(20_000)), 413, "larger than 10,000 bytes")
    head = {"content-type": "multipart/form-data; boundary=x"}
    chunks = client.post("/analyze", content=(bytes(5000) for _ in range(4)), headers=head)
    assert chunks.status_code in (400, 413)
    assert chunks.headers["content-type"] == PROBLEM


def test_analyze_media_types_in_capitals_are_the_same(client: TestClient, png: bytes) -> None:
    form = b'--x\r\nContent-Disposition: form-data; name="image"; filename="a"\r\n\r\n' + png
    head = {"Content-Type": "Multipart/Form-Data; Boundary=x", "Accept": "Application/JSON"}
    reply = client.post("/analyze", content=form + b"\r\n--x--\r\n", headers=head)
    assert reply.status_code == 200


def test_analyze_head_over_the_limit_is_431_before_any_key_is_looked_at(
    open_client: OpenClient, png: bytes
) -> None:
    client = open_client(api_keys=new_key("a")[1])
    assert_problem(send(client, png, x="a" * 70_000), 431, "65,536 bytes")


def test_analyze_picture_over_the_decoding_budget_is_413_and_counted(
    open_client: OpenClient, png: bytes, monkeypatch: pytest.MonkeyPatch
) -> None:
    client, file = open_client(), io.BytesIO()
    Image.fromarray(np.random.default_rng(1).integers(0, 256, (2000, 2000), np.uint8)).save(
        file, "WEBP"
    )
    monkeypatch.setattr(Budget, "cpu_s", lambda *_: 0.01)
    assert_problem(send(client, file.getvalue()), 413, "more CPU time to decode than expected")
    text = client.get("/metrics").text
    assert 'magtiles_decoders_ended_total{cause="cpu"} 1.0' in text
    monkeypatch.undo()
    assert send(client, png).status_code == 200


def test_analyze_format_outside_the_allow_list_is_415(open_client: OpenClient, png: bytes) -> None:
    assert_problem(send(open_client(formats="JPEG"), png), 415, "none of JPEG")


def test_analyze_without_a_place_is_503_with_retry_after(
    open_client: OpenClient, png: bytes
) -> None:
    client = open_client(max_in_flight=1)
    with client.app.state.analyzer.gate.entered():  # type: ignore[attr-defined]
        reply = send(client, png)
    assert_problem(reply, 503, "try again")
    assert int(reply.headers["retry-after"]) >= 1
    assert send(client, png).status_code == 200


def test_analyze_too_slow_is_503_and_the_service_goes_on(
    open_client: OpenClient, png: bytes, monkeypatch: pytest.MonkeyPatch
) -> None:
    client = open_client(timeout_s=0.2)
    batcher = client.app.state.analyzer.batcher  # type: ignore[attr-defined]
    with monkeypatch.context() as patch:
        patch.setattr(batching.Batcher, "submit", lambda *_: __import__("asyncio").sleep(30))
        reply = send(client, png)
    assert_problem(reply, 503, "no answer within 0.2 s; try again in 1 s")
    assert reply.headers["retry-after"] == "1"
    assert len(batcher) == 0
    gate = client.app.state.analyzer.gate  # type: ignore[attr-defined]
    assert (gate.accepted, gate.answered, gate.expired) == (1, 0, 1)
    assert "magtiles_expired_total 1.0" in client.get("/metrics").text


def test_analyze_picture_that_takes_longer_than_a_request_has_is_not_told_to_come_again(
    open_client: OpenClient, png: bytes
) -> None:
    client = open_client(timeout_s=5)
    client.app.state.analyzer.gate.measured(10**9, 10**9)  # type: ignore[attr-defined]
    reply = send(client, png)
    assert_problem(
        reply, 503, r"no answer within 5 s: [\d,]+ px take about \d+ s here; send smaller"
    )
    assert "retry-after" not in reply.headers


def test_analyze_failing_model_is_503_that_tells_nothing_of_it(
    open_client: OpenClient, png: bytes
) -> None:
    client = open_client()
    client.app.state.analyzer.batcher._segmenter.close()  # type: ignore[attr-defined]
    assert_problem(send(client, png), 503, "the model failed on this request; try again")


def test_analyze_defect_of_ours_is_500_without_a_stack(
    open_client: OpenClient, png: bytes, monkeypatch: pytest.MonkeyPatch
) -> None:
    client = open_client()
    monkeypatch.setattr("magtiles_seg.serve.analyze._finish", lambda *_: 1 / 0)
    assert_problem(send(client, png), 500, "its log says why")


def test_analyze_with_keys_asks_for_one_of_them(open_client: OpenClient, png: bytes) -> None:
    (old, first), (new, second) = new_key("old"), new_key("new")
    client = open_client(api_keys=f"{first},{second}")
    refused = send(client, png)
    assert_problem(refused, 401, "expected a valid key")
    assert refused.headers["www-authenticate"] == "Bearer"
    assert send(client, png, authorization=f"Bearer {old}").status_code == 200
    assert send(client, png, **{"X-API-Key": new}).status_code == 200
    assert client.get("/livez").status_code == 200


def test_cors_is_off_unless_an_origin_is_named(
    client: TestClient, open_client: OpenClient, png: bytes
) -> None:
    page = "https://line.example"
    assert "access-control-allow-origin" not in send(client, png, origin=page).headers
    open_to_page = open_client(cors_origins=page)
    assert send(open_to_page, png, origin=page).headers["access-control-allow-origin"] == page
    other = send(open_to_page, png, origin="https://else.example")
    assert "access-control-allow-origin" not in other.headers


def assert_ready(client: TestClient) -> None:
    """Check that the golden tile, which may still be on its way, is answered."""
    end = time.monotonic() + 60
    while client.get("/readyz").status_code != 200 and time.monotonic() < end:
        time.sleep(0.05)
    assert client.get("/readyz").status_code == 200


def test_readyz_is_ready_where_the_golden_tile_is_larger_than_what_is_let_in(
    open_client: OpenClient,
) -> None:
    assert_ready(open_client(max_pixels=1000))


def test_readyz_is_ready_when_warm_and_says_so_when_draining(open_client: OpenClient) -> None:
    client = open_client()
    assert_ready(client)
    client.app.state.readiness.draining = True  # type: ignore[attr-defined]
    reply = client.get("/readyz")
    assert_problem(reply, 503, "about to end")
    assert reply.headers["connection"] == "close"
    assert client.get("/livez").text == "alive\n"


def test_metrics_count_requests_stages_verdicts_and_inputs(
    open_client: OpenClient, png: bytes
) -> None:
    client = open_client()
    verdict = send(client, png).headers["x-verdict"]
    send(client, b"")
    client.get("/secret/path")
    assert_ready(client)
    text = client.get("/metrics").text
    for line in (
        'magtiles_requests_total{path="/analyze",status="200"} 1.0',
        'magtiles_requests_total{path="/analyze",status="400"} 1.0',
        'magtiles_requests_total{path="other",status="404"} 1.0',
        f'magtiles_pictures_total{{verdict="{verdict}"}} 1.0',
        'magtiles_stage_seconds_count{stage="decode"} 1.0',
        "magtiles_in_flight 0.0",
        "magtiles_ready 1.0",
    ):
        assert line in text
    level = re.search(r'input_mean\{feature="gray_level"\} ([\d.]+)', text)
    assert level is not None
    assert 10 < float(level[1]) < 245
    assert "secret" not in text


def test_pages_need_nothing_from_elsewhere_and_escape_what_they_show(client: TestClient) -> None:
    for path in ("/", "/docs"):
        reply = client.get(path)
        assert reply.headers["content-type"].startswith("text/html")
        assert not re.search(r"<script \w|src=[\"']|https?://", reply.text)
        assert "default-src 'none'; connect-src 'self'" in reply.text
    assert "?include=" in client.get("/docs").text


def test_openapi_names_every_route_and_asks_for_keys_only_where_set(
    client: TestClient, open_client: OpenClient
) -> None:
    document = client.get("/openapi.json").json()
    assert document["openapi"].startswith("3.1")
    routes = {route.path for route in client.app.routes}  # type: ignore[attr-defined]
    assert set(document["paths"]) == routes
    assert "securitySchemes" not in json.dumps(document)
    guarded = open_client(api_keys=new_key("a")[1]).get("/openapi.json").json()
    assert "401" in guarded["paths"]["/analyze"]["post"]["responses"]


def test_form_that_names_an_odd_codec_is_400_and_no_defect_of_ours(client: TestClient) -> None:
    form = b'--b\r\nContent-Disposition: form-data; name="image"\r\n\r\nx\r\n--b--\r\n'
    kind = "multipart/form-data; boundary=b; charset=undefined"
    assert client.post("/analyze", content=form, headers={"content-type": kind}).status_code == 400
