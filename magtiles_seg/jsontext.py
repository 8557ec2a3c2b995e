"""JSON out of files that others may have written: bounded, plain, and nothing silently odd."""

from __future__ import annotations

import json
import math
import re
import stat
from collections.abc import Mapping
from pathlib import Path
from typing import Any

MOST_CHARS = 1 << 20
"""Longest text that is read: far above any card, manifest or selection."""

_MOST_DEPTH = 32
_MOST_INTEGER = 2**63 - 1
_STRING = re.compile(r'"(?:[^"\\]|\\.)*(?:"|\\?\Z)', re.DOTALL)
"""One that is never closed ends with the text: each character is looked at once."""

_BRACKET = re.compile(r"[\[{]|[\]}]")


def parse_json(text: str) -> Any:  # noqa: ANN401 - whatever stands there
    """Return what a JSON text holds.

    Raises:
        ValueError: It is not JSON, longer than `MOST_CHARS`, nested more than 32 deep, or holds a
            number that is not finite or beyond 64 bits, or half of a character.
    """
    if len(text) > MOST_CHARS:
        raise ValueError(f"{len(text)} characters, expected at most {MOST_CHARS}")
    if _depth(text) > _MOST_DEPTH:
        raise ValueError(f"nested more than {_MOST_DEPTH} deep")
    value = json.loads(
        text, parse_int=_integer, parse_float=_finite, parse_constant=_refuse_constant
    )
    if "\\ud" in text.lower():  # a surrogate without its other half cannot be printed or sent
        json.dumps(value, ensure_ascii=False).encode()
    return value


def read_json(path: Path) -> Any:  # noqa: ANN401
    """Return what a JSON file holds.

    Raises:
        OSError: It is not there, or cannot be read.
        ValueError: It is no ordinary file, larger than any of ours, not UTF-8, or see `parse_json`.
    """
    found = path.stat()
    if not stat.S_ISREG(found.st_mode) or found.st_size > 4 * MOST_CHARS:
        raise ValueError(f"it is no ordinary file of at most {4 * MOST_CHARS} bytes")
    return parse_json(path.read_text(encoding="utf-8"))


def _depth(text: str) -> int:
    """Return how deep brackets nest, found without recursion."""
    depth = deepest = 0
    for bracket in _BRACKET.findall(_STRING.sub("", text)):
        depth += 1 if bracket in "[{" else -1
        deepest = max(deepest, depth)
    return deepest


def _integer(digits: str) -> int:
    if len(digits) > 20 or abs(int(digits)) > _MOST_INTEGER:
        raise ValueError(f"the number {digits[:20]}… is beyond 64 bits")
    return int(digits)


def _finite(digits: str) -> float:
    number = float(digits)
    if not math.isfinite(number):
        raise ValueError(f"the number {digits[:20]} is not finite")
    return number


def _refuse_constant(name: str) -> Any:  # noqa: ANN401 - never returns
    raise ValueError(f"{name} is no number of JSON")


def flatten(tree: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Return `{"train.epochs": 28}` for `{"train": {"epochs": 28}}`."""
    flat: dict[str, Any] = {}
    for key, value in tree.items():
        name = f"{prefix}{key}"
        flat |= flatten(value, f"{name}.") if isinstance(value, dict) else {name: value}
    return flat
