"""Objects that have the names of one real version of a library, and no others."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

NAMES: dict[str, dict[str, str]] = json.loads(
    (Path(__file__).parent / "tensorrt_names.json").read_text(encoding="utf-8")
)
"""Public names of each class, by version and class, as `dir()` of the real classes lists them."""


class Strict:
    """An object of the library. A class made for a version bears `allowed`; a user's subclass of
    it may, as with the real library, have names of its own."""

    _module: Any
    _cuda: Any

    def __getattribute__(self, name: str) -> Any:  # noqa: ANN401
        _check(type(self), name)
        return object.__getattribute__(self, name)

    def __setattr__(self, name: str, value: object) -> None:
        _check(type(self), name)
        object.__setattr__(self, name, value)


def _check(kind: type, name: str) -> None:
    allowed = vars(kind).get("allowed")
    if allowed is not None and not name.startswith("_") and name not in allowed:
        raise AttributeError(f"{kind.__name__!r} object has no attribute {name!r}")
