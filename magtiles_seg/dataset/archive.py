"""Fetch and verify a data set: from a URL, a zip file, a folder, or drawn as synthetic tiles."""

from __future__ import annotations

import errno
import json
import lzma
import os
import re
import shutil
import stat
import struct
import warnings
import zipfile
import zlib
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from pathlib import Path, PurePosixPath

from magtiles_seg.dataset.checksums import Checksums, check_files, leave_out, read_checksums
from magtiles_seg.dataset.download import OpenEndedProgress, download
from magtiles_seg.dataset.formats.convert import Wanted, convert, fingerprint, format_of
from magtiles_seg.dataset.layouts import FORMAT_NAMES, locate, name_key
from magtiles_seg.dataset.masks import DESCRIPTION
from magtiles_seg.dataset.samples import Sample, check_sample, raise_problems, scan
from magtiles_seg.dataset.splits import data_sha256
from magtiles_seg.dataset.synthetic import SYNTHETIC, read_source, write_dataset
from magtiles_seg.errors import ConfigError, DataError
from magtiles_seg.files import sha256_of, write
from magtiles_seg.labels import LABELS

MAX_MEMBERS = 200_000
MAX_UNPACKED_BYTES = 16 << 30
MAX_RATIO = 100
"""How many times its archive a data set may grow to; pictures are compressed already."""

_RATIO_FREE_BYTES = 64 << 20
_COPY_BYTES = 1 << 20
_MAX_DEPTH = 32
_MAX_NAME_BYTES = 255
_MAX_PATH_BYTES = 1024
_ENCRYPTED_FLAGS = 0x1 | 0x40 | 0x2000
_METHODS = frozenset(
    {zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED, zipfile.ZIP_BZIP2, zipfile.ZIP_LZMA}
)
_UNREADABLE = (
    zipfile.BadZipFile,
    NotImplementedError,  # a newer kind of zip
    ValueError,  # undecodable names, offsets before the file
    EOFError,
    OverflowError,
    RuntimeError,
    struct.error,
    zlib.error,
    lzma.LZMAError,
)
"""All that zipfile and its decompressors raise on hostile input, beside OSError."""


def unpack(archive: Path, directory: Path) -> None:
    """Unpack a zip into a directory, after every member's name, kind and size has been checked.

    Args:
        archive: The zip file.
        directory: Where to; made if missing. When an error is raised, what was written stays there.

    Raises:
        DataError: No zip file, an unsafe or oversized one (nothing is written then), damaged
            members, or no room on the disk; names all.
    """
    try:
        with zipfile.ZipFile(archive) as opened:
            members = [info for info in opened.infolist() if not _is_folder(info)]
            _check_sizes(archive, members, directory)
            _raise(archive, "is not safe to unpack", _unsafe(members))
            _raise(archive, "is damaged", _extract(opened, members, directory))
    except DataError:
        raise
    except (*_UNREADABLE, OSError) as error:
        raise DataError(_no_zip(archive, error)) from error


def _no_zip(archive: Path, error: Exception) -> str:
    try:
        with archive.open("rb") as file:
            head = file.read(16)
    except OSError as unreadable:
        return f"{archive} cannot be read: {unreadable}"
    if head.startswith(b"PK"):
        return f"{archive} is no complete zip file: {error}; delete it and fetch it again"
    kind = "a web page" if head.lstrip().lower().startswith((b"<!doc", b"<html")) else repr(head)
    return f"{archive} is no zip file: it starts as {kind}; expected a zip archive of the data set"


def _check_sizes(archive: Path, members: list[zipfile.ZipInfo], directory: Path) -> None:
    """Refuse bombs by what the directory declares; `zipfile` never unpacks more than that."""
    if len(members) > MAX_MEMBERS:
        raise DataError(f"{archive} holds {len(members)} files; expected at most {MAX_MEMBERS}")
    packed_bytes = archive.stat().st_size
    bound = min(MAX_UNPACKED_BYTES, max(_RATIO_FREE_BYTES, MAX_RATIO * packed_bytes))
    total = sum(info.file_size for info in members)
    if total > bound:
        raise DataError(
            f"{archive} would unpack to {total} bytes; expected at most {bound} from an archive of "
            f"{packed_bytes} bytes: it looks like a zip bomb"
        )
    there = next(path for path in (directory.absolute(), *directory.absolute().parents)
                 if path.exists())  # fmt: skip
    free = shutil.disk_usage(there).free
    if total > free:
        raise DataError(
            f"{archive} unpacks to {total} bytes, but the disk of {directory} has {free} left; "
            "make room, or choose another data_load.directory"
        )


def _is_folder(info: zipfile.ZipInfo) -> bool:
    return info.orig_filename.endswith(("/", "\\"))


def _path_of(info: zipfile.ZipInfo) -> PurePosixPath:
    """Return a member's path; some old Windows programs separate folders by backslashes."""
    return PurePosixPath(info.orig_filename.replace("\\", "/"))


