"""Shadow mode: a share of the real requests also goes to another endpoint, off the hot path.

What both say of the same picture is compared: Dice of the masks and flipped verdicts. The worst
cases are kept for a person to look at. A full queue drops samples; it never slows an answer.
Whatever the other side answers, and however slowly, costs a bounded time and memory and is counted.
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
from typing import Any, get_args

import anyio
import anyio.to_thread
import httpx
import numpy as np
from numpy.typing import NDArray

from magtiles_seg.files import write, write_json
from magtiles_seg.marking import encode_result
from magtiles_seg.names import counted
from magtiles_seg.result import Segmentation, Verdict
from magtiles_seg.review.queue import ReviewQueue
from magtiles_seg.serve.metrics import Metrics
from magtiles_seg.serve.replies import mask_of_run_lengths

_QUEUE, _QUEUE_BYTES = 32, 128_000_000
_KEPT = 20
_TIMEOUT_S = 30.0
_DISAGREE_DICE = 0.5
_REPLY_BYTES, _REPLY_BYTES_PER_PX = 100_000, 4  # rows such as `[0, 1, …]`, with spaces
_log = logging.getLogger("magtiles_seg.serve")

MIRRORED = "X-Magtiles-Mirrored"
"""Header of a mirrored request. Who gets one does not mirror it again: two services that are each
other's shadow, or one that is its own, would never end."""


@dataclass(order=True)
class Case:
    """One picture that both endpoints answered; the worse the greater.

    Attributes:
        badness: 1 - Dice, plus 1 where the verdict flipped.
        number: Of the comparison.
        dice: Of both masks; 1 where both are empty.
        verdicts: Ours and theirs; theirs is None where it sends none.
        flipped: Whether both are known and differ.
        picture: Name of its picture in the report.
    """

    badness: float
    number: int
    dice: float = field(compare=False)
    verdicts: tuple[str, str | None] = field(compare=False)
    flipped: bool = field(compare=False)
    picture: str = field(default="", compare=False)


