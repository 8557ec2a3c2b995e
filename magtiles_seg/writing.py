"""How a result is written: PNG and JSON files, CSV."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from magtiles_seg.errors import ConfigError
from magtiles_seg.files import Lock, write, write_json
from magtiles_seg.marking import encode_result, is_result, read_manifest
from magtiles_seg.names import is_address
from magtiles_seg.regions import DEFECT_COLUMNS

if TYPE_CHECKING:
    from collections.abc import Iterable

    from magtiles_seg.regions import Defect
    from magtiles_seg.result import Segmentation
    from magtiles_seg.tile import TileResult


def format_csv(defects: Iterable[Defect]) -> str:
    """Return one header line and a line per defect; without a scale the mm columns are empty."""
    import csv
    import io

    text = io.StringIO()
    rows = csv.DictWriter(text, DEFECT_COLUMNS, lineterminator="\n")
    rows.writeheader()
    rows.writerows(defect.row() for defect in defects)
    return text.getvalue()


_PICTURES = ("mask.png", "overlay.png", "panel.png", "probability.png")
_MANIFEST = "result.json"
_MAX_NAME_BYTES = 255
_LOCK = ".magtiles-seg.lock"


def save_result(result: Segmentation, directory: str | os.PathLike[str], stem: str | None) -> Path:
    """Write a result's pictures and, last, its JSON; return the JSON's path.

    Raises:
        ConfigError: `stem` is no plain file name, or a file that is none of ours is in the way.
        OSError: The directory or a file cannot be written.
    """
    check_free(directory, stem)
    heat = np.rint(result.probability * 255)
    drawn = (result.mask * np.uint8(255), result.overlay(), result.panel(), heat)
    pictures = [encode_result(picture.astype(np.uint8)) for picture in drawn]
    return _write_all(_paths(directory, stem), pictures, result.to_dict())


def save_tile(result: TileResult, directory: str | os.PathLike[str], stem: str | None) -> Path:
    """Write a tile's overlay and, last, its JSON; return the JSON's path.

    Raises:
        ConfigError: `stem` is no plain file name, or a file that is none of ours is in the way.
        OSError: The directory or a file cannot be written.
    """
    check_free(directory, stem, of_tile=True)
    content = {**result.to_dict(), "overlay": result.overlay_dict()}
    pictures = [encode_result(result.overlay())]
    return _write_all(_paths(directory, stem, of_tile=True), pictures, content)


def _write_all(paths: list[Path], pictures: list[bytes], content: dict[str, Any]) -> Path:
    """Write pictures and, last, the JSON of some content; return the JSON's path."""
    *of_pictures, manifest = paths
    manifest.parent.mkdir(parents=True, exist_ok=True)
    with Lock(manifest.parent / _LOCK):  # two runs never leave one's mask beside the other's JSON
        manifest.unlink(missing_ok=True)  # an older one must not stand beside newer pictures
        for path, picture in zip(of_pictures, pictures, strict=True):
            write(path, picture)
        write_json(manifest, content)
    return manifest


def check_free(
    directory: str | os.PathLike[str], stem: str | None, *, of_tile: bool = False
) -> None:
    """Make sure that a result's files can be written without harm to anybody else's.

    Args:
        directory: Where they are to stand.
        stem: Put before each name.
        of_tile: Whether they are those of a tile.

    Raises:
        ConfigError: `stem` is no plain file name, the directory is an address, or a file that is
            none of ours is in the way.
    """
    if stem is not None and (not stem or Path(stem).name != stem or "\\" in stem or "\0" in stem):
        raise ConfigError(f"stem is {stem!r}; expected a plain file name, such as 'tile_7'")
    if is_address(directory):  # else a local folder called `s3:` would be made
        raise ConfigError(
            f"{os.fspath(directory)} is an address; expected a folder of this machine: write there "
            "and copy it"
        )
    paths = _paths(directory, stem, of_tile=of_tile)
    if max(len(os.fsencode(path.name)) for path in paths) > _MAX_NAME_BYTES:
        raise ConfigError(
            f"the results of '{stem}' would have names of more than {_MAX_NAME_BYTES} bytes; "
            "give the picture a shorter name"
        )
    for path in paths:
        if os.path.lexists(path) and not _is_ours(path):
            raise ConfigError(
                f"{path} would be overwritten, and is no result of magtiles-seg; "
                "write to another folder, or move the file away"
            )


def discard_result(
    directory: str | os.PathLike[str], stem: str | None, *, of_tile: bool = False
) -> None:
    """Delete an older result, so that it does not pass for one of a picture that now fails."""
    for path in reversed(_paths(directory, stem, of_tile=of_tile)):
        if _is_ours(path):
            path.unlink(missing_ok=True)


def stale_results(folder: Path, written: set[Path]) -> list[Path]:
    """Return the `result.json` of a folder, of other pictures than these, whose picture is gone.

    Args:
        folder: Where results were written.
        written: The `result.json` files of this run.
    """
    stale = []
    for path in sorted(folder.glob(f"*_{_MANIFEST}")):
        found = None if path in written else read_manifest(path)
        if found and isinstance(found["source"], str) and not os.path.lexists(found["source"]):
            stale.append(path)
    return stale


def _paths(
    directory: str | os.PathLike[str], stem: str | None, *, of_tile: bool = False
) -> list[Path]:
    """Return the files of a result or a tile, the JSON last."""
    names: tuple[str, ...] = (*_PICTURES, _MANIFEST)
    prefix = f"{stem}_" if stem else ""
    if of_tile:
        names, prefix = ("tile.png", "tile.json"), f"{stem}." if stem else ""
    return [Path(directory) / f"{prefix}{name}" for name in names]


def _is_ours(path: Path) -> bool:
    if path.suffix == ".png":
        return is_result(path)
    return read_manifest(path, of_tile=path.name.endswith("tile.json")) is not None
