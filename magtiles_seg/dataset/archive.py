"""Fetch and verify a data set: from a URL, a zip file, a folder, or drawn as synthetic tiles."""

from __future__ import annotations

import json
import os
import re
import shutil
import warnings
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from functools import partial
from pathlib import Path

from magtiles_seg.dataset.checksums import Checksums, check_files, leave_out, read_checksums
from magtiles_seg.dataset.download import OpenEndedProgress, download
from magtiles_seg.dataset.formats.convert import Wanted, convert, fingerprint, format_of
from magtiles_seg.dataset.layouts import FORMAT_NAMES, left_layout, locate
from magtiles_seg.dataset.masks import DESCRIPTION
from magtiles_seg.dataset.samples import Sample, check_sample, raise_problems, scan
from magtiles_seg.dataset.splits import data_sha256
from magtiles_seg.dataset.synthetic import SYNTHETIC, read_source, write_dataset
from magtiles_seg.dataset.unpack import unpack
from magtiles_seg.errors import ConfigError, DataError
from magtiles_seg.files import sha256_of, write
from magtiles_seg.labels import LABELS
from magtiles_seg.names import counted

_RECEIPT = ".fetched.json"
_INCOMING = ".incoming"
_RAW = "raw"
_LOCK = ".lock"
_NOTE = "folder.json"


def fetch(
    source: str | os.PathLike[str],
    destination: str | os.PathLike[str],
    *,
    sha256: str | None = None,
    checksums: Path | None = None,
    wanted: Wanted | None = None,
    progress: OpenEndedProgress | None = None,
    waiting: Callable[[str], object] = warnings.warn,
) -> Path:
    """Bring a data set here and return its root.

    A folder is used where it lies; anything else is written under `destination`, in place of what
    an earlier fetch from another source left there. What is there already from the same source is
    not fetched again. Of several processes that fetch into one directory the first does it, and
    the others wait for it.

    Args:
        source: URL, path of a zip file, path of a folder, or `synthetic:tiles=50,seed=0`.
        destination: Directory to unpack into; made if missing.
        sha256: What the archive must have, if given.
        checksums: A list of files with the SHA-256 of each, as `sha256sum` writes it: what an
            archive holds beside them is left out, and they are compared. Then `destination` holds
            the same wherever it came from. Synthetic tiles are drawn, and not compared.
        wanted: The layout, and what is made of a data set of another tool: it is written under
            `destination` in the layout `folder`, also from a folder, and again when that has
            changed. None: such ones are refused.
        progress: Called with (done, total or None): bytes of a download, tiles of a synthetic set,
            pictures that are converted.
        waiting: Called once if it has to wait for another process.

    Raises:
        FileNotFoundError: A path that does not exist.
        ConfigError: The arguments after `synthetic:` are unknown, `sha256` is no SHA-256 or not
            of an archive, `checksums` is no such list or of files that are converted, or the class
            map would change nothing.
        DataError: The download fails; the archive is damaged, unsafe or holds no data set; foreign
            files lie in the way; or the files are not those of `checksums`.
    """
    source, destination = os.fspath(source), Path(destination)
    layout = "auto" if wanted is None else left_layout(wanted.layout)
    once = partial(_once, destination, source=source, layout=layout, waiting=waiting)
    _check_options(source, sha256)
    if source.startswith(SYNTHETIC):
        _check_map_is_used(None, wanted, source)
        drawn = _read_synthetic(source)
        return once(
            _synthetic_key(source), lambda to: write_dataset(to, **drawn, progress=progress)
        )
    listed = None if checksums is None else read_checksums(checksums)
    folder = source_folder(source)
    if folder is not None:
        name = None if wanted is None else format_of(folder, wanted)
        _check_map_is_used(name, wanted, source)
        _check_is_listed(listed, name is not None, source)
        if wanted is None or name is None:
            _forget_conversion(folder, destination)
            root = locate(folder, layout)[1]
        else:
            key = f"folder={folder.resolve()} files={fingerprint(folder)} as={wanted.key}"
            root = once(key, lambda to: convert(folder, to, name, wanted, progress=progress))
    else:
        converts = wanted is not None and (wanted.maps or wanted.layout in FORMAT_NAMES)
        _check_is_listed(listed, converts, source)
        key, bring = _archive(source, sha256, progress)
        if checksums is not None and listed is not None:
            key = f"checksums={sha256_of(checksums)}"  # nothing else of the source is kept
            bring = _listed_alone(bring, listed, source, layout)
        elif wanted is not None:
            key = f"{key} as={wanted.key}" if converts else key
            bring = _converted(bring, wanted, source, progress)
        root = once(key, bring)
    if listed is not None:
        check_files(root, listed, source=str(root))
    return root


