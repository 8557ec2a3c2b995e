"""Raw sockets against both of uvicorn's parsers: heads without an end or measure."""

from __future__ import annotations

import json
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from typing import Any

import pytest

pytest.importorskip("uvicorn")
pytest.importorskip("httptools")

import uvicorn
from starlette.applications import Starlette
from starlette.middleware import Middleware
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from magtiles_seg.serve import guard
from magtiles_seg.serve.envelope import Envelope
from magtiles_seg.serve.metrics import Metrics

HEAD = b"GET / HTTP/1.1\r\nHost: x\r\n"


class Calm:
    """Stands in for `Readiness`."""

    draining = False


async def echo(request: Request) -> Response:
    """Answer without reading the body unless asked to, with it, or with a long answer."""
    if "read" in request.query_params:
        await request.body()
    if "mirror" in request.query_params:
        return Response(await request.body())
    return Response(bytes(int(request.query_params.get("size", 2))))


@pytest.fixture(scope="module", params=[guard.GuardedHttpTools, guard.GuardedH11])
def port(request: pytest.FixtureRequest) -> Iterator[int]:
    patch = pytest.MonkeyPatch()
    for name in ("HEAD_S", "BODY_S", "STALL_S", "LINGER_S"):
        patch.setattr(guard, name, 1.0)
    patch.setattr(guard, "UNSENT_BYTES", 60_000_000)
    calm: Any = Calm()
    app = Starlette(
        routes=[Route("/", echo, methods=["GET", "POST"])],
        middleware=[Middleware(Envelope, Metrics(), calm, headers={}, max_body_bytes=100_000_000)],
    )
    config = uvicorn.Config(app, port=0, log_level="critical", http=request.param, ws="none")
    server = uvicorn.Server(config)
    thread = threading.Thread(target=server.run, daemon=True)
    thread.start()
    while not server.started:
        time.sleep(0.01)
    yield server.servers[0].sockets[0].getsockname()[1]
    server.should_exit = True
    thread.join(20)
    patch.undo()
    assert not thread.is_alive()


def connected(port: int) -> socket.socket:
    connection = socket.create_connection(("127.0.0.1", port))
    connection.settimeout(20)
    return connection


def told(connection: socket.socket) -> tuple[int, Any]:
    """Return the status and the problem of an answer after which the server closes."""
    answer = b""
    while part := connection.recv(65536):
        answer += part
    head, _, body = answer.partition(b"\r\n\r\n")
    assert b"connection: close" in head.lower()
    return int(head.split(b" ")[1]), json.loads(body)


def test_head_of_40_mb_is_431_and_the_client_gets_to_read_it(port: int) -> None:
    with connected(port) as connection:
        connection.sendall(HEAD + b"X: ")
        for _ in range(40):
            connection.sendall(b"a" * 1_000_000)
        status, problem = told(connection)
    assert (status, problem["status"]) == (431, 431)
    assert "65,536 bytes" in problem["detail"]


@pytest.mark.parametrize("end", [b"\r\n\r\n", b""], ids=["whole", "without an end"])
def test_head_just_beyond_the_limit_is_431(port: int, end: bytes) -> None:
    with connected(port) as connection:
        connection.sendall(HEAD + b"X: " + b"a" * 66_000 + end)
        assert told(connection)[0] == 431


def test_head_of_60_kb_passes(port: int) -> None:
    with connected(port) as connection:
        connection.sendall(HEAD + b"X: " + b"a" * 60_000 + b"\r\nConnection: close\r\n\r\n")
        assert connection.recv(100).startswith(b"HTTP/1.1 200")


def test_head_of_many_fields_or_a_long_address_is_refused(port: int) -> None:
    with connected(port) as connection:
        connection.sendall(HEAD + b"a: b\r\n" * 500 + b"\r\n")
        assert told(connection)[0] == 431
    with connected(port) as connection:
        connection.sendall(b"GET /?" + b"q" * 10_000 + b" HTTP/1.1\r\nHost: x\r\n\r\n")
        assert told(connection)[0] == 414


def test_head_that_drips_is_408_in_its_time(port: int) -> None:
    with connected(port) as connection:
        connection.sendall(HEAD)
        start = time.monotonic()
        connection.settimeout(0.1)
        while time.monotonic() - start < 20:
            connection.sendall(b"a: b\r\n")
            try:
                answer = connection.recv(1000)
            except TimeoutError:
                continue
            break
        assert answer.startswith(b"HTTP/1.1 408")


@pytest.mark.parametrize("sent", [b"", b"\r\n\r\n"])
def test_connection_without_a_request_is_closed(port: int, sent: bytes) -> None:
    with connected(port) as connection:
        connection.sendall(sent)
        try:
            while connection.recv(1000):  # perhaps a 408
                pass
        except ConnectionResetError:
            return


def test_head_after_a_body_in_the_same_bytes_is_not_counted_with_it(port: int) -> None:
    body = b"POST / HTTP/1.1\r\nHost: x\r\nContent-Length: 200000\r\n\r\n" + bytes(200_000)
    with connected(port) as connection:
        connection.sendall(body + HEAD)
        time.sleep(0.3)
        connection.sendall(b"Connection: close\r\n\r\n")
        answer = b""
        while part := connection.recv(65536):
            answer += part
    assert answer.count(b"HTTP/1.1 200") == 2


