"""The raw interface of the demo, over true servers: alone, and mounted in the service."""
# ruff: noqa: ANN401

from __future__ import annotations

import http.server
import json
import os
import random
import runpy
import socket
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import httpx
import pytest

pytest.importorskip("gradio")

from magtiles_seg.demo.gate import FILE_BYTES
from magtiles_seg.demo.visitors import COOKIE
from magtiles_seg.regions import DEFECT_COLUMNS

HELP = runpy.run_path(str(Path(__file__).parents[1] / "stand_ins" / "demo_page.py"))
Demo, Page, file_data = HELP["Demo"], HELP["Page"], HELP["file_data"]
asked_tile = HELP["asked_tile"]
TOLD = (b"Traceback", b'File "', b"site-packages", b"/tmp", b"/root", b"/home", b"magtiles-demo-")


@pytest.fixture(scope="module")
def open_demo(
    model: Path, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Callable[..., Any]]:
    """Return a function that starts a demo, or gives the one that runs."""
    running: dict[str, Any] = {}
    with ExitStack() as stack:

        def start(how: str) -> Any:
            if how not in running:
                folder = tmp_path_factory.mktemp(how)
                demo = Demo(how, folder, "--model", str(model))
                running[how] = stack.enter_context(demo)
            return running[how]

        yield start


@pytest.fixture(params=["alone", "mounted"])
def demo(request: pytest.FixtureRequest, open_demo: Callable[..., Any]) -> Any:
    return open_demo(request.param)


@pytest.fixture
def page(demo: Any) -> Iterator[Any]:
    with Page(demo.url) as opened:
        yield opened


@pytest.fixture
def private(tmp_path: Path, png: bytes) -> Path:
    """A picture of the server's that nobody uploaded."""
    path = tmp_path / "private.png"
    path.write_bytes(png)
    return path


def test_own_upload_is_inspected_and_its_answer_can_be_fetched(page: Any, png: bytes) -> None:
    message = page.inspect(page.upload(png))
    assert message["success"]
    verdict, overlay = message["output"]["data"][4:6]
    assert "reject score" in verdict
    assert page.client.get(overlay[1]["url"]).headers["content-type"] == "image/jpeg"


def test_model_that_is_no_choice_is_refused(page: Any) -> None:
    body = {"fn_index": page.functions["threshold.change"], "session_hash": page.session}
    for model in ("/etc/passwd", "../x.onnx", None, 3, ["a"], ""):
        body["data"] = [*asked_tile("", key="example:0"), model]
        assert page.client.post("/gradio_api/queue/join", json=body).status_code == 400


def test_bad_file_after_a_good_one_gets_a_message_each_time(page: Any, png: bytes) -> None:
    assert page.inspect(page.upload(png))["success"]
    for _ in range(2):
        message = page.inspect(page.upload(b"not a picture"))
        assert message["success"]
        assert "No picture" in message["output"]["data"][4]
    assert page.inspect(page.upload(png))["success"]


def test_answer_as_files_carries_box_and_centroid_by_the_usual_names(page: Any, png: bytes) -> None:
    *_, json_button, csv_button, _, _, _ = page.inspect(page.upload(png))["output"]["data"]
    result = json.loads(page.client.get(json_button["value"]["url"]).content)
    assert {"verdict", "score", "defects", "decision", "model"} <= result.keys()
    head = page.client.get(csv_button["value"]["url"]).text.splitlines()[0].split(",")
    assert head[5:] == [*DEFECT_COLUMNS, "error", "tile_verdict", "tile_score", "doubt"]


def test_upload_that_is_cut_off_is_refused_and_not_stored_in_part(demo: Any, png: bytes) -> None:
    head = b'--x\r\nContent-Disposition: form-data; name="files"; filename="a.png"\r\n\r\n'
    reply = httpx.post(
        f"{demo.url}/gradio_api/upload",
        content=(head + png + b"\r\n") * 2,
        headers={"Content-Type": "multipart/form-data; boundary=x"},
    )
    assert reply.status_code == 400
    assert "ends before its last boundary" in reply.text


def test_client_that_keeps_no_cookies_can_use_what_it_uploaded(demo: Any, png: bytes) -> None:
    reply = httpx.post(f"{demo.url}/gradio_api/upload", files={"files": ("t.png", png)})
    with Page(demo.url) as page:
        page.client.cookies.clear()
        assert page.join(
            "asked-tile.change", asked_tile("file:1", file_data(*reply.json()))
        ).is_success


