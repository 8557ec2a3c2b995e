from __future__ import annotations

import asyncio
import gzip
import json
import socket
import time
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest

from magtiles_seg.decision import Decision
from magtiles_seg.marking import is_result
from magtiles_seg.result import Segmentation
from magtiles_seg.review.folder import ReviewFolder
from magtiles_seg.review.queue import ReviewQueue
from magtiles_seg.review.settings import ReviewSettings
from magtiles_seg.serve.auth import new_key
from magtiles_seg.serve.metrics import Metrics
from magtiles_seg.serve.replies import Wish, encode
from magtiles_seg.serve.shadow import Shadow, dice


def answer(columns: int, score: float = 0.9) -> Segmentation:
    probability = np.zeros((8, 10), np.float32)
    probability[:, :columns] = score
    picture, classes = np.full((8, 10), 80, np.uint8), np.ones((8, 10), np.uint8)
    decision = Decision(score_top_k_px=8)
    return Segmentation.from_prediction(picture, probability, classes, decision=decision)


def mirror(
    ours: list[Segmentation],
    theirs: list[Any],
    statuses: list[int] | None = None,
    headers: dict[str, str] | None = None,
    **options: Any,  # noqa: ANN401
) -> tuple[Shadow, str]:
    """Return a shadow that has compared our answers with prepared ones, and its metrics."""
    prepared, codes = iter(theirs), iter(statuses or [200] * len(theirs))
    metrics = Metrics()

    def respond(request: httpx.Request) -> httpx.Response:
        assert b"picture-bytes" in request.content
        body = next(prepared)
        body = {"content": body} if isinstance(body, bytes) else {"stream": body}
        return httpx.Response(next(codes), headers=headers, **body)

    async def main() -> Shadow:
        transport = httpx.MockTransport(respond)
        settings = {"fraction": 1.0, "metrics": metrics, "transport": transport, **options}
        shadow = Shadow("http://dev.example/analyze", **settings)
        for one in ours:
            shadow.offer(b"picture-bytes", one)
        working = asyncio.create_task(shadow.run())
        await asyncio.wait_for(shadow.drained(), 10)
        working.cancel()
        await asyncio.gather(working, return_exceptions=True)
        return shadow

    return asyncio.run(main()), metrics.text().decode()


def reply(result: Segmentation) -> bytes:
    return encode([result], Wish(mask="rle", include=frozenset({"verdict"}))).body


def test_dice_of_hand_worked_masks() -> None:
    assert dice(answer(4).mask, answer(2).mask) == pytest.approx(2 * 16 / (32 + 16))
    assert dice(answer(0).mask, answer(0).mask) == 1
    assert dice(answer(1).mask, answer(0).mask) == 0


def test_shadow_counts_dice_and_flipped_verdicts() -> None:
    ours = [answer(4), answer(4), answer(4)]
    theirs = [reply(answer(4)), reply(answer(2)), reply(answer(0))]
    shadow, text = mirror(ours, theirs)
    assert (shadow.compared, shadow.flipped) == (3, 1)
    assert 'magtiles_shadow_requests_total{outcome="compared"} 3.0' in text
    assert "magtiles_shadow_flipped_total 1.0" in text
    assert "magtiles_shadow_dice_count 3.0" in text
    assert [case.dice for case in sorted(shadow.worst, reverse=True)] == pytest.approx(
        [0, 2 / 3, 1]
    )


@pytest.mark.parametrize("locked", [False, True], ids=["open", "key"])
def test_service_that_is_its_own_shadow_mirrors_each_request_once(
    server_class: Any,  # noqa: ANN401
    model: Path,
    png: bytes,
    locked: bool,
) -> None:
    key, entry = new_key("line-1")
    environment = {"MAGTILES_API_KEYS": entry, "MAGTILES_SHADOW_API_KEY": key} if locked else {}
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    url = f"http://127.0.0.1:{port}/analyze"
    flags = ("--model", str(model), "--shadow-fraction", "1", "--shadow-url", url)
    with server_class(*flags, "--port", str(port), environment=environment) as server:
        server.wait_ready()
        for _ in range(3):
            sent = httpx.post(url, files={"image": ("t.png", png)}, headers={"X-API-Key": key})
            assert sent.status_code == 200
        time.sleep(2)
        text = httpx.get(f"{server.url}/metrics").text
    assert 'magtiles_requests_total{path="/analyze",status="200"} 6.0' in text
    assert 'magtiles_shadow_requests_total{outcome="compared"} 3.0' in text


