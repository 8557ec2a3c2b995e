"""Archives of any size: every picture of a folder or an object store becomes a row of Parquet."""

from __future__ import annotations

from typing import Any

from magtiles_seg.batch.run import BatchProgress, Engine, Outcome, run_batch, summarize
from magtiles_seg.batch.source import resolve
from magtiles_seg.batch.work import Job
from magtiles_seg.moved import by_former_name

__all__ = ["BatchProgress", "Engine", "Job", "Outcome", "resolve", "run_batch", "summarize"]


def __getattr__(name: str) -> Any:  # noqa: ANN401 - of any type
    return by_former_name(name, {"Progress": "BatchProgress"}, globals())
