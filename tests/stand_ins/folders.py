"""Folders that refuse to be listed."""

from __future__ import annotations

import errno
import os
from pathlib import Path
from typing import Any

import pytest


def forbid(monkeypatch: pytest.MonkeyPatch, folder: Path) -> None:
    """Let a folder refuse to be listed, as for a user without permission; tests may run as root."""
    for name in ("scandir", "listdir"):
        there = getattr(os, name)

        def refuse(path: str | int, there: Any = there) -> Any:  # noqa: ANN401  (names, as of os)
            if not isinstance(path, int) and Path(path) == folder:
                raise PermissionError(errno.EACCES, "Permission denied", str(path))
            return there(path)

        monkeypatch.setattr(os, name, refuse)
