from __future__ import annotations

import os
import random
import re
import socket
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from starlette.testclient import TestClient

KINDS = ("PNG", "JPEG", "BMP", "TIFF", "WEBP")


def picture_files() -> list[bytes]:
    from io import BytesIO

    from PIL import Image

    from magtiles_seg.dataset.synthetic import synthetic_tile

    files = []
    image = Image.fromarray(synthetic_tile(1, defect="crack", size_hw=(64, 64)).image)
    for kind in KINDS:
        file = BytesIO()
        image.save(file, kind)
        files.append(file.getvalue())
    return files


def mutated(data: bytes, rng: random.Random) -> bytes:
    """Return a file with some bytes changed, cut out, doubled or shuffled; its head mostly."""
    spoilt = bytearray(data)
    for _ in range(rng.choice((1, 2, 4, 16))):
        reach = min(len(spoilt), rng.choice((64, 512, len(spoilt)))) or 1
        place = rng.randrange(reach)
        what = rng.randrange(5)
        if what == 0 and spoilt:
            spoilt[place % len(spoilt)] = rng.randrange(256)
        elif what == 1:
            spoilt[place : place + 4] = rng.choice(
                (b"\xff\xff\xff\xff", b"\0\0\0\0", b"\x7f\xff\xff\xff")
            )
        elif what == 2:
            del spoilt[place : place + rng.randrange(1, 40)]
        elif what == 3:
            spoilt[place:place] = spoilt[: rng.randrange(1, 40)]
        else:
            del spoilt[rng.randrange(len(spoilt) + 1) :]
    return bytes(spoilt)


def bombard(client: TestClient, count: int, seed: int) -> dict[int, int]:
    """Send mutated files, and mutated forms in every tenth request; return counts by status."""
    rng, files, seen = random.Random(seed), picture_files(), dict[int, int]()
    for number in range(count):
        data = mutated(rng.choice(files), rng)
        if number % 10:
            reply: Any = client.post("/analyze", files={"image": ("x", data)})
        else:
            form = b'--b\r\nContent-Disposition: form-data; name="image"; filename="x"\r\n\r\n'
            body = mutated(form + data + b"\r\n--b--\r\n", rng)
            head = {"content-type": "multipart/form-data; boundary=b"}
            reply = client.post("/analyze", content=body, headers=head)
        seen[reply.status_code] = seen.get(reply.status_code, 0) + 1
        assert reply.status_code in (200, 400, 413, 415), (number, reply.text)
        assert "Traceback" not in reply.text
    return seen


@pytest.mark.filterwarnings("default")  # Pillow warns of damaged metadata, as it should
def test_mutated_uploads_are_answered_or_refused(client: TestClient) -> None:
    seen = bombard(client, 150, seed=0)
    assert {200, 400} <= seen.keys()
    assert client.app.state.analyzer.gate.inside == 0  # type: ignore[attr-defined]


def mutated_request(rng: random.Random, files: list[bytes]) -> bytes:
    """Return the bytes of a request whose head, query, form and picture may all be spoilt."""
    picture = mutated(rng.choice(files), rng) if rng.random() < 0.5 else rng.choice(files)
    part = b'--b\r\nContent-Disposition: form-data; name="image"; filename="x"\r\n\r\n'
    body = part * rng.choice((1, 1, 1, 2, 40)) + picture + b"\r\n--b--\r\n"
    if rng.random() < 0.4:
        body = mutated(body, rng)
    method = rng.choice((b"POST", b"POST", b"POST", b"GET", b"HEAD", b"PUT", b"OPTIONS", b"\x7fX"))
    path = rng.choice((b"/analyze", b"/analyze", b"/metrics", b"/analyze/../metrics", b"/%00"))
    query = rng.choice((b"", b"?mask=rle", b"?include=" + rng.randbytes(8).hex().encode()))
    kind = rng.choice((b"multipart/form-data", b"Multipart/Form-Data", b"text/plain", b"\xff"))
    fields = [b"Host: x", b"Content-Type: " + kind + b"; boundary=" + rng.choice((b"b", b"c", b""))]
    fields += [b"Accept: " + rng.choice((b"*/*", b"image/png", b"Application/JSON", b"x;q=y"))]
    fields += [rng.choice((b"Expect: 100-continue", b"X: " + b"a" * 70_000, b"X-API-Key: \xff"))]
    length = rng.choice((len(body), len(body), len(body), 0, 2**70, len(body) + 9))
    if rng.random() < 0.2:
        fields.append(b"Transfer-Encoding: chunked")
        body = b"%x\r\n%b\r\n0\r\n\r\n" % (rng.choice((len(body), 5)), body)
    else:
        fields.append(b"Content-Length: %d" % length)
    rng.shuffle(fields)
    head = method + b" " + path + query + b" HTTP/1.1\r\n" + b"\r\n".join(fields)
    return (mutated(head, rng) if rng.random() < 0.3 else head) + b"\r\n\r\n" + body


def answer_to(port: int, request: bytes) -> bytes:
    """Return what a server says to some bytes, after which the client sends no more."""
    answer = b""
    with socket.create_connection(("127.0.0.1", port), timeout=5) as connection, suppress(OSError):
        connection.sendall(request)
        while part := connection.recv(65536):
            answer += part
            connection.settimeout(0.1)
    return answer


@pytest.mark.endurance
@pytest.mark.parametrize("count", [int(os.environ.get("FUZZ_COUNT", "10000"))])
def test_mutated_requests_get_no_500_tell_nothing_and_cost_no_memory(
    server_class: Any,  # noqa: ANN401
    model: Path,
    count: int,
) -> None:
    rng, files, seen = random.Random(7), picture_files(), Counter[bytes]()
    with server_class("--model", str(model), "--read-timeout-s", "0.2") as server:
        server.wait_ready()
        start_mb = 0.0
        for begin in range(0, count, 50):
            batch = [mutated_request(rng, files) for _ in range(50)]
            with ThreadPoolExecutor(10) as pool:
                answers = list(pool.map(partial(answer_to, server.port), batch))
            seen.update(answer[9:12] for answer in answers)
            for answer in answers:
                assert not re.search(rb"Traceback|\.py\b|/(tmp|work|usr|home)/", answer), answer
            if begin == 500:
                start_mb = server.memory_mb()
        end_mb = server.memory_mb()
        assert answer_to(server.port, b"GET /livez HTTP/1.1\r\nHost: x\r\n\r\n")[9:12] == b"200"
    assert not {status for status in seen if status.startswith(b"50") and status != b"503"}, seen
    assert {b"200", b"400", b"415", b"431"} <= seen.keys()
    assert "Traceback" not in "".join(server.lines)
    assert not start_mb or end_mb <= 1.2 * start_mb


@pytest.mark.endurance
@pytest.mark.filterwarnings("default")
def test_ten_thousand_mutated_uploads_are_answered_or_refused(client: TestClient) -> None:
    assert sum(bombard(client, 10_000, seed=1).values()) == 10_000
