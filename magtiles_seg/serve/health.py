"""Readiness: the service is warm, and still answers its golden tile as the library does."""

from __future__ import annotations

import asyncio
import logging
import time

import numpy as np

from magtiles_seg.files import encode_png
from magtiles_seg.infer.segmenter import Segmenter
from magtiles_seg.serve.batching import Batcher
from magtiles_seg.serve.decoding import Decoders
from magtiles_seg.serve.metrics import Metrics

EVERY_S = 30.0
"""Seconds between two looks at the golden tile."""

_PATIENCE = 4  # A tile that took so many times `EVERY_S` means that the model hangs.
_TOLERANCE = 1e-3
_GOLDEN_SEED = 5
_log = logging.getLogger("magtiles_seg.serve")


class Readiness:
    """Sends a synthetic tile with a blowhole through the service's own ways, again and again.

    What is expected is the answer of the `Segmenter` itself, called past the queue at start.

    Attributes:
        draining: Set when the process is about to end.
    """

    def __init__(
        self,
        segmenter: Segmenter,
        batcher: Batcher,
        metrics: Metrics,
        decoders: Decoders | None = None,
    ) -> None:
        """Ask the library once; takes one inference."""
        from magtiles_seg.dataset.synthetic import synthetic_tile

        tile = synthetic_tile(_GOLDEN_SEED, defect="blowhole", size_hw=(288, 220))
        self._tile = tile.image
        self._golden = segmenter(self._tile)
        self._file = encode_png(self._tile)
        self._decoders = decoders
        self._batcher = batcher
        self._metrics = metrics
        self._good_at: float | None = None
        self._trouble = "the service is warming up"
        self.draining = False

    def trouble(self) -> str | None:
        """Return why the service should get no requests, or None."""
        if self.draining:
            return "the service is about to end"
        if self._good_at is None:
            return self._trouble
        if time.monotonic() - self._good_at > _PATIENCE * EVERY_S:
            return "the golden tile has not been answered for some time"
        return None

    async def check(self) -> None:
        """Send the tile through decoding and the queue, and judge the answer."""
        try:
            decoders = self._decoders
            tile = self._tile
            if decoders is not None:
                tile = await decoders.decode(self._file, own_px=tile.size)
            result = await self._batcher.submit(tile)
        except Exception as error:
            _log.error("the golden tile failed", exc_info=error)
            self._good_at, self._trouble = None, "the golden tile could not be answered"
        else:
            gap = float(np.abs(result.probability - self._golden.probability).max())
            if gap <= _TOLERANCE and result.verdict == self._golden.verdict:
                self._good_at = time.monotonic()
            else:
                _log.error("the golden tile's probabilities moved by %.4f", gap)
                self._good_at, self._trouble = None, "the golden tile is not reproduced"
        self._metrics.ready.set(self.trouble() is None)

    async def run(self) -> None:
        """Check until cancelled."""
        while True:
            await self.check()
            await asyncio.sleep(EVERY_S)