def _archive(
    source: str, sha256: str | None, progress: OpenEndedProgress | None
) -> tuple[str, Callable[[Path], object]]:
    """Return what a zip is known by, and what unpacks it into a folder.

    Raises:
        FileNotFoundError, DataError: There is no such file, or it has another SHA-256.
    """
    if _is_url(source):
        return f"{source} sha256={sha256}", lambda to: _unpack_url(
            source, to, sha256=sha256, progress=progress
        )
    path = Path(source).expanduser()
    if not path.is_file():
        raise FileNotFoundError(
            f"no data source {source!r}; expected a URL, a zip file, a folder, or 'synthetic:'"
        )
    actual = sha256_of(path)
    _check_sha256(path, actual, sha256)
    return f"sha256={actual}", lambda to: unpack(path, to)


def _listed_alone(
    bring: Callable[[Path], object], listed: Checksums, source: str, layout: str
) -> Callable[[Path], object]:
    """Let nothing but the listed files arrive, and only if all of them do."""

    def bring_and_check(to: Path) -> None:
        bring(to)
        try:
            root = locate(to, layout, called=source)[1]
        except DataError as error:
            raise DataError(
                f"{source}: none of the data set that data_load.checksums lists is in it; for data "
                f"of your own set data_load.checksums to null ({error})"
            ) from error
        leave_out(to, root, listed)
        check_files(root, listed, source=source)

    return bring_and_check


def _converted(
    bring: Callable[[Path], object],
    wanted: Wanted,
    source: str,
    progress: OpenEndedProgress | None,
) -> Callable[[Path], object]:
    """Let a data set of another tool arrive in the layout `folder`, and others as they are."""

    def bring_and_convert(to: Path) -> None:
        raw = to / _RAW
        bring(raw)
        name = format_of(raw, wanted)
        _check_map_is_used(name, wanted, source)
        if name is not None:
            convert(raw, to, name, wanted, progress=progress)
        else:
            for entry in list(raw.iterdir()):
                entry.rename(to / entry.name)
        _remove((raw,))

    return bring_and_convert


def _check_map_is_used(name: str | None, wanted: Wanted | None, source: str) -> None:
    """Refuse a class map where nothing is converted, so that it would change nothing."""
    if name is None and wanted is not None and wanted.class_map is not None:
        raise ConfigError(
            f"data_load.class_map is set, but the classes of {source} are its folders' names and "
            "are read as they are; set it to null"
        )


def _check_is_listed(listed: Checksums | None, converts: bool, source: str) -> None:
    """Refuse a list of files where others are written from them."""
    if listed is not None and converts:
        raise ConfigError(
            f"data_load.checksums lists files that are used as they are, but {source} is converted "
            "(data_load.layout, class_map or unlabelled); set data_load.checksums to null"
        )


def converted_from(folder: Path, destination: Path) -> bool:
    """Return whether `destination` holds what a folder was converted to."""
    return _receipt(destination)[0].startswith(f"folder={folder.resolve()} ")


def check_brought(
    source: str,
    destination: Path,
    *,
    listed: bool = True,
    note: Callable[[str], object] = warnings.warn,
) -> None:
    """Refuse a loaded data set that came from elsewhere than the source that is now named.

    A folder is known by its name, for a loaded data set may go to another machine without it. Other
    data in place of those of a URL, the default source, are used, and told.

    Args:
        source: As of `fetch`.
        destination: Where the data set was loaded to.
        listed: Whether a list of checksums says what the data are, wherever they come from.
        note: Told in a sentence what is used in place of a URL's data.

    Raises:
        DataError: It did.
        ConfigError: The options of a synthetic source are unknown.
    """
    key, _ = _receipt(destination)
    if not key:
        if destination.is_dir() and [path.name for path in destination.iterdir()] == [_NOTE]:
            raise DataError(
                f"{destination} holds no pictures: a folder was loaded, which is used where it "
                "lies; name it here too: data_load.source in params.yaml, or --set"
            )
        return
    path = Path(source).expanduser()
    if source.startswith(SYNTHETIC):
        came, path = key == _synthetic_key(source), destination
    elif _is_url(source):
        came, path = key.startswith(f"{source} "), destination
        came = came or (listed and key.startswith("checksums="))
        if not came and not _is_url(key):
            note(
                f"{destination} was not loaded from data_load.source, {source!r}, but from "
                f"{_said(key)}, and is used; load the source's data by: magtiles-seg data load"
            )
            return
    elif path.is_file() or path.suffix.lower() == ".zip":
        came = key.startswith(("sha256=", "checksums="))
    else:
        folder = key.removeprefix("folder=").partition(" files=")[0]
        came = key.startswith("folder=") and Path(folder).name == path.resolve().name
    if not came:
        raise DataError(
            f"{destination} was loaded from {_said(key)}, another source than {source!r}"
            f"{'' if path.exists() else ', which is not there'}; correct data_load.source, or load "
            "it first: magtiles-seg data load"
        )