@dataclass(frozen=True)
class _Sample:
    """A request and what of our answer is compared.

    Attributes:
        data: The picture file as it came.
        image: (H, W) uint8, the picture.
        mask: (H, W) uint8, 0 or 1, ours.
        verdict: Ours.
        result: The whole of it, where disagreement is kept for review.
        group: What the picture shares with others of the same part.
    """

    data: bytes
    image: NDArray[np.uint8]
    mask: NDArray[np.uint8]
    verdict: str
    result: Segmentation | None
    group: str | None

    @property
    def size(self) -> int:
        kept = 0 if self.result is None else self.result.probability.nbytes + 2 * self.mask.nbytes
        return len(self.data) + self.image.nbytes + self.mask.nbytes + kept

    @property
    def reply_bytes(self) -> int:
        """The longest answer that can be one."""
        return _REPLY_BYTES + _REPLY_BYTES_PER_PX * self.mask.size


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
        api_key: str | None = None,
        report: Path | None = None,
        review: ReviewQueue | None = None,
        transport: httpx.AsyncBaseTransport | None = None,
        timeout_s: float = _TIMEOUT_S,
    ) -> None:
        """Make a mirror; `run` works on it.

        Args:
            url: Address of the other `/analyze`.
            fraction: Share of the requests that is mirrored.
            metrics: Where the disagreement is counted.
            api_key: What the other side is asked with, printable ASCII; None: nothing.
            report: Directory that gets `report.md`, `report.json` and the worst pictures.
            review: Keeps the pictures that the two disagree on.
            transport: In place of the network.
            timeout_s: Longest time from a request to the end of its answer.
        """
        self._url = url
        self._key = {"X-API-Key": api_key} if api_key else {}
        self._fraction = fraction
        self._metrics = metrics
        self._folder = report / f"worker-{os.getpid()}" if report else None
        self._review = review if review is not None and review.wants("disagreement") else None
        self._transport = transport
        self._timeout_s = timeout_s
        self._random = random.Random()
        self._queue: asyncio.Queue[_Sample] = asyncio.Queue(_QUEUE)
        self._queued_bytes = 0
        self.compared = 0
        self.flipped = 0
        self.worst: list[Case] = []

    def offer(self, data: bytes, ours: Segmentation, group: str | None = None) -> None:
        """Perhaps queue an answered request; returns at once.

        Args:
            data: The picture file as it came.
            ours: What was answered.
            group: What the picture shares with others of the same part.
        """
        if self._random.random() >= self._fraction:
            return
        result = None if self._review is None else ours
        sample = _Sample(data, ours.image, ours.mask, ours.verdict, result, group)
        full = self._queued_bytes + sample.size > _QUEUE_BYTES and not self._queue.empty()
        if full or self._queue.full():
            self._metrics.shadow.labels("dropped").inc()
            return
        self._queued_bytes += sample.size
        self._queue.put_nowait(sample)

    async def run(self) -> None:
        """Mirror until cancelled; the report is up to date at any time."""
        while True:
            sample = await self._queue.get()
            self._queued_bytes -= sample.size
            try:
                await self._mirror(sample)
            except Exception as error:  # the other side, or the disk, must not end this
                # other errors may name the address, and with it a password
                why = f": {error}" if isinstance(error, ValueError) else ""
                _log.warning("shadow: %s%s", type(error).__name__, why)
                self._metrics.shadow.labels("failed").inc()
            finally:
                self._queue.task_done()

    async def drained(self) -> None:
        """Wait until nothing is queued."""
        await self._queue.join()

    async def _mirror(self, sample: _Sample) -> None:
        """Send a sample, compare the answers and count.

        Raises:
            Exception: The other side gave no answer that can be compared.
        """
        with anyio.fail_after(self._timeout_s):
            body = await self._ask(sample)
            case, theirs = await anyio.to_thread.run_sync(
                _compare, body, sample, self.compared + 1, abandon_on_cancel=True
            )
        self.compared += 1
        self.flipped += case.flipped
        self._metrics.shadow.labels("compared").inc()
        self._metrics.shadow_dice.observe(case.dice)
        self._metrics.shadow_flipped.inc(case.flipped)
        self._keep_for_review(case, sample)
        await self._keep(case, sample, theirs)

    async def _ask(self, sample: _Sample) -> bytes:
        """Return the other side's answer, at most as long as one can be.

        Raises:
            httpx.HTTPError: There is none.
            ValueError: It is too long, zipped, or says that something is wrong.
        """
        async with (
            httpx.AsyncClient(transport=self._transport, timeout=self._timeout_s) as client,
            client.stream(
                "POST",
                self._url,
                files={"image": ("mirrored", sample.data)},
                params={"mask": "rle", "include": "verdict"},
                headers={
                    "Accept": "application/json",
                    "Accept-Encoding": "identity",
                    MIRRORED: "1",
                    **self._key,
                },
            ) as reply,
        ):
            zipped = reply.headers.get("content-encoding", "identity") != "identity"
            if reply.status_code != 200 or zipped:
                raise ValueError(f"status {reply.status_code}, zipped: {zipped}")
            body = bytearray()
            async for part in reply.aiter_bytes():
                body += part
                if len(body) > sample.reply_bytes:
                    raise ValueError(f"more than {sample.reply_bytes} bytes")
        return bytes(body)

    def _keep_for_review(self, case: Case, sample: _Sample) -> None:
        """Queue a picture whose verdict flipped, or of whose defects the two share less than half.

        The shadow's verdict and the Dice are part of its lineage.
        """
        if self._review is None or sample.result is None:
            return
        if not (case.flipped or case.dice < _DISAGREE_DICE):
            return
        said = {"url": _host(self._url), "verdict": case.verdicts[1], "dice": round(case.dice, 4)}
        self._review.offer_result(
            sample.result,
            "disagreement",
            case.badness / 2,
            group=sample.group,
            more={"shadow": said},
        )

    async def _keep(self, case: Case, sample: _Sample, theirs: NDArray[np.uint8]) -> None:
        """Take a case among the worst, where it belongs, and bring the report up to date."""
        if len(self.worst) < _KEPT:
            case.picture = f"{len(self.worst) + 1:02d}.png"
            heapq.heappush(self.worst, case)
        elif self.worst[0] < case:
            case.picture = heapq.heapreplace(self.worst, case).picture
        if self._folder is None:
            return
        fresh = (case.picture, sample, theirs) if case.picture else None
        try:
            await anyio.to_thread.run_sync(
                self._write, fresh, self._summary(), abandon_on_cancel=True
            )
        except OSError as error:
            _log.warning("shadow: the report cannot be written: %s", error.strerror)

    def _summary(self) -> dict[str, Any]:
        """Return the report's content, worst first."""
        rows = [
            {
                "picture": case.picture,
                "dice": case.dice,
                "ours": case.verdicts[0],
                "theirs": case.verdicts[1],
            }
            for case in sorted(self.worst, reverse=True)
        ]
        return {"compared": self.compared, "flipped": self.flipped, "worst": rows}

    def _write(
        self, fresh: tuple[str, _Sample, NDArray[np.uint8]] | None, summary: dict[str, Any]
    ) -> None:
        """Write the report, each file whole: the fresh picture, then what names it."""
        assert self._folder is not None
        if fresh is not None:
            name, sample, theirs = fresh
            write(self._folder / name, _picture(sample, theirs))
        write_json(self._folder / "report.json", summary)
        write(self._folder / "report.md", _page(summary))


