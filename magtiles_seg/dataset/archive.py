"""Fetch and verify a data set: from a URL, a zip file, a folder, or drawn as synthetic tiles.

Downloads resume, archives are unpacked only after every member has been checked, and a data set
that is damaged is refused with the name of every bad file.
"""

from __future__ import annotations

import hashlib
import json
import shutil
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path

from PIL import Image

from magtiles_seg.dataset.download import Progress, download, sha256_of
from magtiles_seg.dataset.layouts import locate
from magtiles_seg.dataset.samples import Sample, raise_problems, read_mask, scan
from magtiles_seg.dataset.splits import data_sha256
from magtiles_seg.dataset.synthetic import write_dataset
from magtiles_seg.dataset.unpack import unpack
from magtiles_seg.errors import ConfigError, DataError
from magtiles_seg.labels import LABELS

_SYNTHETIC = "synthetic:"
_RECEIPT = ".fetched.json"
_INCOMING = ".incoming"
_NOTE = "folder.json"


def fetch(
    source: str,
    destination: Path,
    *,
    sha256: str | None = None,
    progress: Progress | None = None,
) -> Path:
    """Bring a data set here and return its root.

    A folder is used where it lies; anything else is written under `destination`, in place of what
    an earlier fetch from another source left there. What is there already from the same source is
    not fetched again.

    Args:
        source: URL, path of a zip file, path of a folder, or `synthetic:tiles=50,seed=0`.
        destination: Directory to unpack into; made if missing.
        sha256: What the archive must have, if given.
        progress: Called with (done, total or None): bytes of a download, tiles of a synthetic set.

    Raises:
        FileNotFoundError: A path that does not exist.
        ConfigError: The arguments after `synthetic:` are unknown.
        DataError: The download fails; the archive is damaged, unsafe or holds no data set; or
            foreign files lie in the way.
    """
    destination = Path(destination)
    if source.startswith(_SYNTHETIC):
        tiles, seed = _synthetic_options(source)
        key = f"{_SYNTHETIC}tiles={tiles},seed={seed}"
        return _once(
            key,
            destination,
            lambda to: write_dataset(to, tiles=tiles, seed=seed, progress=progress),
        )
    if source.startswith(("http://", "https://")):
        return _once(
            f"{source} sha256={sha256}",
            destination,
            lambda to: _unpack_url(source, to, sha256=sha256, progress=progress),
        )
    path = Path(source).expanduser()
    if path.is_dir():
        return locate(path)[1]
    if not path.is_file():
        raise FileNotFoundError(
            f"no data source {source!r}; expected a URL, a zip file, a folder, or 'synthetic:'"
        )
    actual = sha256_of(path)
    _check_sha256(path, actual, sha256)
    return _once(f"sha256={actual}", destination, lambda to: unpack(path, to))


def verify(
    root: Path,
    *,
    layout: str = "auto",
    labels: Sequence[str] = LABELS,
    progress: Progress | None = None,
) -> tuple[Sample, ...]:
    """Decode every picture and mask of a data set and return its samples.

    Args:
        root: The data set.
        layout: `"magnetic-tile"`, `"folder"` or `"auto"`.
        labels: Class names by index, background first.
        progress: Called with (pictures checked, pictures).

    Raises:
        FileNotFoundError: `root` is no directory.
        DataError: Pictures or masks are missing, damaged, or of two sizes; names all of them.
    """
    samples, problems = scan(root, layout=layout, labels=labels)
    for index, sample in enumerate(samples, start=1):
        problems += _damage(sample)
        if progress is not None:
            progress(index, len(samples))
    raise_problems(root, problems)
    return samples


def note_folder(destination: Path, samples: Sequence[Sample]) -> None:
    """Write what a folder that is used where it lies holds: a pipeline sees that it changed."""
    destination.mkdir(parents=True, exist_ok=True)
    note = json.dumps({"pictures": len(samples), "data_sha256": data_sha256(samples)})
    (destination / _NOTE).write_text(f"{note}\n", encoding="utf-8")