def _said(key: str) -> str:
    """Return what a receipt's key tells of where its data came from."""
    if key.startswith("checksums="):
        return "the files that data_load.checksums listed"
    if key.startswith("sha256="):
        return "a zip"
    return key.removeprefix("folder=").partition(" files=")[0].partition(" sha256=")[0]


def _read_synthetic(source: str) -> dict[str, int]:
    return read_source(source, tiles=50, seed=0)


def _synthetic_key(source: str) -> str:
    drawn = _read_synthetic(source)
    return f"{SYNTHETIC}tiles={drawn['tiles']},seed={drawn['seed']}"


def _forget_conversion(folder: Path, destination: Path) -> None:
    """Remove what a folder was converted to, for now it is used where it lies."""
    if converted_from(folder, destination):
        _remove(destination / name for name in [*_receipt(destination)[1], _RECEIPT])


def read_summary(root: Path) -> str | None:
    """Return what was found when a data set was converted, or None where it was not."""
    try:
        said = json.loads((root / DESCRIPTION).read_text(encoding="utf-8")).get("said")
    except (OSError, ValueError, AttributeError):
        return None
    return said if isinstance(said, str) else None


def _is_url(source: str) -> bool:
    return source.lower().startswith(("http://", "https://"))


def source_folder(source: str) -> Path | None:
    """Return the folder that a source names, which is used where it lies, or None."""
    folder = Path(source).expanduser()
    return folder if folder.is_dir() else None


def verify(
    root: Path,
    *,
    layout: str = "auto",
    labels: Sequence[str] = LABELS,
    progress: OpenEndedProgress | None = None,
    note: Callable[[str], object] = warnings.warn,
) -> tuple[Sample, ...]:
    """Read every picture and mask of a data set as training does, and return its samples.

    Args:
        root: The data set.
        layout: `"magnetic-tile"`, `"folder"` or `"auto"`.
        labels: Class names by index, background first.
        progress: Called with (pictures checked, pictures).
        note: Called with each thing that is no error, but that somebody should know of.

    Raises:
        FileNotFoundError: `root` is no directory.
        DataError: Pictures or masks are missing, double or damaged, of two sizes, or not to be
            read; names all of them.
    """
    found = scan(root, layout=layout, labels=labels)
    problems, notes, inverted = [*found.problems], [*found.notes], list[Sample]()
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        checked = pool.map(lambda sample: check_sample(sample, labels), found.samples)
        for index, (sample, check) in enumerate(zip(found.samples, checked, strict=True), start=1):
            problems += check.problems
            notes += check.notes
            if found.layout == "folder" and check.defect_fraction > 0.5:
                inverted.append(sample)
            if progress is not None:
                progress(index, len(found.samples))
    raise_problems(root, problems)
    if inverted:
        notes.append(_mostly_defect(inverted, len(found.samples)))
    for text in notes:
        note(text)
    return found.samples


def note_folder(destination: Path, samples: Sequence[Sample]) -> None:
    """Write what a folder that is used where it lies holds: a pipeline sees that it changed."""
    note = json.dumps({"pictures": len(samples), "data_sha256": data_sha256(samples)})
    write(destination / _NOTE, f"{note}\n")


def _mostly_defect(inverted: Sequence[Sample], pictures: int) -> str:
    names = ", ".join(str(sample.mask_path) for sample in inverted[:5])
    return (
        f"{len(inverted)} of {counted(pictures, 'mask')} mark more than half of the picture as "
        f"defect: {names}{' …' if len(inverted) > 5 else ''}; if defects are black on white "
        "there, invert them"
    )