def _host(url: str) -> str:
    """Return the address without a user's name, password and query."""
    parsed = httpx.URL(url)
    return f"{parsed.scheme}://{parsed.netloc.decode('ascii')}{parsed.path}"


def _compare(body: bytes, sample: _Sample, number: int) -> tuple[Case, NDArray[np.uint8]]:
    """Return the case and the other mask; a service that answers only `{"pred"}` will do.

    Raises:
        ValueError, RecursionError: It is no such answer, or of another size.
    """
    document = json.loads(body)
    if not isinstance(document, dict):
        raise ValueError("expected a JSON object")
    theirs = _mask(document, sample.mask.shape)
    verdict = document.get("verdict")
    if verdict not in (None, *get_args(Verdict)):
        raise ValueError("expected a verdict that is known")
    score = dice(sample.mask, theirs)
    flipped = verdict not in (None, sample.verdict)
    return Case(1 - score + flipped, number, score, (sample.verdict, verdict), flipped), theirs


def _mask(document: dict[str, Any], shape: tuple[int, ...]) -> NDArray[np.uint8]:
    """Return the (H, W) uint8 mask of 0 and 1 that a document holds.

    Raises:
        ValueError: It holds none of that shape.
    """
    if "rle" in document:
        return mask_of_run_lengths(document["rle"], shape)
    mask = np.array(document.get("pred"))
    if mask.shape != shape or mask.dtype.kind != "i" or not np.isin(mask, (0, 1)).all():
        raise ValueError(f"expected a mask of {shape} with 0 and 1")
    return mask.astype(np.uint8)


def _picture(sample: _Sample, theirs: NDArray[np.uint8]) -> bytes:
    """Return the picture, our mask and theirs side by side as PNG."""
    parts = [sample.image, sample.mask * np.uint8(255), theirs * np.uint8(255)]
    return encode_result(np.hstack(parts))


def _page(summary: dict[str, Any]) -> str:
    lines = [
        "# Shadow report",
        "",
        f"{counted(summary['compared'], 'picture')} compared, "
        f"{counted(summary['flipped'], 'verdict')} flipped.",
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
