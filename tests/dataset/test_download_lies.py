"""Servers that lie, break and hang: the download ends, with the file or with the reason."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import numpy as np
import pytest

from magtiles_seg.dataset import download as module
from magtiles_seg.dataset.download import download
from magtiles_seg.errors import DataError

CONTENT = np.random.default_rng(1).bytes(300_000)
HALF = len(CONTENT) // 2
Answer = Callable[[BaseHTTPRequestHandler], None]
Serve = Callable[[Answer], str]


@pytest.fixture
def serve() -> Iterator[Serve]:
    """Return a function that starts a server with one answer for all, and gives a URL of it."""
    servers: list[ThreadingHTTPServer] = []

    def start(answer: Answer) -> str:
        class Handler(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                with suppress(OSError):  # the client has seen enough
                    answer(self)

            def log_message(self, *_: object) -> None:
                pass

        servers.append(ThreadingHTTPServer(("127.0.0.1", 0), Handler))
        servers[-1].daemon_threads = True
        threading.Thread(target=servers[-1].serve_forever, args=(0.01,), daemon=True).start()
        return f"http://127.0.0.1:{servers[-1].server_port}/tiles.zip"

    yield start
    for server in servers:
        server.shutdown()
        server.server_close()


def reply(to: BaseHTTPRequestHandler, status: int, body: bytes = b"", /, **headers: object) -> None:
    to.send_response(status)
    for name, value in headers.items():
        to.send_header(name.replace("_", "-"), str(value))
    to.end_headers()
    to.wfile.write(body)


def part_of(target: Path, size: int, version: str = '"one"') -> Path:
    target.with_name("x.part").write_bytes(CONTENT[:size])
    target.with_name("x.part.version").write_text(version)
    return target


def test_download_finished_part_is_taken_when_the_server_has_no_more(
    serve: Serve, tmp_path: Path
) -> None:
    asked: list[str] = []

    def answer(to: BaseHTTPRequestHandler) -> None:
        asked.append(to.headers["Range"])
        reply(to, 416, Content_Range=f"bytes */{len(CONTENT)}", Content_Length=0)

    target = part_of(tmp_path / "x", len(CONTENT))
    assert download(serve(answer), target, wait_s=0).read_bytes() == CONTENT
    assert asked == ["bytes=300000-"]
    assert [path.name for path in tmp_path.iterdir()] == ["x"]


@pytest.mark.parametrize("size", [100_000, len(CONTENT), len(CONTENT) + 9])
def test_download_part_that_the_server_refuses_to_go_on_with_starts_anew(
    serve: Serve, tmp_path: Path, size: int
) -> None:
    def answer(to: BaseHTTPRequestHandler) -> None:
        if to.headers["Range"]:
            reply(to, 416, Content_Range="bytes */77", Content_Length=0)
        else:
            reply(to, 200, CONTENT, Content_Length=len(CONTENT), ETag='"one"')

    target = part_of(tmp_path / "x", size)
    assert download(serve(answer), target, wait_s=0).read_bytes() == CONTENT


@pytest.mark.parametrize(
    ("version", "content_range"),
    [
        ('"two"', f"bytes {HALF}-{len(CONTENT) - 1}/{len(CONTENT)}"),
        ("", f"bytes {HALF}-{len(CONTENT) - 1}/{len(CONTENT)}"),
        ('"one"', f"bytes 0-{len(CONTENT) - 1}/{len(CONTENT)}"),
        ('"one"', f"bytes {HALF}-{len(CONTENT) - 1}/*"),
        ('"one"', "nonsense"),
        ('"one"', ""),
    ],
)
def test_download_partial_answer_that_does_not_fit_is_never_glued_on(
    serve: Serve, tmp_path: Path, version: str, content_range: str
) -> None:
    def answer(to: BaseHTTPRequestHandler) -> None:
        if to.headers["Range"]:
            tags = {"ETag": version} if version else {}
            reply(to, 206, b"x" * HALF, Content_Length=HALF, Content_Range=content_range, **tags)
        else:
            reply(to, 200, CONTENT, Content_Length=len(CONTENT), ETag='"two"')

    target = part_of(tmp_path / "x", HALF)
    assert download(serve(answer), target, wait_s=0).read_bytes() == CONTENT


def test_download_partial_answer_longer_than_the_file_starts_anew(
    serve: Serve, tmp_path: Path
) -> None:
    def answer(to: BaseHTTPRequestHandler) -> None:
        if to.headers["Range"]:
            where = f"bytes {HALF}-{len(CONTENT) - 1}/{len(CONTENT)}"
            more = CONTENT[HALF:] + b"more"
            reply(to, 206, more, Content_Length=len(more), Content_Range=where, ETag='"one"')
        else:
            reply(to, 200, CONTENT, Content_Length=len(CONTENT), ETag='"one"')

    target = part_of(tmp_path / "x", HALF)
    assert download(serve(answer), target, wait_s=0).read_bytes() == CONTENT


def test_download_a_crumb_with_each_answer_is_given_up_after_few_requests(
    serve: Serve, tmp_path: Path
) -> None:
    asked: list[str] = []

    def answer(to: BaseHTTPRequestHandler) -> None:
        asked.append(to.headers["Range"] or "")
        start = int(asked[-1][6:-1]) if asked[-1] else 0
        where = f"bytes {start}-{len(CONTENT) - 1}/{len(CONTENT)}"
        reply(
            to, 206 if start else 200, CONTENT[start : start + 10],
            Content_Length=len(CONTENT) - start, ETag='"one"', Content_Range=where,
        )  # fmt: skip

    with pytest.raises(DataError, match=r"gave up after 4 transfers .* 40 bytes are kept"):
        download(serve(answer), tmp_path / "x", attempts=4, wait_s=0)
    assert asked == ["", "bytes=10-", "bytes=20-", "bytes=30-"]


def test_download_that_never_ends_is_bounded_in_requests(
    serve: Serve, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "MAX_TRANSFERS", 3)
    asked: list[str] = []

    def answer(to: BaseHTTPRequestHandler) -> None:
        asked.append(to.headers["Range"] or "")
        reply(to, 200, bytes(70_000 + 1000 * len(asked)), Content_Length=10**9)

    with pytest.raises(DataError, match="the connection broke"):
        download(serve(answer), tmp_path / "x", wait_s=0)
    assert len(asked) == 3


def test_download_endless_body_is_bounded_in_bytes_and_leaves_nothing(
    serve: Serve, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "MAX_DOWNLOAD_BYTES", 1 << 20)

    def answer(to: BaseHTTPRequestHandler) -> None:
        reply(to, 200, ETag='"one"')
        while True:
            to.wfile.write(bytes(1 << 16))

    with pytest.raises(DataError, match="exceeds the bound of 1048576 bytes"):
        download(serve(answer), tmp_path / "x")
    assert list(tmp_path.iterdir()) == []


def test_download_that_trickles_is_given_up(
    serve: Serve, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "_STALL_S", 0.2)

    def answer(to: BaseHTTPRequestHandler) -> None:
        reply(to, 200, Content_Length=10**6)
        for _ in range(100):
            to.wfile.write(b"x")
            time.sleep(0.02)

    with pytest.raises(DataError, match=r"bytes in .* s are too slow; gave up after 2"):
        download(serve(answer), tmp_path / "x", attempts=2, wait_s=0)


@pytest.mark.parametrize("length", ["many", "-5"])
def test_download_with_a_senseless_length_is_read_to_its_end(
    serve: Serve, tmp_path: Path, length: str
) -> None:
    url = serve(lambda to: reply(to, 200, CONTENT, Content_Length=length))
    assert download(url, tmp_path / "x", wait_s=0).read_bytes() == CONTENT


def test_download_waits_as_long_as_the_server_asks_within_reason(
    serve: Serve, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pauses: list[float] = []
    monkeypatch.setattr(time, "sleep", pauses.append)
    for seconds in ("7", "9999", "soon"):
        url = serve(lambda to: reply(to, 503, Retry_After=seconds, Content_Length=0))  # noqa: B023
        with pytest.raises(DataError, match="the server answers HTTP Error 503"):
            download(url, tmp_path / "x", attempts=2)
    assert pauses[:2] == [7, 60]
    assert 0.5 <= pauses[2] <= 1.5


def test_download_pauses_grow_and_differ(
    serve: Serve, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pauses: list[float] = []
    monkeypatch.setattr(time, "sleep", pauses.append)
    url = serve(lambda to: reply(to, 500, Content_Length=0))
    with pytest.raises(DataError, match="500"):
        download(url, tmp_path / "x", attempts=5)
    assert len(pauses) == 4
    assert all(0.5 * 2**n <= pause <= 1.5 * 2**n for n, pause in enumerate(pauses))
    assert len({pause / 2**n for n, pause in enumerate(pauses)}) == 4


@pytest.mark.parametrize("url", ["http://[::1/x", "http://exa mple/\ud800", "http://:x/y"])
def test_download_address_that_is_none_is_a_data_error(tmp_path: Path, url: str) -> None:
    with pytest.raises(DataError, match="cannot download"):
        download(url, tmp_path / "x", attempts=1, wait_s=0)


def test_download_onto_what_cannot_be_written_is_no_broken_connection(
    serve: Serve, tmp_path: Path
) -> None:
    asked: list[int] = []

    def answer(to: BaseHTTPRequestHandler) -> None:
        asked.append(1)
        reply(to, 200, CONTENT, Content_Length=len(CONTENT))

    (tmp_path / "x.part").mkdir()
    with pytest.raises(DataError, match=r"cannot write .*x\.part: Is a directory"):
        download(serve(answer), tmp_path / "x", wait_s=0)
    assert len(asked) == 1


def test_download_part_with_a_version_that_is_no_header_is_not_sent(
    serve: Serve, tmp_path: Path
) -> None:
    def answer(to: BaseHTTPRequestHandler) -> None:
        assert to.headers["Range"] is None
        reply(to, 200, CONTENT, Content_Length=len(CONTENT))

    target = part_of(tmp_path / "x", HALF, '"one"\r\nEvil: 1')
    assert download(serve(answer), target, wait_s=0).read_bytes() == CONTENT