def test_mirror_that_is_refused_says_by_what_status(caplog: pytest.LogCaptureFixture) -> None:
    mirror([answer(1)], [b"{}"], statuses=[401])
    assert "status 401" in caplog.text


def test_shadow_of_a_service_that_knows_only_pred_compares_masks() -> None:
    shadow, _ = mirror([answer(4)], [encode([answer(2)], Wish()).body])
    assert (shadow.compared, shadow.flipped) == (1, 0)
    assert shadow.worst[0].dice == pytest.approx(2 / 3)


def rle(**changes: Any) -> bytes:  # noqa: ANN401
    return json.dumps({"rle": {"size": [8, 10], "counts": [32, 48], **changes}}).encode()


ROWS = [[0] * 10 for _ in range(8)]


@pytest.mark.parametrize(
    ("body", "status"),
    [
        (b"no json", 200),
        (b"\xff", 200),
        (b"[]", 200),
        (b"{}", 200),
        (b"", 503),
        (rle(), 302),
        (b"[" * 90_000, 200),
        (b'{"pred": ' * 9000, 200),
        (b'{"pred": [[0]]}', 200),
        (b'{"pred": [[256]]}', 200),
        (json.dumps({"pred": [*ROWS[:7], [256] * 10]}).encode(), 200),
        (json.dumps({"pred": [*ROWS[:7], [-1] * 10]}).encode(), 200),
        (json.dumps({"pred": [*ROWS[:7], [2] * 10]}).encode(), 200),
        (json.dumps({"pred": [*ROWS[:7], [0.5] * 10]}).encode(), 200),
        (json.dumps({"pred": [*ROWS[:7], [10**400] * 10]}).encode(), 200),
        (json.dumps({"pred": [*ROWS[:7], [0] * 9]}).encode(), 200),
        (json.dumps({"pred": ROWS, "verdict": ["reject"]}).encode(), 200),
        (json.dumps({"pred": ROWS, "verdict": "perhaps"}).encode(), 200),
        (rle(counts=[10**18]), 200),
        (rle(counts=[-1, 81]), 200),
        (rle(counts=[40, 40.0]), 200),
        (rle(counts=["80"]), 200),
        (rle(counts=None), 200),
        (rle(size=[10, 8]), 200),
        (rle(size=[8]), 200),
        (b'{"rle": 1}', 200),
        (b" " * 1_000_000, 200),
    ],
)
def test_answer_that_is_none_is_counted_and_the_next_one_is_compared(
    body: bytes, status: int
) -> None:
    statuses = [status, 200]
    shadow, text = mirror([answer(4), answer(4)], [body, reply(answer(4))], statuses)
    assert shadow.compared == 1
    assert 'outcome="failed"} 1.0' in text


def test_reply_without_end_is_read_no_further_than_an_answer_can_be() -> None:
    sent = 0

    class Endless(httpx.AsyncByteStream):
        async def __aiter__(self) -> AsyncIterator[bytes]:
            nonlocal sent
            while True:
                sent += 10_000
                yield b" " * 10_000

    _, text = mirror([answer(4)], [Endless()])
    assert 'outcome="failed"} 1.0' in text
    assert sent < 1_000_000


def test_reply_that_drips_is_ended_after_the_time_for_a_whole_one() -> None:
    class Dripping(httpx.AsyncByteStream):
        async def __aiter__(self) -> AsyncIterator[bytes]:
            while True:
                await asyncio.sleep(0.01)
                yield b" "

    _, text = mirror([answer(4)], [Dripping()], timeout_s=0.3)
    assert 'outcome="failed"} 1.0' in text


def test_zipped_reply_is_refused_before_it_is_unfolded() -> None:
    body = gzip.compress(reply(answer(4)))
    _, text = mirror([answer(4)], [body], headers={"content-encoding": "gzip"})
    assert 'outcome="failed"} 1.0' in text


