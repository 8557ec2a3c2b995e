"""What a worker does, whichever engine runs it: a part's pictures in, its Parquet file out.

The file carries the part's number and is written whole, so that doing a part twice is harmless and
doing it at least once is enough: each picture is in the result exactly once, with any engine.
"""

from __future__ import annotations

import os
import time
import warnings
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from magtiles_seg.batch.parquet import describe, write_part
from magtiles_seg.batch.source import Listing, Reader
from magtiles_seg.batch.stores import is_url, persist
from magtiles_seg.decision import count
from magtiles_seg.errors import ConfigError, ImageError, ModelError
from magtiles_seg.files import sha256_of, write
from magtiles_seg.image import read_image
from magtiles_seg.infer.screen import ScreenWarning
from magtiles_seg.jsontext import read_json
from magtiles_seg.names import as_text, without_secrets

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from magtiles_seg.infer.segmenter import Segmenter
    from magtiles_seg.result import Segmentation
    from magtiles_seg.review.queue import ReviewQueue
    from magtiles_seg.review.settings import ReviewSettings

LOCAL_READERS, REMOTE_READERS = 2, 16
"""Threads that read and decode ahead of the model, by where the pictures lie."""


@dataclass(frozen=True, kw_only=True)
class Job:
    """What a run does; the same in every process.

    Attributes:
        source: Folder, glob, list file or URL, from `source.resolve`.
        out: The result's folder, on a disk that all workers share.
        segmenter: Arguments of `Segmenter` by name.
        masks: Whether masks are written as PNG.
        part_rows: Pictures of a part.
        patience_s: How long an outage of the source or a full disk is waited out; inf: for ever.
        readers: Threads of a worker that read and decode; None: by where the pictures lie.
        review: What is kept for a person to look at; None: nothing.

    Raises:
        ConfigError: A number is out of its range.
    """

    source: str
    out: Path
    segmenter: Mapping[str, Any] = field(default_factory=dict)
    masks: bool = False
    part_rows: int = 1000
    patience_s: float = 300.0
    readers: int | None = None
    review: ReviewSettings | None = None

    def __post_init__(self) -> None:
        """Check the numbers."""
        count("part_rows", self.part_rows)
        if self.readers is not None:
            count("readers", self.readers)
        if not self.patience_s >= 0:
            raise ConfigError(f"patience_s is {self.patience_s!r}; expected 0 or more seconds")

    @property
    def listing(self) -> Path:
        """Folder of the frozen listing."""
        return self.out / "listing"

    def part_path(self, part: int) -> Path:
        """Return where a part's rows belong."""
        return self.out / "parts" / f"part-{part:08d}.parquet"

    def open_segmenter(self, threads: int | None = None) -> Segmenter:
        """Load the model; `threads` yields to the job's own."""
        from magtiles_seg.infer.segmenter import Segmenter

        given = {} if threads is None else {"threads": threads}
        return Segmenter(**{**given, **self.segmenter})

    @property
    def record(self) -> Path:
        """File of what makes this run what it is."""
        return self.out / "run.json"

    def check_model(self, identity: Mapping[str, object]) -> None:
        """Check that a worker has loaded what the run began with.

        A worker that takes a lost one's place reads the file anew, and somebody may have replaced
        it since: one result would be of two models.

        Raises:
            ModelError: It has not.
        """
        began = read_json(self.record) if self.record.exists() else identity
        for name, file in (("model_sha256", "model"), ("screen_sha256", "screen")):
            if began.get(name) != identity[name]:
                raise ModelError(
                    f"the {file}'s file has changed since this run began: put the former one back "
                    "and start again, which goes on; or give the new one another --out"
                )

    def identity(self, segmenter: Segmenter) -> dict[str, object]:
        """Return what makes two runs the same run, as JSON values; None: as ever."""
        source = as_text(without_secrets(self.source))
        if not is_url(source) and Path(self.source).is_file():
            source = f"{source} sha256:{sha256_of(Path(self.source))}"
        spec = segmenter.spec
        return {
            "model_sha256": spec.sha256,
            "backend": spec.name,
            "device": spec.device.partition(":")[0],
            "precision": spec.precision if "bf16" in spec.precision else None,  # else the file's
            "screen_sha256": spec.screen_sha256 or None,
            "flips": self.segmenter.get("flips") or None,
            "decision": segmenter.decision.to_dict(),
            "mm_per_px": self.segmenter.get("mm_per_px"),
            "source": source,
            "masks": self.masks,
            "part_rows": self.part_rows,
        }


@dataclass(frozen=True)
class _Fetched:
    """A picture's bytes and pixels, or what kept them away."""

    row: dict[str, Any]
    pixels: NDArray[np.uint8] | None