def _unsafe(members: list[zipfile.ZipInfo]) -> list[str]:
    """Return one line for each member that must not be written."""
    problems = []
    seen: set[str] = set()
    folders = {name_key(str(parent)) for info in members for parent in _path_of(info).parents}
    for info in members:
        path = _path_of(info)
        key = name_key(str(path))
        reason = next(_reasons(info, path), "")
        if not reason and key in seen:
            reason = "twice in the archive, but for case or Unicode form"
        if not reason and key in folders:
            reason = "a file and a folder at once"
        if reason:
            problems.append(f"{info.orig_filename[:300]!r}: {reason}")
        seen.add(key)
    return problems


def _reasons(info: zipfile.ZipInfo, path: PurePosixPath) -> Iterator[str]:
    """Yield why a member must not be written, the gravest reason first."""
    lengths = [len(part.encode(errors="surrogatepass")) for part in path.parts]
    if path.is_absolute() or ".." in path.parts:
        yield "path leads out of the directory"
    if stat.S_IFMT(info.external_attr >> 16) not in (0, stat.S_IFREG):
        yield "a link or special file"
    if not path.parts:
        yield "no name"
    if ":" in str(path):
        yield "a colon in its name, which on Windows names a drive or stream; rename it"
    if any(not letter.isprintable() for letter in str(path)):
        yield "a control or unprintable character in its name; rename it"
    if max(lengths, default=0) > _MAX_NAME_BYTES or sum(lengths) + len(lengths) > _MAX_PATH_BYTES:
        yield f"its name is too long: {max(lengths)} bytes, its path {sum(lengths)}; expected at " \
              f"most {_MAX_NAME_BYTES} and {_MAX_PATH_BYTES}"  # fmt: skip
    if len(path.parts) > _MAX_DEPTH:
        yield f"{len(path.parts)} folders deep; expected at most {_MAX_DEPTH}"
    if info.flag_bits & _ENCRYPTED_FLAGS:
        yield "encrypted; pack it again without a password"
    if info.compress_type not in _METHODS:
        yield f"compressed by the method {info.compress_type}, which is not read; pack it again"


def _extract(opened: zipfile.ZipFile, members: list[zipfile.ZipInfo], directory: Path) -> list[str]:
    """Write every member; return one line for each that is damaged."""
    problems = []
    for info in members:
        target = directory.joinpath(*_path_of(info).parts)
        try:
            target.parent.mkdir(parents=True, exist_ok=True)
            with opened.open(info) as source, target.open("wb") as file:
                shutil.copyfileobj(source, file, _COPY_BYTES)
        except _UNREADABLE as error:
            problems.append(f"{info.filename}: {error or type(error).__name__}")
        except OSError as error:
            if error.errno in (None, errno.EINVAL):  # bzip2's data, or an offset before the file
                problems.append(f"{info.filename}: {error}")
                continue
            raise DataError(f"cannot write {target}: {error.strerror or error}") from error
    return problems


def _raise(archive: Path, what: str, problems: list[str]) -> None:
    if problems:
        files = "file" if len(problems) == 1 else "files"
        raise DataError(f"{archive} {what}, {len(problems)} {files}:\n  " + "\n  ".join(problems))


_RECEIPT = ".fetched.json"
_INCOMING = ".incoming"
_RAW = "raw"
_LOCK = ".lock"
_NOTE = "folder.json"


def fetch(
    source: str,
    destination: Path,
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
        wanted: What is made of a data set of another tool: it is written under `destination` in the
            layout `folder`, also from a folder, and again when that has changed. None: such ones
            are refused.
        progress: Called with (done, total or None): bytes of a download, tiles of a synthetic set,
            pictures that are converted.
        waiting: Called once if it has to wait for another process.

    Raises:
        FileNotFoundError: A path that does not exist.
        ConfigError: The arguments after `synthetic:` are unknown, `sha256` is no SHA-256 or not
            of an archive, or `checksums` is no such list.
        DataError: The download fails; the archive is damaged, unsafe or holds no data set; foreign
            files lie in the way; or the files are not those of `checksums`.
    """
    destination = Path(destination)
    _check_options(source, sha256)
    if source.startswith(SYNTHETIC):
        drawn = read_source(source, tiles=50, seed=0)
        return _once(
            f"{SYNTHETIC}tiles={drawn['tiles']},seed={drawn['seed']}",
            destination,
            lambda to: write_dataset(to, **drawn, progress=progress),
            waiting,
        )
    listed = None if checksums is None else read_checksums(checksums)
    folder = source_folder(source)
    if folder is not None:
        root = _from_folder(folder, destination, wanted, progress, waiting)
    else:
        key, bring = _archive(source, sha256, progress)
        if checksums is not None and listed is not None:
            key = f"checksums={sha256_of(checksums)}"  # nothing else of the source is kept
            bring = _listed_alone(bring, listed, source)
        elif wanted is not None:
            key = f"{key} as={wanted.key}" if wanted.maps or wanted.layout in FORMAT_NAMES else key
            bring = _converted(bring, wanted, progress)
        root = _once(key, destination, bring, waiting)
    if listed is not None:
        check_files(root, listed, source=str(root))
    return root


def _from_folder(
    folder: Path,
    destination: Path,
    wanted: Wanted | None,
    progress: OpenEndedProgress | None,
    waiting: Callable[[str], object],
) -> Path:
    """Return the root of a folder's data set: where it lies, or where it was converted to."""
    name = None if wanted is None else format_of(folder, wanted)
    if wanted is None or name is None:
        _forget_conversion(folder, destination)
        return locate(folder)[1]
    key = f"folder={folder.resolve()} files={fingerprint(folder)} as={wanted.key}"
    return _once(
        key, destination, lambda to: convert(folder, to, name, wanted, progress=progress), waiting
    )


def _archive(
    source: str, sha256: str | None, progress: OpenEndedProgress | None
) -> tuple[str, Callable[[Path], object]]:
    """Return what a zip is known by, and what unpacks it into a folder.

    Raises:
        FileNotFoundError, DataError: There is no such file, or it has another SHA-256.
    """
    if source.lower().startswith(("http://", "https://")):
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
    bring: Callable[[Path], object], listed: Checksums, source: str
) -> Callable[[Path], object]:
    """Let nothing but the listed files arrive, and only if all of them do."""

    def bring_and_check(to: Path) -> None:
        bring(to)
        try:
            root = locate(to)[1]
        except DataError as error:
            raise DataError(
                f"{source}: none of the data set that data_load.checksums lists is in it; for data "
                f"of your own set data_load.checksums to null ({error})"
            ) from error
        leave_out(to, root, listed)
        check_files(root, listed, source=source)

    return bring_and_check