def test_body_after_the_answer_is_read_for_some_time_only(port: int) -> None:
    with connected(port) as connection:
        connection.sendall(b"POST / HTTP/1.1\r\nHost: x\r\nContent-Length: 200000\r\n\r\nx")
        assert connection.recv(1000).startswith(b"HTTP/1.1 200")
        with pytest.raises(ConnectionError):
            drip(connection, 100)


def drip(connection: socket.socket, count: int) -> None:
    """Send a byte every tenth of a second."""
    for _ in range(count):
        connection.sendall(b"x")
        time.sleep(0.1)


def test_answer_that_nobody_reads_is_given_up(port: int) -> None:
    with connected(port) as connection:
        connection.sendall(b"GET /?size=50000000 HTTP/1.1\r\nHost: x\r\n\r\n")
        time.sleep(4)
        got = 0
        try:
            while part := connection.recv(1_000_000):
                got += len(part)
        except ConnectionResetError:
            pass
    assert got < 50_000_000


def test_what_is_no_http_is_a_400_problem(port: int) -> None:
    with connected(port) as connection:
        connection.sendall(b"\x16\x03\x01 hello\r\n\r\n")
        assert told(connection)[0] == 400


@pytest.mark.parametrize("expect", [b"", b"Expect: 100-continue\r\n"])
def test_body_that_is_no_http_is_a_400_problem_while_it_is_read(port: int, expect: bytes) -> None:
    head = b"POST /?read HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n" + expect
    with connected(port) as connection:
        connection.sendall(head + b"\r\nzz\r\n")
        assert told(connection)[0] == 400


def test_pipelined_request_that_is_no_http_takes_no_answer_of_another(port: int) -> None:
    slow = b"POST /?read HTTP/1.1\r\nHost: x\r\nContent-Length: 1\r\n\r\nx"
    with connected(port) as connection:
        connection.sendall(slow + b"POST / HTTP/1.1\r\nContent-Length: zz\r\n\r\n")
        answer = b""
        try:
            while part := connection.recv(1000):
                answer += part
        except ConnectionResetError:
            pass
    assert not answer or answer.startswith(b"HTTP/1.1 200")


OFFER = b"Connection: Upgrade, HTTP2-Settings\r\nUpgrade: h2c\r\nHTTP2-Settings: AAMAAABk\r\n"


@pytest.mark.parametrize("apart", [False, True])
@pytest.mark.parametrize("upgrade", [b"h2c", b"websocket, h2c"])
@pytest.mark.parametrize("body", [b"Content-Length: 4", b"Transfer-Encoding: chunked"])
def test_offer_of_another_protocol_is_ignored_and_the_body_read(
    port: int, body: bytes, upgrade: bytes, apart: bool
) -> None:
    head = b"POST /?mirror HTTP/1.1\r\nHost: x\r\n" + OFFER.replace(b"h2c", upgrade) + body
    sent = b"tile" if b"4" in body else b"4\r\ntile\r\n0\r\n\r\n"
    with connected(port) as connection:
        for _ in range(2):  # the connection stays open
            if apart:
                connection.sendall(head[:40])
                time.sleep(0.05)
                connection.sendall(head[40:] + b"\r\n\r\n" + sent[:2])
                time.sleep(0.05)
                connection.sendall(sent[2:])
            else:
                connection.sendall(head + b"\r\n\r\n" + sent)
            answer = b""
            while not answer.endswith(b"\r\n\r\ntile"):
                part = connection.recv(65536)
                assert part, answer
                answer += part
            assert answer.startswith(b"HTTP/1.1 200 ")
        connection.sendall(head + b"\r\n\r\n" + sent + HEAD + b"Connection: close\r\n\r\n")
        answer = b""
        while part := connection.recv(65536):
            answer += part
        assert answer.count(b"HTTP/1.1 200 ") == 2


def test_blank_lines_after_an_answer_do_not_hold_the_connection(port: int) -> None:
    with connected(port) as connection:
        connection.sendall(HEAD + b"\r\n")
        assert connection.recv(1000).startswith(b"HTTP/1.1 200")
        time.sleep(0.2)
        with pytest.raises(ConnectionError):  # noqa: PT012
            for _ in range(100):
                connection.sendall(b"\r\n")
                time.sleep(0.1)


def test_unread_answers_beyond_what_all_may_hold_are_given_up_oldest_first(port: int) -> None:
    with connected(port) as oldest, connected(port) as newest:
        for connection in (oldest, newest):
            connection.sendall(b"GET /?size=40000000 HTTP/1.1\r\nHost: x\r\n\r\n")
            time.sleep(0.3)
        assert length(oldest) < 40_000_000
        assert length(newest) > 40_000_000


def length(connection: socket.socket) -> int:
    """Return how much arrives until a while after the last."""
    got = 0
    connection.settimeout(1)
    try:
        while part := connection.recv(1_000_000):
            got += len(part)
    except (ConnectionResetError, TimeoutError):
        pass
    return got


def test_guard_needs_no_package_that_the_demo_alone_lacks() -> None:
    code = "import sys; sys.modules['prometheus_client'] = None; import magtiles_seg.serve.running"
    subprocess.run([sys.executable, "-c", code], check=True)
