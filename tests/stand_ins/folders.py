"""Folders that refuse to be listed."""

from __future__ import annotations

import errno
import os
from pathlib import Path
from typing import Any

import pytest


def forbid(monkeypatch: pytest.MonkeyPatch, folder: Path) -> None:
    """Let a folder refuse to be listed, as for a user without permission; tests may run as root."""
    scan = os.scandir

    def refuse(path: str | int) -> Any:  # noqa: ANN401  (an iterator of os)
        if not isinstance(path, int) and Path(path) == folder:
            raise PermissionError(errno.EACCES, "Permission denied", str(path))
        return scan(path)

    monkeypatch.setattr(os, "scandir", refuse)
