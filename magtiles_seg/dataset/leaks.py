"""Old home of the leak report."""

from magtiles_seg.dataset.leakage import LeakReport, leaks

__all__ = ["LeakReport", "leaks"]
