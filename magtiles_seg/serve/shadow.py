"""Shadow mode: a share of the real requests also goes to another endpoint, off the hot path.

What both say of the same picture is compared: Dice of the masks and flipped verdicts. The worst
cases are kept for a person to look at. A full queue drops samples; it never slows an answer.
"""

from __future__ import annotations

import asyncio
import heapq
import json
import logging
import os
import random
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import anyio.to_thread
import cv2
import httpx
import numpy as np
from numpy.typing import NDArray

from magtiles_seg.result import Segmentation
from magtiles_seg.serve.metrics import Metrics
from magtiles_seg.serve.replies import mask_of_run_lengths

_QUEUE = 32
_KEPT = 20
_TIMEOUT_S = 30.0
_log = logging.getLogger("magtiles_seg.serve")


@dataclass(order=True)
class Case:
    """One picture that both endpoints answered; the worse the greater.

    Attributes:
        badness: 1 - Dice, plus 1 where the verdict flipped.
        number: Of the comparison.
        dice: Of both masks; 1 where both are empty.
        verdicts: Ours and theirs; theirs is None where it sends none.
        flipped: Whether both are known and differ.
        ours: Our answer.
        theirs: (H, W) uint8, the other mask.
    """

    badness: float
    number: int
    dice: float = field(compare=False)
    verdicts: tuple[str, str | None] = field(compare=False)
    flipped: bool = field(compare=False)
    ours: Segmentation = field(compare=False, repr=False)
    theirs: NDArray[np.uint8] = field(compare=False, repr=False)


def dice(ours: NDArray[np.uint8], theirs: NDArray[np.uint8]) -> float:
    """Return 2 |A and B| / (|A| + |B|) of two (H, W) masks of 0 and 1; 1 where both are empty."""
    total = int(ours.sum()) + int(theirs.sum())
    return 2 * int((ours & theirs).sum()) / total if total else 1.0


class Shadow:
    """Mirrors requests and compares the answers.

    Attributes:
        compared: Pictures that both answered.
        flipped: Of these, those whose verdict differs.
        worst: The worst cases, in no order.
    """

    def __init__(
        self,
        url: str,
        *,
        fraction: float,
        metrics: Metrics,
        report: Path | None = None,
        transport: httpx.AsyncBaseTransport | None = None,
    ) -> None:
        """Make a mirror; `run` works on it.

        Args:
            url: Address of the other `/analyze`.
            fraction: Share of the requests that is mirrored.
            metrics: Where the disagreement is counted.
            report: Directory that gets `report.md`, `report.json` and the worst pictures.
            transport: In place of the network.
        """
        self._url = url
        self._fraction = fraction
        self._metrics = metrics
        self._report = report
        self._transport = transport
        self._random = random.Random()
        self._queue: asyncio.Queue[tuple[bytes, Segmentation]] = asyncio.Queue(_QUEUE)
        self.compared = 0
        self.flipped = 0
        self.worst: list[Case] = []

    def offer(self, data: bytes, ours: Segmentation) -> None:
        """Perhaps queue an answered request; returns at once.

        Args:
            data: The picture file as it came.
            ours: What was answered.
        """
        if self._random.random() >= self._fraction:
            return
        try:
            self._queue.put_nowait((data, ours))
        except asyncio.QueueFull:
            self._metrics.shadow.labels("dropped").inc()

    async def run(self) -> None:
        """Mirror until cancelled, then write the report."""
        try:
            async with httpx.AsyncClient(transport=self._transport, timeout=_TIMEOUT_S) as client:
                while True:
                    await self._mirror(client, *await self._queue.get())
                    self._queue.task_done()
        finally:
            self.write_report()

    async def drained(self) -> None:
        """Wait until nothing is queued."""
        await self._queue.join()

    async def _mirror(self, client: httpx.AsyncClient, data: bytes, ours: Segmentation) -> None:
        try:
            reply = await client.post(
                self._url,
                files={"image": ("mirrored", data)},
                params={"mask": "rle", "include": "verdict"},
            )
            reply.raise_for_status()
            case = await anyio.to_thread.run_sync(_compare, reply.content, ours, self.compared + 1)
        except (httpx.HTTPError, KeyError, TypeError, ValueError) as error:
            _log.warning("shadow: %s", type(error).__name__)
            self._metrics.shadow.labels("failed").inc()
            return
        self.compared += 1
        self.flipped += case.flipped
        self._metrics.shadow.labels("compared").inc()
        self._metrics.shadow_dice.observe(case.dice)
        self._metrics.shadow_flipped.inc(case.flipped)
        (heapq.heappush if len(self.worst) < _KEPT else heapq.heappushpop)(self.worst, case)

    def write_report(self) -> None:
        """Write the worst cases, worst first; nothing without a directory or a comparison."""
        if self._report is None or not self.compared:
            return
        folder = self._report / f"worker-{os.getpid()}"
        folder.mkdir(parents=True, exist_ok=True)
        rows: list[dict[str, Any]] = []
        for rank, case in enumerate(sorted(self.worst, reverse=True), start=1):
            name = f"{rank:02d}.png"
            (folder / name).write_bytes(_picture(case))
            ours, theirs = case.verdicts
            rows.append({"picture": name, "dice": case.dice, "ours": ours, "theirs": theirs})
        summary = {"compared": self.compared, "flipped": self.flipped, "worst": rows}
        (folder / "report.json").write_text(json.dumps(summary, indent=2) + "\n", encoding="utf-8")
        (folder / "report.md").write_text(_page(summary), encoding="utf-8")


def _compare(body: bytes, ours: Segmentation, number: int) -> Case:
    """Return the case; a service that answers only `{"pred"}` will do.

    Raises:
        KeyError, TypeError, ValueError: It is no such answer, or of another size.
    """
    document = json.loads(body)
    theirs = (
        mask_of_run_lengths(document["rle"])
        if "rle" in document
        else np.asarray(document["pred"], np.uint8)
    )
    if theirs.shape != ours.mask.shape:
        raise ValueError(f"mask of shape {theirs.shape}, expected {ours.mask.shape}")
    score, verdict = dice(ours.mask, theirs), document.get("verdict")
    flipped = verdict not in (None, ours.verdict)
    verdicts = (ours.verdict, verdict)
    return Case(1 - score + flipped, number, score, verdicts, flipped, ours, theirs)


def _picture(case: Case) -> bytes:
    """Return the picture, our mask and theirs side by side as PNG."""
    parts = [case.ours.image, case.ours.mask * np.uint8(255), case.theirs * np.uint8(255)]
    _, encoded = cv2.imencode(".png", np.hstack(parts))
    return encoded.tobytes()


def _page(summary: dict[str, Any]) -> str:
    lines = [
        "# Shadow report",
        "",
        f"{summary['compared']} pictures compared, {summary['flipped']} verdicts flipped.",
        "Each picture shows the tile, this service's mask and the shadow's. Worst first.",
        "",
        "| picture | Dice | this service | shadow |",
        "|---|---|---|---|",
    ]
    lines += [
        f"| ![]({row['picture']}) | {row['dice']:.3f} | {row['ours']} | {row['theirs'] or '-'} |"
        for row in summary["worst"]
    ]
    return "\n".join(lines) + "\n"
