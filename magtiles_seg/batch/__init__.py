"""Archives of any size: every picture of a folder or an object store becomes a row of Parquet."""

from __future__ import annotations

from magtiles_seg.batch.run import Engine, Outcome, Progress, run_batch, summarize
from magtiles_seg.batch.source import resolve
from magtiles_seg.batch.work import Job

__all__ = ["Engine", "Job", "Outcome", "Progress", "resolve", "run_batch", "summarize"]