def _damage(sample: Sample) -> list[str]:
    """Return what is wrong with a sample's files."""
    problems = []
    mask_hw = picture_hw = None
    try:
        with Image.open(sample.image_path) as picture:
            picture.load()
            picture_hw = (picture.height, picture.width)
    except (OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
        problems.append(f"{sample.image_path}: picture is damaged: {error}")
    if sample.mask_path is not None:
        try:
            mask_hw = read_mask(sample.mask_path).shape
        except DataError as error:
            problems.append(str(error))
    if mask_hw and picture_hw and mask_hw != picture_hw:
        problems.append(
            f"{sample.mask_path}: mask is {mask_hw[1]} x {mask_hw[0]} px, "
            f"its picture {picture_hw[1]} x {picture_hw[0]} px"
        )
    return problems


def _once(key: str, destination: Path, bring: Callable[[Path], object]) -> Path:
    """Let `bring` fill a fresh directory and move that to `destination`, the receipt last."""
    entries = _received(destination, key)
    if entries and all((destination / name).exists() for name in entries):
        return locate(destination)[1]
    incoming = destination / _INCOMING
    _remove((incoming,))
    incoming.mkdir(parents=True)
    try:
        bring(incoming)
        locate(incoming)
        arrived = sorted(entry.name for entry in incoming.iterdir())
        _remove(destination / name for name in _received(destination))
        (destination / _RECEIPT).unlink(missing_ok=True)
        in_the_way = [name for name in arrived if (destination / name).exists()]
        if in_the_way:
            raise DataError(
                f"{destination} already holds {', '.join(in_the_way)}, not fetched by "
                "magtiles-seg; remove it or choose another directory"
            )
        receipt = json.dumps({"key": key, "entries": arrived})
        for name in arrived:
            (incoming / name).rename(destination / name)
        (destination / _RECEIPT).write_text(receipt, encoding="utf-8")
    finally:
        _remove((incoming,))
    return locate(destination)[1]


def _received(destination: Path, key: str | None = None) -> list[str]:
    """Return the names an earlier fetch (with a key, only that one) left in `destination`."""
    try:
        receipt = json.loads((destination / _RECEIPT).read_text(encoding="utf-8"))
        names = [str(name) for name in receipt["entries"]]
    except (OSError, ValueError, KeyError, TypeError):
        return []
    inside = all(name == Path(name).name and name not in (".", "..") for name in names)
    return names if inside and key in (None, receipt["key"]) else []


def _remove(paths: Iterable[Path]) -> None:
    for path in paths:
        if path.is_dir() and not path.is_symlink():
            shutil.rmtree(path)
        else:
            path.unlink(missing_ok=True)


def _unpack_url(url: str, to: Path, *, sha256: str | None, progress: Progress | None) -> None:
    """Download a zip beside `to`, so that a broken transfer survives it, and unpack it."""
    name = hashlib.sha256(url.encode()).hexdigest()[:12]
    archive = download(url, to.parent / f".{name}.zip", progress=progress)
    try:
        _check_sha256(archive, sha256_of(archive), sha256, url)
        unpack(archive, to)
    finally:
        archive.unlink()


def _check_sha256(path: Path, actual: str, expected: str | None, url: str = "") -> None:
    if expected and actual != expected.lower():
        raise DataError(
            f"{url or path} has the SHA-256 {actual}; expected {expected}; "
            "the file was damaged or replaced: fetch it again, or correct data_load.sha256"
        )


def _synthetic_options(source: str) -> tuple[int, int]:
    """Return (tiles, seed) of `synthetic:tiles=50,seed=0`; both may be left out."""
    options = {"tiles": 50, "seed": 0}
    for item in filter(None, source.removeprefix(_SYNTHETIC).split(",")):
        name, _, value = item.partition("=")
        if name.strip() not in options or not value.strip().isdecimal():
            raise ConfigError(
                f"data source {source!r}: unknown {item!r}; expected synthetic:tiles=50,seed=0"
            )
        options[name.strip()] = int(value)
    return options["tiles"], options["seed"]
