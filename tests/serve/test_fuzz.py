from __future__ import annotations

import random
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


@pytest.mark.endurance
@pytest.mark.filterwarnings("default")
def test_ten_thousand_mutated_uploads_are_answered_or_refused(client: TestClient) -> None:
    assert sum(bombard(client, 10_000, seed=1).values()) == 10_000
