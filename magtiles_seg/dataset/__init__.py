"""Data: fetch it, check it, group it by physical tile, split it, draw it.

>>> from magtiles_seg.dataset import fetch, find_samples, make_split
>>> samples = find_samples(fetch("synthetic:tiles=10,seed=0", Path("data")))
>>> split = make_split(samples, rule="grouped", fold=0)

Each name is loaded when it is first used.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from magtiles_seg.dataset.archive import fetch, verify
    from magtiles_seg.dataset.leakage import LeakReport, leaks
    from magtiles_seg.dataset.matching import Match, Matches, find_leaks, find_matches
    from magtiles_seg.dataset.proposal import save_proposal
    from magtiles_seg.dataset.samples import (
        Sample,
        find_samples,
        load_image,
        load_mask,
        load_soft_mask,
        load_target,
    )
    from magtiles_seg.dataset.splits import Split, fold_assignment, make_split
    from magtiles_seg.dataset.synthetic import SyntheticTile, synthetic_tile, write_dataset
    from magtiles_seg.dataset.tiles import group_tiles

__all__ = [
    "LeakReport",
    "Match",
    "Matches",
    "Sample",
    "Split",
    "SyntheticTile",
    "fetch",
    "find_leaks",
    "find_matches",
    "find_samples",
    "fold_assignment",
    "group_tiles",
    "leaks",
    "load_image",
    "load_mask",
    "load_soft_mask",
    "load_target",
    "make_split",
    "save_proposal",
    "synthetic_tile",
    "verify",
    "write_dataset",
]

_HOMES = {
    "LeakReport": "leakage",
    "Match": "matching",
    "Matches": "matching",
    "Sample": "samples",
    "Split": "splits",
    "SyntheticTile": "synthetic",
    "fetch": "archive",
    "find_leaks": "matching",
    "find_matches": "matching",
    "find_samples": "samples",
    "fold_assignment": "splits",
    "group_tiles": "tiles",
    "leaks": "leakage",
    "load_image": "samples",
    "load_mask": "samples",
    "load_soft_mask": "samples",
    "load_target": "samples",
    "make_split": "splits",
    "save_proposal": "proposal",
    "synthetic_tile": "synthetic",
    "verify": "archive",
    "write_dataset": "synthetic",
}


def __getattr__(name: str) -> object:
    """Load a public name from its module."""
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{_HOMES[name]}"), name)


def __dir__() -> list[str]:
    """List the public names."""
    return __all__
