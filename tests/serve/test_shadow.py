from __future__ import annotations

import asyncio
import json
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest

from magtiles_seg.deciding import Decision
from magtiles_seg.result import Segmentation
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
    theirs: list[bytes],
    status: int = 200,
    **options: Any,  # noqa: ANN401
) -> tuple[Shadow, str]:
    """Return a shadow that has compared our answers with prepared ones, and its metrics."""
    prepared = iter(theirs)
    metrics = Metrics()

    def respond(request: httpx.Request) -> httpx.Response:
        assert b"picture-bytes" in request.content
        return httpx.Response(status, content=next(prepared))

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


def test_shadow_of_a_service_that_knows_only_pred_compares_masks() -> None:
    shadow, _ = mirror([answer(4)], [encode([answer(2)], Wish()).body])
    assert (shadow.compared, shadow.flipped) == (1, 0)
    assert shadow.worst[0].dice == pytest.approx(2 / 3)


@pytest.mark.parametrize(
    ("body", "status"), [(b"no json", 200), (b"{}", 200), (b'{"pred": [[0]]}', 200), (b"", 503)]
)
def test_shadow_that_fails_is_counted_and_harms_nothing(body: bytes, status: int) -> None:
    shadow, text = mirror([answer(4), answer(4)], [body, body], status)
    assert shadow.compared == 0
    assert 'outcome="failed"} 2.0' in text


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
    assert (folder / "01.png").stat().st_size > 0
    assert "3 pictures compared, 1 verdicts flipped" in (folder / "report.md").read_text()
