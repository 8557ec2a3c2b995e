"""Archives of any size: every picture of a folder or an object store becomes a row of Parquet."""

from __future__ import annotations

import warnings

from magtiles_seg.batch.run import BatchProgress, Engine, Outcome, run_batch, summarize
from magtiles_seg.batch.source import resolve
from magtiles_seg.batch.work import Job

__all__ = ["BatchProgress", "Engine", "Job", "Outcome", "resolve", "run_batch", "summarize"]


def __getattr__(name: str) -> type[BatchProgress]:
    """Return `BatchProgress` by its name before 0.2; it goes in 0.3."""
    if name != "Progress":
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    present = f"{__name__}.BatchProgress"
    warnings.warn(f"{__name__}.Progress is now {present}", DeprecationWarning, stacklevel=2)
    return BatchProgress