@pytest.mark.parametrize("function", ["asked-tile.change", "asked.change"])
def test_file_of_the_server_is_neither_read_nor_told_nor_copied(
    demo: Any, page: Any, private: Path, function: str
) -> None:
    link = private.with_name("link.png")
    link.symlink_to(private)
    inside = demo.files()[0]
    tried = [str(private), "/etc/passwd", "/dev/zero", "/proc/self/environ", str(link)]
    tried += [str(inside), f"files/../../{private.name}", f"files//{private}", "files/uploads", ""]
    tried += [f"files/{inside.parent.name}/{inside.name}", "files/\0", "files/" + "x" * 5000]
    before = len(demo.files())
    for path in tried:
        for entry in (file_data(path), file_data(path, url=f"file://{path}", is_stream=True)):
            many = [[entry], False, "files:1", 0.5, 0.5, 0]
            data = many if function == "asked.change" else asked_tile("file:1", entry)
            reply = page.join(function, data)
            assert reply.status_code in (400, 403), path
            assert private.name not in reply.text
    assert len(demo.files()) == before


def test_addresses_in_a_call_are_not_fetched(page: Any, png: bytes) -> None:
    asked: list[str] = []

    class Trap(http.server.BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            asked.append(self.path)
            self.send_response(200)
            self.end_headers()

    server = http.server.HTTPServer(("127.0.0.1", 0), Trap)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    url = f"http://127.0.0.1:{server.server_port}/secret.png"
    try:
        for entry in (file_data(url), file_data(url, url=url), file_data("data:image/png;base64,")):
            assert page.join("asked-tile.change", asked_tile("file:1", entry)).status_code == 403
        mine = page.upload(png)
        assert page.inspect({**mine, "url": url, "orig_name": url})["success"]
        assert page.client.get(f"/gradio_api/file={url}").status_code == 404
        assert page.client.get(f"/gradio_api/proxy={url}").status_code == 404
        data = {"image": file_data(url, url=url), "caption": None}
        event = {"index": 0, "value": data}
        assert page.call("examples.select", [], event_data=event)["success"]
    finally:
        server.shutdown()
        server.server_close()
    assert asked == []


def test_upload_of_another_visitor_or_page_is_refused(demo: Any, page: Any, png: bytes) -> None:
    mine = page.upload(png)
    with Page(demo.url) as other:
        assert other.join("asked-tile.change", asked_tile("file:1", mine)).status_code == 403
        assert other.client.get(f"/gradio_api/file={mine['path']}").status_code == 404
        other.client.cookies.clear()
        assert other.join("asked-tile.change", asked_tile("file:1", mine)).status_code == 403
    assert page.inspect(mine)["success"]
    page.session = "another-page"
    assert page.join("asked-tile.change", asked_tile("file:1", mine)).status_code == 403


def test_session_of_another_visitor_can_be_neither_read_nor_joined_nor_stopped(
    demo: Any, page: Any
) -> None:
    event = page.join("start.click", [0.3, None]).json()["event_id"]
    with Page(demo.url) as other:
        other.session = page.session
        assert other.join("start.click", [0.3, None]).status_code == 403
        query = {"session_hash": page.session}
        assert other.client.get("/gradio_api/queue/data", params=query).status_code == 403
        assert other.client.get(f"/gradio_api/heartbeat/{page.session}").status_code == 403
        body = {"session_hash": page.session, "fn_index": 0, "event_id": event}
        assert other.client.post("/gradio_api/cancel", json=body).status_code == 403
    body = {"session_hash": page.session, "fn_index": 0, "event_id": event}
    assert page.client.post("/gradio_api/cancel", json=body).json() == {"success": True}


@pytest.mark.parametrize("kind", ["file=", "file/"])
def test_files_of_the_server_are_not_served(demo: Any, private: Path, kind: str) -> None:
    folder = next(demo.folder.glob("magtiles-demo-*"))
    link = folder / "link.png"
    link.symlink_to(private)
    names = ["/etc/passwd", str(private), "/dev/zero", "files/link.png", "files/../log.txt"]
    names += ["files/%2e%2e/log.txt", str(link), "files", "files/", "%00", "files/" + "a/" * 900]
    try:
        for name in names:
            raw = f"{demo.url}/gradio_api/{kind}{name}"
            reply = httpx.get(raw)
            assert reply.status_code in (404, 405), name
            assert b"passwd" not in reply.content
    finally:
        link.unlink()


@pytest.mark.parametrize(
    ("method", "path"),
    [
        ("POST", "run/predict"),
        ("POST", "api/predict"),
        ("POST", "call/upload"),
        ("POST", "call/v2/upload"),
        ("GET", "call/upload/0"),
        ("POST", "component_server"),
        ("POST", "process_recording"),
        ("POST", "stream/0"),
        ("GET", "stream/a/b/1/playlist-file"),
        ("GET", "deep_link?session_hash=a"),
        ("GET", "startup-events"),
        ("GET", "info"),
        ("GET", "openapi.json"),
        ("GET", "app_id"),
        ("GET", "token"),
        ("GET", "dev/reload"),
        ("POST", "vibe-edit"),
        ("GET", "custom_component/a/client/b/c"),
        ("GET", "../monitoring/summary"),
        ("POST", "../login"),
        ("GET", "../svelte/x"),
    ],
)
def test_route_that_the_page_does_not_use_is_closed(demo: Any, method: str, path: str) -> None:
    reply = httpx.request(method, f"{demo.url}/gradio_api/{path}", json={"data": []})
    assert reply.status_code == 404


@pytest.mark.parametrize(
    "change",
    [
        {"data": None},
        {"data": []},
        {"data": [None, "", "", "example:0", 2.0, 0.5, 0]},
        {"data": [None, "", "", "example:0", float("nan"), 0.5, 0]},
        {"data": [None, "", "", "example:0", 10**400, 0.5, 0]},
        {"data": [None, "", "", "example:0", True, 0.5, 0]},
        {"data": asked_tile("file:1", {"path": "/etc/passwd"})},
        {"data": asked_tile("", key="x" * 1000)},
        {"data": asked_tile("file:/etc/passwd")},
        {"fn_index": 99},
        {"fn_index": True},
        {"fn_index": -1},
        {"session_hash": None},
        {"session_hash": "../.."},
        {"session_hash": "a" * 65},
    ],
)
def test_call_that_the_page_never_makes_is_refused(page: Any, change: dict[str, Any]) -> None:
    body = {"fn_index": page.functions["threshold.change"], "session_hash": page.session}
    body |= {"data": asked_tile("", key="example:0"), **change}
    if isinstance(body["data"], list):
        body["data"] = [*body["data"], *page.chosen[page.functions["threshold.change"]]]
    text = json.dumps(body).encode()
    reply = page.client.post("/gradio_api/queue/join", content=text)
    assert reply.status_code in (400, 403)
    assert reply.json()["detail"]


@pytest.mark.parametrize("function", ["stop.click", "sample.click", "picture.clear"])
def test_function_that_acts_in_the_browser_alone_cannot_be_called(page: Any, function: str) -> None:
    assert page.join(function, []).status_code == 400


@pytest.mark.parametrize("body", [b"[" * 200_000, b"\xff", b"1", b"", b'{"a": ' * 90_000])
def test_body_that_is_no_call_is_refused(page: Any, body: bytes) -> None:
    for path in ("queue/join", "cancel"):
        assert page.client.post(f"/gradio_api/{path}", content=body).status_code == 400


def test_body_larger_than_any_call_is_refused(page: Any) -> None:
    reply = page.client.post("/gradio_api/queue/join", content=b" " * 2_000_000)
    assert reply.status_code == 413


def test_slider_after_the_result_was_dropped_says_so_and_shows_no_other(page: Any) -> None:
    message = page.call("threshold.change", asked_tile("", key="x" * 32))
    verdict, overlay = message["output"]["data"][4:6]
    assert "give the picture again" in verdict
    assert overlay is None


def test_example_that_is_not_there_gives_a_message(page: Any) -> None:
    asked = page.call("examples.select", [], event_data={"index": 77, "value": ""})
    (what,) = asked["output"]["data"]
    message = page.call("asked-tile.change", asked_tile(what))
    assert "No example" in message["output"]["data"][4]


def test_fifth_call_of_a_visitor_waits_for_the_others(page: Any) -> None:
    replies = [page.join("start.click", [0.3, None]) for _ in range(6)]
    assert {reply.status_code for reply in replies} == {200, 429}
    assert replies[-1].headers["retry-after"]
    for reply in replies[:4]:
        body = {"session_hash": page.session, "fn_index": page.functions["start.click"]}
        page.client.post("/gradio_api/cancel", json={**body, "event_id": reply.json()["event_id"]})


def large(demo: Any, before: set[Path]) -> list[Path]:
    """Return the new files above 1 MB: answers to earlier tests may still come, and are small."""
    return [file for file in set(demo.files()) - before if file.stat().st_size > 1_000_000]


def test_file_above_the_limit_is_refused_and_leaves_nothing(demo: Any, page: Any) -> None:
    before = set(demo.files())
    files = {"files": ("large.png", bytes(FILE_BYTES + 1))}
    assert page.client.post("/gradio_api/upload", files=files).status_code == 413
    assert not large(demo, before)


def test_file_above_the_services_limit_is_refused_in_words_and_named_in_the_page(
    tmp_path: Path, model: Path
) -> None:
    flags = ("--model", str(model), "--max-body-mb", "0.05")
    with Demo("mounted", tmp_path, *flags) as demo, Page(demo.url) as page:
        assert page.client.get("/config").json()["max_file_size"] == 50_000
        page.upload(bytes(50_000))
        files = {"files": ("large.png", bytes(50_001))}
        refused = page.client.post("/gradio_api/upload", files=files)
        assert (refused.status_code, refused.text) == (413, "a file is larger than 50 kB")


def test_refused_upload_is_told_in_words_for_the_page_shows_all_of_them(page: Any) -> None:
    files = [("files", (f"{number}.png", b"x")) for number in range(101)]
    reply = page.client.post("/gradio_api/upload", files=files)
    assert reply.status_code == 400
    assert reply.headers["content-type"].startswith("text/plain")
    assert reply.text.startswith("the form cannot be read: Too many files.")


@pytest.mark.parametrize("kind", ["", "application/json", "multipart/form-data", "text/plain"])
def test_upload_that_is_no_form_is_refused(page: Any, kind: str) -> None:
    headers = {"content-type": kind}
    reply = page.client.post("/gradio_api/upload", content=b"x" * 100, headers=headers)
    assert reply.status_code == 400


def test_uploads_that_end_early_leave_nothing(demo: Any) -> None:
    before = set(demo.files())
    head = (
        b"POST /demo/gradio_api/upload HTTP/1.1\r\nHost: x\r\nContent-Length: 9000000\r\n"
        b"Content-Type: multipart/form-data; boundary=b\r\n\r\n--b\r\n"
        b'Content-Disposition: form-data; name="files"; filename="a.png"\r\n\r\n'
    )
    for _ in range(5):
        with socket.create_connection(("127.0.0.1", demo.port)) as connection:
            connection.sendall(head + bytes(3_000_000))
    time.sleep(0.5)
    assert not large(demo, before)


def test_upload_of_a_page_is_sent_back_as_a_file_and_never_shown(page: Any) -> None:
    mine = page.upload(b"<script>alert(1)</script>", "a.html")
    reply = page.client.get(f"/gradio_api/file={mine['path']}")
    assert reply.headers["content-disposition"].startswith("attachment")
    assert reply.headers["content-type"] == "application/octet-stream"
    assert reply.headers["x-content-type-options"] == "nosniff"


def test_page_of_another_origin_is_not_allowed_to_read(demo: Any) -> None:
    headers = {"Origin": "https://evil.example", "Host": "demo.example"}
    reply = httpx.get(f"{demo.url}/config", headers=headers)
    assert "access-control-allow-origin" not in reply.headers


@pytest.mark.parametrize("how", ["alone", "mounted"])
def test_open_streams_end_at_sigterm_and_the_folder_is_removed(
    how: str, model: Path, tmp_path: Path, png: bytes
) -> None:
    with Demo(how, tmp_path, "--model", str(model)) as demo, Page(demo.url) as page:
        page.upload(png)
        page.join("start.click", [0.3, None])
        query = {"session_hash": page.session}
        heartbeat = f"/gradio_api/heartbeat/{page.session}"
        with (
            page.client.stream("GET", "/gradio_api/queue/data", params=query) as data,
            page.client.stream("GET", heartbeat) as beat,
        ):
            assert (data.status_code, beat.status_code) == (200, 200)
            assert next(beat.iter_lines())
            assert demo.stop() < 8
    assert demo.files() == []
    assert b"Traceback" not in demo.log.read_bytes()


@pytest.mark.parametrize("how", ["alone", "mounted"])
def test_uploads_and_calls_under_way_end_at_sigterm_and_bring_no_folder_back(
    how: str, model: Path, tmp_path: Path
) -> None:
    head = b"POST /demo/gradio_api/upload HTTP/1.1\r\nHost: x\r\nContent-Length: 9000000\r\n"
    head += b"Content-Type: multipart/form-data; boundary=b\r\n\r\n--b\r\n"
    with (
        Demo(how, tmp_path, "--model", str(model)) as demo,
        Page(demo.url) as page,
        socket.create_connection(("127.0.0.1", demo.port)) as upload,
    ):
        upload.sendall(head)
        time.sleep(0.3)
        assert page.join("asked.change", [None, False, "synthetic:1", 0.5, 0.5, 0]).is_success
        assert demo.stop() < 8
        assert upload.recv(1000).startswith(b"HTTP/1.1 503")
    assert demo.files() == []
    assert b"Traceback" not in demo.log.read_bytes()


def test_head_without_an_end_is_refused(demo: Any) -> None:
    with socket.create_connection(("127.0.0.1", demo.port), timeout=20) as connection:
        connection.sendall(b"GET / HTTP/1.1\r\nHost: x\r\nX: " + b"a" * 100_000)
        assert connection.recv(1000).startswith(b"HTTP/1.1 431")


@pytest.mark.parametrize("path", ["/static/" + "a" * 300, "/assets/" + "a/" * 2100])
def test_path_longer_than_any_file_has_is_404(demo: Any, path: str) -> None:
    assert httpx.get(f"{demo.url}{path}").status_code == 404
    assert b"Traceback" not in demo.log.read_bytes()


def test_stream_of_a_page_that_asked_nothing_is_404(demo: Any, page: Any) -> None:
    query = {"session_hash": page.session}
    assert page.client.get("/gradio_api/queue/data", params=query).status_code == 404
    assert b"Traceback" not in demo.log.read_bytes()


def test_visitor_with_twelve_open_pages_opens_no_more_and_others_still_do(
    demo: Any, page: Any
) -> None:
    with ExitStack() as opened:

        def beat(client: httpx.Client, number: int) -> int:
            request = client.stream("GET", f"/gradio_api/heartbeat/{page.session}{number}")
            return opened.enter_context(request).status_code

        assert [beat(page.client, number) for number in range(13)] == [200] * 12 + [503]
        other = opened.enter_context(httpx.Client(base_url=demo.url, timeout=60))
        other.get("/")
        assert beat(other, 99) == 200


def test_upload_that_names_an_odd_codec_is_400(demo: Any) -> None:
    form = b'--b\r\nContent-Disposition: form-data; name="files"; filename="x"\r\n\r\nx\r\n--b--'
    headers = {"content-type": "multipart/form-data; boundary=b; charset=undefined"}
    reply = httpx.post(f"{demo.url}/gradio_api/upload", content=form, headers=headers)
    assert reply.status_code == 400
    assert "charset=utf-8" in reply.text


def test_service_shows_no_demo_unless_asked(server_class: Any, model: Path) -> None:
    environment = {"MAGTILES_DEMO": ""}
    with server_class("--model", str(model), "--demo", "false", environment=environment) as server:
        assert httpx.get(f"{server.url}/demo/").status_code == 404
        assert "demo" not in httpx.get(server.url).text


def test_mutated_requests_get_answers_that_tell_nothing(demo: Any, png: bytes) -> None:
    assert fuzz(demo, png, count=150) == set()


@pytest.mark.endurance
@pytest.mark.parametrize("how", ["alone", "mounted"])
@pytest.mark.parametrize("count", [int(os.environ.get("FUZZ_COUNT", "10000"))])
def test_mutated_requests_change_neither_memory_nor_disk(
    how: str, count: int, model: Path, tmp_path: Path, png: bytes
) -> None:
    with Demo(how, tmp_path, "--model", str(model)) as demo:
        fuzz(demo, png, count=1500)
        memory_mb = demo.memory_mb()
        assert fuzz(demo, png, count=count) == set()
        assert demo.memory_mb() < 1.2 * memory_mb
        assert sum(path.stat().st_size for path in demo.files()) < 256e6
        assert b"Traceback" not in demo.log.read_bytes()


def fuzz(demo: Any, png: bytes, count: int) -> set[str]:
    """Send mutated requests and return what is wrong with the answers."""
    source = random.Random(7)
    wrong: set[str] = set()
    page = Page(demo.url)
    for number in range(count):
        if number % 50 == 49:
            page.client.close()
            page = Page(demo.url)
        mine = page.upload(png)["path"] if number % 10 == 0 else "files/x"
        method, path, options = mutated(source, page, mine)
        try:
            with page.client.stream(method, path, timeout=20, **options) as reply:
                content = first_of(reply)
        except (httpx.InvalidURL, UnicodeEncodeError):
            continue
        told = [mark for mark in TOLD if mark in content]
        if reply.status_code == 500 or told:
            wrong.add(f"{method} {path[:200]} {str(options)[:500]}: {reply.status_code} {told}")
    page.client.close()
    return wrong


def first_of(reply: httpx.Response) -> bytes:
    """Return an answer, or the beginning of a stream."""
    content = b""
    for part in reply.iter_bytes():
        content += part
        if "event-stream" in reply.headers.get("content-type", "") or len(content) > 1e6:
            break
    return content


def mutated(source: random.Random, page: Any, mine: str) -> tuple[str, str, dict[str, Any]]:
    """Return the method, path and options of a request that is nearly right."""
    session = source.choice([page.session] * 4 + [odd(source)])
    kind = source.randrange(8)
    if kind < 4:
        _, number = source.choice(sorted(page.functions.items()))
        entry = source.choice([file_data(mine), file_data(str(odd(source))), odd(source)])
        data = [*asked_tile("file:1", entry), *page.chosen[number]]
        data = data[: source.choice([0, 1, 3, 8, 8, 8])]
        body: Any = {"fn_index": number, "session_hash": session, "data": data}
        body["event_data"] = source.choice([None, {"index": odd(source)}, odd(source)])
        body["trigger_id"] = odd(source)
        if data and source.random() < 0.5:
            data[source.randrange(len(data))] = odd(source)
        if source.random() < 0.3:
            body[source.choice(["fn_index", "data", "event_id", "batched", "x"])] = odd(source)
        return "POST", "/gradio_api/queue/join", {"content": bent(source, json.dumps(body))}
    if kind == 4:
        body = {"fn_index": odd(source), "session_hash": session, "event_id": odd(source)}
        return "POST", "/gradio_api/cancel", {"content": bent(source, json.dumps(body))}
    if kind == 5:
        name = source.choice(["a.png", "../../a", "a\0b", "é" * 300, "", ".", "CON"])
        content = source.randbytes(source.choice([0, 10, 5000]))
        field = source.choice(["files", "file", ""])
        return "POST", "/gradio_api/upload", {"files": {field: (name, content)}}
    verb = source.choice(["GET", "POST", "PUT", "DELETE", "HEAD", "OPTIONS"])
    route = source.choice(ROUTES).replace("{}", str(odd(source))[:300])
    return verb, route, {}


ROUTES = (
    *("/", "/config", "/theme.css", "/assets/{}", "/static/{}", "/monitoring/{}", "/login", "/{}"),
    *("/gradio_api/file={}", "/gradio_api/file=files/{}", "/gradio_api/proxy={}"),
    *("/gradio_api/queue/data?session_hash={}", "/gradio_api/heartbeat/{}"),
    *("/gradio_api/run/{}", "/gradio_api/call/{}", "/gradio_api/upload_progress?upload_id={}"),
    *("/gradio_api/{}", "/gradio_api/reset", "/gradio_api/stream/{}/close", "/config?deep_link={}"),
)


def odd(source: random.Random) -> Any:
    """Return a value that nobody expects."""
    numbers = [None, True, -1, 0, 2**31, 10**30, 1e308, float("nan")]
    texts = ["", "a", "\0", "../..", "\ud800", "%2e%2e", "/etc/passwd", "/dev/zero", "x" * 3000]
    addresses = ["http://127.0.0.1:1/", "data:image/png;base64,AA", "file:///etc/passwd"]
    objects = [[], {}, [[[[]]]], {"path": "/etc/passwd"}, {"path": None, "meta": 3}]
    return source.choice([*numbers, *texts, *addresses, *objects])


def bent(source: random.Random, text: str) -> bytes:
    """Return a text's bytes, sometimes with a few of them changed."""
    content = bytearray(text.encode())
    for _ in range(source.choice([0, 0, 0, 1, 3])):
        content[source.randrange(len(content))] = source.randrange(256)
    return bytes(content)


def test_visitor_is_known_by_a_cookie_that_scripts_cannot_read(demo: Any) -> None:
    cookie = httpx.get(f"{demo.url}/").headers["set-cookie"]
    assert cookie.startswith(f"{COOKIE}=")
    assert "HttpOnly" in cookie
    assert "SameSite=Lax" in cookie
    secure = httpx.get(f"{demo.url}/", headers={"X-Forwarded-Proto": "https"})
    assert "Secure" in secure.headers["set-cookie"]
