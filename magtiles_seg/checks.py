"""Checks values against a dataclass: types, choices, ranges; names the nearest known word.

Choices and ranges stand in a field's metadata, so that a section of parameters reads as a table.
"""

from __future__ import annotations

import difflib
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import field, fields
from typing import Any

from magtiles_seg.errors import ConfigError


def one_of(default: str, *choices: str) -> Any:  # noqa: ANN401  (stands for the field's own type)
    """Return a dataclass field that admits the given words."""
    return field(default=default, metadata={"choices": choices})


def within(default: float | None, low: float, high: float | None = None) -> Any:  # noqa: ANN401
    """Return a dataclass field whose values lie in [low, high]; no `high` means no upper bound."""
    return field(default=default, metadata={"low": low, "high": high})


def check_fields(
    owner: type, prefix: str, values: Mapping[str, Any]
) -> tuple[list[str], dict[str, Any]]:
    """Check values against the fields of a dataclass.

    Args:
        owner: Dataclass of fields bool, int, float, str, `tuple[str, ...]`, or these `| None`.
        prefix: Put before each key in a message, as in `train.epochs`.
        values: What was given, by key.

    Returns:
        What is wrong, one line a mistake, and the values brought to their types.
    """
    specs = {item.name: item for item in fields(owner)}
    known = [f"{prefix}.{key}" for key in specs]
    found: list[str] = []
    checked: dict[str, Any] = {}
    for key, value in values.items():
        full = f"{prefix}.{key}"
        if key not in specs:
            found.append(f"unknown key {full!r}{nearest(full, known)}")
            continue
        mistake, checked[key] = _check_value(value, str(specs[key].type))
        if mistake is None:
            mistake = _check_bounds(checked[key], specs[key].metadata)
        if mistake is not None:
            found.append(f"{full}: {mistake}")
    return found, checked


def _check_value(value: object, wanted: str) -> tuple[str | None, Any]:
    """Return a mistake or None, and the value (an int becomes a float, a list a tuple)."""
    if wanted.endswith(" | None"):
        known = wanted.removesuffix(" | None")
        return (None, None) if value is None else _check_value(value, known)
    if wanted == "float" and isinstance(value, int | float) and not isinstance(value, bool):
        if math.isfinite(value):
            return None, float(value)
        return f"expected a finite number, got {value}", value
    if wanted == "tuple[str, ...]" and isinstance(value, list | tuple):
        if value and all(isinstance(item, str) for item in value):
            return None, tuple(value)
        return f"expected a list of names, got {value!r}", value
    fits = {
        "bool": isinstance(value, bool),
        "int": isinstance(value, int) and not isinstance(value, bool),
        "str": isinstance(value, str) and value != "",
    }
    if fits.get(wanted, False):
        return None, value
    return f"expected {wanted}, got {type(value).__name__} {value!r}", value


def _check_bounds(value: Any, metadata: Mapping[str, Any]) -> str | None:  # noqa: ANN401
    check = metadata.get("check")
    if check is not None:
        return str(mistake) if (mistake := check(value)) else None
    choices = metadata.get("choices")
    if choices and value not in choices:
        near = nearest(str(value), choices)
        return f"expected one of {', '.join(choices)}, got {value!r}{near}"
    low, high = metadata.get("low"), metadata.get("high")
    if (
        low is not None
        and value is not None
        and not (low <= value and (high is None or value <= high))
    ):
        wanted = f"at least {low}" if high is None else f"{low} to {high}"
        return f"expected {wanted}, got {value}"
    return None


def nearest(name: str, known: Iterable[str]) -> str:
    """Return `; did you mean '…'?` with the known word nearest to a name, or nothing."""
    near = difflib.get_close_matches(name, list(known), n=1)
    return f"; did you mean {near[0]!r}?" if near else ""


def raise_if_any(found: Sequence[str], where: str) -> None:
    """Raise one ConfigError that holds every mistake found, if there are any."""
    if len(found) == 1:
        raise ConfigError(f"{where}: {found[0]}")
    if found:
        raise ConfigError("\n  - ".join([f"{where}: {len(found)} mistakes", *found]))
