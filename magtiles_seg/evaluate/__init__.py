"""How good a model is: metrics, the protocols they are measured under, thresholds and reports."""

from __future__ import annotations

from magtiles_seg.evaluate.decide import choose_decision
from magtiles_seg.evaluate.metrics import PooledBinary
from magtiles_seg.evaluate.protocols import PROTOCOLS, Protocol, get_protocol
from magtiles_seg.evaluate.report import EvaluationResult, evaluate, summarize
from magtiles_seg.evaluate.scoring import Records, join_records

__all__ = [
    "PROTOCOLS",
    "EvaluationResult",
    "PooledBinary",
    "Protocol",
    "Records",
    "choose_decision",
    "evaluate",
    "get_protocol",
    "join_records",
    "summarize",
]