class PartWorker:
    """Holds a loaded model and does parts with it, one at a time."""

    def __init__(self, job: Job, *, threads: int | None = None) -> None:
        """Load the model and open the listing.

        Args:
            job: What the run does.
            threads: Of one inference; None: as the job says, or all cores.

        Raises:
            ModelError: The model or its screen is not that of the run any more.
        """
        self._job = job
        self._listing = Listing(job.listing)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", ScreenWarning)  # who started the run has been told
            self._segmenter = job.open_segmenter(threads)
        self._identity = job.identity(self._segmenter)
        job.check_model(self._identity)
        self._reader = Reader(job.source, patience_s=job.patience_s)
        self._review = None if job.review is None else _review_queue(job.review, self._segmenter)

    def run(
        self,
        part: int,
        *,
        announce: Callable[[int], None] | None = None,
        unreadable: Mapping[int, str] | None = None,
        careful: bool = False,
    ) -> tuple[int, int]:
        """Do a part; return how many pictures it has and how many of them got an error.

        Args:
            part: Its number.
            announce: Told each picture's place before it is begun.
            unreadable: Pictures by place that are not tried, with their error.
            careful: Read nothing ahead, so that the announced picture is the only one in work.

        Raises:
            DataError: The source is gone, and did not come back in time.
            OSError: The result cannot be written, and room was not made in time.
            InferenceError: The runtime failed.
        """
        rows: list[dict[str, Any]] = []
        given = unreadable or {}
        names = self._listing.names(part)
        for place, fetch in enumerate(self._fetched(names, given, careful)):
            if announce:
                announce(place)
            rows.append(self._row(fetch(), part, place))
        self._write(part, rows)
        if self._review is not None:
            self._review.flush()  # a worker without more parts is ended
        return len(rows), sum("error" in row for row in rows)

    def _fetched(
        self, names: Sequence[str], given: Mapping[int, str], careful: bool
    ) -> Iterator[Callable[[], _Fetched]]:
        """Yield, in order, what waits for each picture; some are read ahead in threads."""
        if careful:
            for place, name in enumerate(names):
                yield lambda place=place, name=name: self._fetch(name, given.get(place))  # type: ignore[misc]
            return
        readers = self._job.readers or _readers(names)
        waiting: deque[Future[_Fetched]] = deque()
        with ThreadPoolExecutor(readers, thread_name_prefix="read") as pool:
            try:
                for place, name in enumerate(names):
                    waiting.append(pool.submit(self._fetch, name, given.get(place)))
                    if len(waiting) > 2 * readers:
                        yield waiting.popleft().result
                while waiting:
                    yield waiting.popleft().result
            finally:
                pool.shutdown(wait=False, cancel_futures=True)

    def _fetch(self, name: str, error: str | None) -> _Fetched:
        # A name that is no valid UTF-8 (file names may be any bytes) is written with escapes.
        row: dict[str, Any] = {"path": _text(name)}
        if error is not None:
            return _Fetched({**row, "error": _text(error)}, None)
        start = time.perf_counter()
        try:
            data = self._reader.read(name)
            row["sha256"] = sha256_of(data)
            read = time.perf_counter()
            row["read_ms"] = 1000 * (read - start)
            pixels = read_image(data)
        except ImageError as failed:
            return _Fetched({**row, "error": _text(str(failed))}, None)
        row["decode_ms"] = 1000 * (time.perf_counter() - read)
        return _Fetched(row, pixels)

    def _row(self, fetched: _Fetched, part: int, place: int) -> dict[str, Any]:
        row = {**fetched.row, "model_sha256": self._segmenter.spec.sha256}
        if fetched.pixels is None:
            return row
        start = time.perf_counter()
        result = self._segmenter(fetched.pixels)
        row["segment_ms"] = 1000 * (time.perf_counter() - start)
        row |= describe(result)
        if self._review is not None:
            self._review.consider(result, source=row["path"])
        if self._job.masks:
            row["mask_path"] = f"masks/{part:08d}/{place:05d}.png"
            self._patiently(lambda: _write_mask(self._job.out / row["mask_path"], result))
        return row

    def _write(self, part: int, rows: Sequence[Mapping[str, Any]]) -> None:
        if self._job.masks:
            os.sync()  # a part that stands promises its masks, after a power cut as well
        path = self._job.part_path(part)
        self._patiently(lambda: write_part(path, rows, self._identity))

    def _patiently(self, write: Callable[[], None]) -> None:
        persist(write, patience_s=self._job.patience_s, is_final=lambda e: not _may_pass(e))


def _review_queue(settings: ReviewSettings, segmenter: Segmenter) -> ReviewQueue:
    from magtiles_seg.progress import note
    from magtiles_seg.review.queue import ReviewQueue, Selector

    usual = segmenter.spec.card.input_statistics
    selector = Selector(settings.reasons, settings.share, usual)
    return ReviewQueue(settings, selector=selector, on_alarm=note)


def _may_pass(error: Exception) -> bool:
    """Return whether a failed write may succeed later: room can be made on a full disk."""
    return isinstance(error, OSError) and not isinstance(error, PermissionError | FileNotFoundError)


def _write_mask(path: Path, result: Segmentation) -> None:
    from magtiles_seg.marking import encode_result

    write(path, encode_result(result.mask * 255))


def _readers(names: Sequence[str]) -> int:
    """Return how many threads read ahead; FTP servers allow few connections."""
    remote = bool(names) and is_url(names[0]) and not names[0].startswith("ftp://")
    return REMOTE_READERS if remote else LOCAL_READERS


def _text(text: str) -> str:
    return as_text(without_secrets(text))