def _converted(
    bring: Callable[[Path], object], wanted: Wanted, progress: OpenEndedProgress | None
) -> Callable[[Path], object]:
    """Let a data set of another tool arrive in the layout `folder`, and others as they are."""

    def bring_and_convert(to: Path) -> None:
        raw = to / _RAW
        bring(raw)
        name = format_of(raw, wanted)
        if name is not None:
            convert(raw, to, name, wanted, progress=progress)
        else:
            for entry in list(raw.iterdir()):
                entry.rename(to / entry.name)
        _remove((raw,))

    return bring_and_convert


def converted_from(folder: Path, destination: Path) -> bool:
    """Return whether `destination` holds what a folder was converted to."""
    return _key_of_receipt(destination).startswith(f"folder={folder.resolve()} ")


def _forget_conversion(folder: Path, destination: Path) -> None:
    """Remove what a folder was converted to, for now it is used where it lies."""
    if converted_from(folder, destination):
        _remove(destination / name for name in [*_received(destination), _RECEIPT])


def read_summary(root: Path) -> str | None:
    """Return what was found when a data set was converted, or None where it was not."""
    try:
        said = json.loads((root / DESCRIPTION).read_text(encoding="utf-8")).get("said")
    except (OSError, ValueError, AttributeError):
        return None
    return said if isinstance(said, str) else None


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
        f"{len(inverted)} of {pictures} masks mark more than half of the picture as defect: {names}"
        f"{' …' if len(inverted) > 5 else ''}; if defects are black on white there, invert them"
    )


def _once(
    key: str,
    destination: Path,
    bring: Callable[[Path], object],
    waiting: Callable[[str], object],
) -> Path:
    """Let `bring` fill a fresh directory and move that to `destination`, one process at a time."""
    if _is_there(destination, key):
        return locate(destination)[1]
    with _alone(destination, waiting):
        if not _is_there(destination, key):  # the one before us may have brought it
            try:
                _bring(key, destination, bring)
            except OSError as error:
                raise DataError(f"cannot write the data set to {destination}: {error}") from error
    return locate(destination)[1]


def _bring(key: str, destination: Path, bring: Callable[[Path], object]) -> None:
    incoming = destination / _INCOMING
    _remove((incoming,))
    incoming.mkdir(parents=True)
    try:
        bring(incoming)
        locate(incoming)
        # Hidden files are never read, and one in the receipt's name would be taken for ours.
        arrived = sorted(entry.name for entry in incoming.glob("[!.]*"))
        before = _received(destination)
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
    entries = _received(destination, key)
    return bool(entries) and all((destination / name).exists() for name in entries)


def _key_of_receipt(destination: Path) -> str:
    try:
        return str(json.loads((destination / _RECEIPT).read_text(encoding="utf-8"))["key"])
    except (OSError, ValueError, KeyError, TypeError, RecursionError):
        return ""


def _received(destination: Path, key: str | None = None) -> list[str]:
    """Return the names an earlier fetch (with a key, only that one) left in `destination`."""
    try:
        receipt = json.loads((destination / _RECEIPT).read_text(encoding="utf-8"))
        names = [str(name) for name in receipt["entries"]]
    except (OSError, ValueError, KeyError, TypeError, RecursionError):
        return []
    inside = all(name == Path(name).name and name not in (".", "..") for name in names)
    return names if inside and key in (None, receipt["key"]) else []


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
