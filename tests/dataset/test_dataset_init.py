from __future__ import annotations

import subprocess
import sys

import pytest

from magtiles_seg import dataset


def test_dataset_every_public_name_is_there() -> None:
    assert dataset.__all__ == sorted(dataset.__all__)
    for name in dataset.__all__:
        assert getattr(dataset, name).__module__.startswith("magtiles_seg.dataset.")


def test_dataset_unknown_name_is_an_attribute_error() -> None:
    with pytest.raises(AttributeError, match="no attribute 'nonsense'"):
        dataset.nonsense  # noqa: B018


def test_dataset_import_alone_loads_neither_pillow_nor_opencv() -> None:
    code = "import sys, magtiles_seg.dataset; sys.exit(bool({'PIL', 'cv2'} & set(sys.modules)))"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