def test_address_that_is_none_is_counted_and_the_mirror_lives() -> None:
    async def main() -> str:
        metrics = Metrics()
        shadow = Shadow("http://[::1", fraction=1.0, metrics=metrics)
        working = asyncio.create_task(shadow.run())
        shadow.offer(b"", answer(1))
        await asyncio.wait_for(shadow.drained(), 10)
        assert not working.done()
        working.cancel()
        await asyncio.gather(working, return_exceptions=True)
        return metrics.text().decode()

    assert 'outcome="failed"} 1.0' in asyncio.run(main())


def test_report_that_cannot_be_written_does_not_stop_the_comparison(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("in the way")
    theirs = [reply(answer(4)), reply(answer(2))]
    shadow, text = mirror([answer(4)] * 2, theirs, report=tmp_path / "file")
    assert shadow.compared == 2
    assert 'outcome="compared"} 2.0' in text


def test_queue_holds_a_bounded_number_of_bytes() -> None:
    metrics = Metrics()
    shadow = Shadow("http://x", fraction=1.0, metrics=metrics)
    for _ in range(4):
        shadow.offer(bytes(50_000_000), answer(1))
    assert shadow._queue.qsize() == 2
    assert 'outcome="dropped"} 2.0' in metrics.text().decode()


def test_offer_samples_its_share_and_drops_what_a_full_queue_cannot_take() -> None:
    metrics = Metrics()
    none = Shadow("http://x", fraction=0.0, metrics=metrics)
    full = Shadow("http://x", fraction=1.0, metrics=metrics)
    for _ in range(100):
        none.offer(b"", answer(1))
        full.offer(b"", answer(1))
    assert none._queue.qsize() == 0
    assert full._queue.qsize() == 32
    assert 'outcome="dropped"} 68.0' in metrics.text().decode()


def test_report_shows_the_worst_first_with_pictures(tmp_path: Path) -> None:
    theirs = [reply(answer(columns)) for columns in (4, 0, 2)]
    mirror([answer(4)] * 3, theirs, report=tmp_path)
    (folder,) = tmp_path.iterdir()
    report = json.loads((folder / "report.json").read_text())
    assert [row["dice"] for row in report["worst"]] == pytest.approx([0, 2 / 3, 1])
    assert all(is_result(folder / row["picture"]) for row in report["worst"])
    assert "3 pictures compared, 1 verdict flipped" in (folder / "report.md").read_text()


def test_report_keeps_the_twenty_worst_and_no_other_picture(tmp_path: Path) -> None:
    theirs = [reply(answer(columns % 5)) for columns in range(30)]
    mirror([answer(4)] * 30, theirs, report=tmp_path)
    (folder,) = tmp_path.iterdir()
    report = json.loads((folder / "report.json").read_text())
    assert len(report["worst"]) == 20
    named = {row["picture"] for row in report["worst"]} | {"report.json", "report.md"}
    assert {path.name for path in folder.iterdir()} == named


def test_pictures_that_the_two_disagree_on_are_kept_for_review(tmp_path: Path) -> None:
    review = ReviewQueue(ReviewSettings(directory=tmp_path, reasons=("disagreement",)))
    ours = [answer(4), answer(4), answer(4)]
    mirror(ours, [reply(answer(4)), reply(answer(2)), reply(answer(0))], review=review)
    review.close()
    (entry,) = ReviewFolder(tmp_path).entries()
    record, _ = ReviewFolder(tmp_path).read(entry.name)
    assert (entry.reason, record["verdict"]) == ("disagreement", "reject")
    assert record["shadow"]["url"] == "http://dev.example/analyze"
    assert (record["shadow"]["verdict"], record["shadow"]["dice"]) == ("accept", 0.0)


def test_disagreement_is_not_kept_where_it_was_not_asked_for(tmp_path: Path) -> None:
    review = ReviewQueue(ReviewSettings(directory=tmp_path, reasons=("random",)))
    mirror([answer(4)], [reply(answer(0))], review=review)
    review.close()
    assert ReviewFolder(tmp_path).entries() == []