def _once(
    destination: Path,
    key: str,
    bring: Callable[[Path], object],
    *,
    source: str,
    layout: str,
    waiting: Callable[[str], object],
) -> Path:
    """Let `bring` fill a fresh directory and move that to `destination`, one process at a time."""
    if _is_there(destination, key):
        return locate(destination, layout)[1]
    with _alone(destination, waiting):
        if not _is_there(destination, key):  # the one before us may have brought it
            try:
                _bring(destination, key, bring, source, layout)
            except OSError as error:
                raise DataError(f"cannot write the data set to {destination}: {error}") from error
    return locate(destination, layout)[1]


def _bring(
    destination: Path, key: str, bring: Callable[[Path], object], source: str, layout: str
) -> None:
    incoming = destination / _INCOMING
    _remove((incoming,))
    incoming.mkdir(parents=True)
    try:
        bring(incoming)
        locate(incoming, layout, called=source)
        # Hidden files are never read, and one in the receipt's name would be taken for ours.
        arrived = sorted(entry.name for entry in incoming.glob("[!.]*"))
        _, before = _receipt(destination)
        in_the_way = [n for n in arrived if n not in before and (destination / n).exists()]
        if in_the_way:
            raise DataError(
                f"{destination} already holds {', '.join(in_the_way)}, not fetched by "
                "magtiles-seg; remove it or choose another directory"
            )
        _remove(destination / name for name in before)
        # The receipt first: whatever ends this process now, the next one knows what is not foreign.
        receipt = json.dumps({"key": key, "entries": arrived})
        write(destination / _RECEIPT, receipt)
        for name in arrived:
            (incoming / name).rename(destination / name)
    finally:
        _remove((incoming,))


@contextmanager
def _alone(destination: Path, waiting: Callable[[str], object]) -> Iterator[None]:
    """Hold the directory's lock, which the system frees when this process ends, however it ends."""
    from filelock import FileLock, Timeout

    path = destination / _LOCK
    try:
        destination.mkdir(parents=True, exist_ok=True)
        lock = FileLock(path)
        try:
            lock.acquire(blocking=False)
        except Timeout:
            waiting(f"another process is loading data into {destination}; waiting until it is done")
            lock.acquire()
    except OSError as error:
        raise DataError(
            f"cannot write to {destination}: {error}; choose another data_load.directory"
        ) from error
    try:
        yield
    finally:
        with suppress(OSError):  # Windows removes no open file
            path.unlink()  # while it is held: who waits for it finds out and takes a new one
        lock.release()


def _is_there(destination: Path, key: str) -> bool:
    known, entries = _receipt(destination)
    return known == key and bool(entries) and all((destination / n).exists() for n in entries)


def _receipt(destination: Path) -> tuple[str, list[str]]:
    """Return the key and the names in it of what an earlier fetch left in `destination`."""
    try:
        receipt = json.loads((destination / _RECEIPT).read_text(encoding="utf-8"))
        key, names = str(receipt["key"]), [str(name) for name in receipt["entries"]]
    except (OSError, ValueError, KeyError, TypeError, RecursionError):
        return "", []
    inside = all(name == Path(name).name and name not in (".", "..") for name in names)
    return key, names if inside else []


def _remove(paths: Iterable[Path]) -> None:
    for path in paths:
        if path.is_dir() and not path.is_symlink():
            shutil.rmtree(path)
        else:
            path.unlink(missing_ok=True)


def _unpack_url(
    url: str, to: Path, *, sha256: str | None, progress: OpenEndedProgress | None
) -> None:
    """Download a zip beside `to`, so that a broken transfer survives it, and unpack it."""
    name = sha256_of(url.encode())[:12]
    archive = download(url, to.parent / f".{name}.zip", progress=progress)
    try:
        _check_sha256(archive, sha256_of(archive), sha256, url)
        unpack(archive, to)
    finally:
        archive.unlink()


def _check_options(source: str, sha256: str | None) -> None:
    if sha256 is None:
        return
    if re.fullmatch("[0-9a-fA-F]{64}", sha256) is None:
        raise ConfigError(
            f"data_load.sha256 is {sha256!r}; expected 64 hexadecimal digits, or null for no check"
        )
    if source.startswith(SYNTHETIC) or source_folder(source) is not None:
        raise ConfigError(
            f"data_load.sha256 is of an archive, but the source {source!r} is none; set it to null"
        )


def _check_sha256(path: Path, actual: str, expected: str | None, url: str = "") -> None:
    if expected and actual != expected.lower():
        raise DataError(
            f"{url or path} has the SHA-256 {actual}; expected {expected}; "
            "the file was damaged or replaced: fetch it again, or correct data_load.sha256"
        )
