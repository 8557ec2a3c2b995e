"""A run over an archive: listed once, done in parts, resumed exactly."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Protocol

from magtiles_seg.batch.local_engine import run_local
from magtiles_seg.batch.source import Listing, check_there, freeze, fresh_of, is_ours, list_names
from magtiles_seg.batch.tiles import check_groups, write_tiles
from magtiles_seg.batch.work import Job
from magtiles_seg.errors import ConfigError, DataError
from magtiles_seg.files import Lock, write_json
from magtiles_seg.infer.backends.base import available_cores, default_device
from magtiles_seg.inputs import Survey
from magtiles_seg.jsontext import flatten, read_json
from magtiles_seg.names import as_line, counted, without_secrets


@dataclass(frozen=True, kw_only=True)
class Engine:
    """What does the parts.

    Attributes:
        name: `"local"` or `"ray"`.
        workers: How many workers; None: one a core, or one where there is a GPU.
        gpus: GPUs of one worker, as a fraction; with `"ray"` only.
        address: Of a running Ray cluster; None: that of the environment, or a new local one.
    """

    name: str = "local"
    workers: int | None = None
    gpus: float = 0.0
    address: str | None = None

    def __post_init__(self) -> None:
        """Check the values."""
        if self.name not in ("local", "ray"):
            raise ConfigError(f"unknown engine {self.name!r}: expected 'local' or 'ray'")
        if self.workers is not None and self.workers < 1:
            raise ConfigError(f"workers must be at least 1, got {self.workers}")
        if not self.gpus >= 0:
            raise ConfigError(f"gpus is {self.gpus!r}; expected 0 or more")
        if self.name == "local" and (self.gpus or self.address):
            raise ConfigError("gpus and address are for engine 'ray'; name it, or leave them out")

    def layout(self, job: Job) -> tuple[int, int]:
        """Return how many workers, and how many threads an inference takes in each."""
        model = Path(job.segmenter.get("model") or "")
        on_cpu = (job.segmenter.get("device") or default_device(model)) == "cpu"
        cores = available_cores()
        workers = self.workers or (cores if on_cpu else 1)
        return workers, job.segmenter.get("threads") or max(1, cores // workers)


class BatchProgress(Protocol):
    """Is told how far a run is."""

    def listed(self, pictures: int) -> None:
        """So many names have come."""

    def note(self, text: str) -> None:
        """Something is left out of the run, or amiss with the source."""

    def done(self, pictures: int, total: int, errors: int) -> None:
        """So many pictures are in the result or in work; so many of this session's got an error."""


@dataclass(frozen=True, kw_only=True)
class Outcome:
    """What a finished run holds.

    Attributes:
        pictures: All pictures.
        verdicts: How many got each verdict.
        errors: How many got an error instead.
        tiles: How many physical tiles got each verdict, or "error"; empty where none were asked
            for.
    """

    pictures: int
    verdicts: dict[str, int]
    errors: int
    tiles: dict[str, int] = field(default_factory=dict)


def run_batch(
    job: Job,
    engine: Engine | None = None,
    progress: BatchProgress | None = None,
    *,
    group_by: str | None = None,
) -> Outcome:
    """Segment an archive into `job.out`, or go on where an earlier run was stopped.

    Each picture is one row of one file in `parts/`, whatever happened on the way: killed at any
    moment and started again, the run does what is missing, and nothing twice.

    Args:
        job: What to do.
        engine: What does it; None: this machine's cores.
        progress: Told how far it is.
        group_by: Which pictures show the same tile, as of `dataset.grouping.group_pictures`: once
            all pictures have their rows, `tiles.parquet` gives one verdict a tile. It may be asked
            for later, by starting a finished run again. None: no such table.

    Raises:
        ConfigError: `job.out` holds a run with another model, decision or source, or what is of
            no run; another run writes there now; or `group_by` is invalid.
        DataError: There is no such source, it holds no picture, it went away for too long, a
            picture is in no tile, or what an earlier run left in `job.out` is damaged.
        OSError: The result cannot be written.
        ModelError: The model is damaged, or its file was replaced during the run.
        BackendError: The model cannot be loaded, or workers are lost without getting anything done.

    Example:
        >>> run_batch(Job(source="shots", out=Path("result")))
        Outcome(pictures=20000, verdicts={'accept': 18100, 'reject': 1899}, errors=1)
    """
    engine = engine or Engine()
    with job.open_segmenter() as segmenter:
        identity, decision = job.identity(segmenter), segmenter.decision
    if not job.record.exists():
        check_there(job.source)
    taken = f"another run writes to {job.out} now: wait for it, or give this one another --out"
    with _folders(job.out), Lock(job.out / ".lock", taken=taken):
        if job.record.exists():
            listing = _listing_of(job, identity)
            if group_by is not None:
                check_groups(listing, group_by)
            if progress:
                progress.note(
                    f"{job.out} has a run of {counted(listing.pictures, 'picture')}: it goes on; "
                    "for pictures that came to the source since give another --out"
                )
        else:
            listing = _begin(job, identity, group_by, progress)
        (job.out / "parts").mkdir(exist_ok=True)
        _clear(job.out / "parts")
        todo = [part for part in range(listing.parts) if not job.part_path(part).exists()]
        before = listing.pictures - _rows_in(todo, listing, job.part_rows)

        def report(pictures: int, errors: int) -> None:
            if progress:
                progress.done(before + pictures, listing.pictures, errors)

        report(0, 0)
        _dispatch(job, engine, todo, report)
        tiles = {} if group_by is None else dict(write_tiles(job.out, group_by, decision))
    return replace(summarize(job.out), tiles=tiles)


@contextmanager
def _folders(path: Path) -> Iterator[None]:
    """Make a folder and those above it; after an error the new ones go that are still empty."""
    new = [folder for folder in (path, *path.parents) if not folder.exists()]
    path.mkdir(parents=True, exist_ok=True)
    try:
        yield
    except Exception:
        with suppress(OSError):
            for folder in new:
                folder.rmdir()
        raise


def _check_free(job: Job) -> None:
    """Check that what a new run would replace is of a run that was killed while it listed."""
    found = [path for folder in _listings(job) for path in folder.glob("*") if not is_ours(path)]
    found += (job.out / "parts").glob("*")
    if found:
        raise ConfigError(
            f"{job.out} has no run.json, but holds {as_line(str(found[0].relative_to(job.out)))}, "
            "which would be lost or taken for a result: give this run another --out"
        )


def _listings(job: Job) -> list[Path]:
    return [job.listing, fresh_of(job.listing)]


def _dispatch(
    job: Job, engine: Engine, parts: list[int], report: Callable[[int, int], None]
) -> None:
    if not parts:
        return
    workers, threads = engine.layout(job)
    if engine.name == "local":
        run_local(job, parts, workers=workers, threads=threads, report=report)
        return
    from magtiles_seg.batch.ray_engine import run_ray

    run_ray(
        job,
        parts,
        workers=workers,
        threads=threads,
        gpus=engine.gpus,
        address=engine.address,
        report=report,
    )


def _listing_of(job: Job, identity: dict[str, object]) -> Listing:
    """Return the listing of the run that the folder holds."""
    try:
        found = read_json(job.record)
    except (OSError, ValueError) as error:
        raise DataError(
            f"{job.out} holds a damaged run ({as_line(str(error))}): give this run another "
            "--out, or delete that folder to start afresh"
        ) from error
    _check_same(found if isinstance(found, dict) else {}, identity, job.out)
    return Listing(job.listing)


def _begin(
    job: Job, identity: dict[str, object], group_by: str | None, progress: BatchProgress | None
) -> Listing:
    """List the source for a new run; one that is refused leaves nothing."""
    _check_free(job)
    try:
        listing = _list_anew(job, progress)
        if group_by is not None:
            check_groups(listing, group_by)
        write_json(job.record, identity)
    except Exception:
        for folder in _listings(job):
            shutil.rmtree(folder, ignore_errors=True)
        raise
    return listing


def _list_anew(job: Job, progress: BatchProgress | None) -> Listing:
    survey = Survey()
    names = list_names(job.source, patience_s=job.patience_s, survey=survey)
    listed = progress.listed if progress else None
    listing = freeze(names, job.listing, part_rows=job.part_rows, progress=listed)
    notes = [*survey.lines(), *survey.problems()]
    if not listing.pictures:
        where, said = without_secrets(job.source), "".join(f"; {line}" for line in notes)
        raise DataError(f"no picture in {where}: nothing there is named as pictures are{said}")
    if progress:
        for line in notes:
            progress.note(line)
    return listing


def _check_same(found: dict[str, Any], identity: dict[str, object], out: Path) -> None:
    before, now = flatten(found), flatten(identity)
    changed = [key for key, value in now.items() if before.get(key) != value]
    if changed:
        was = ", ".join(f"{key} {before.get(key)!r}, now {now[key]!r}" for key in changed)
        raise ConfigError(
            f"{out} holds a run with another {' and '.join(changed)} (was {was}): "
            "give this run another --out, or delete that folder to start afresh"
        )


def _clear(parts: Path) -> None:
    """Delete what workers that were killed while writing have left."""
    for left in _files_of(parts, ".*.part.parquet"):
        left.unlink(missing_ok=True)


def _files_of(parts: Path, pattern: str) -> list[Path]:
    """Return files of a folder by name; one that cannot be listed is an OSError, not empty."""
    return sorted(path for path in parts.iterdir() if path.match(pattern))


def _rows_in(parts: list[int], listing: Listing, part_rows: int) -> int:
    """Return how many pictures the parts hold; only the last part of a listing is short."""
    short = listing.parts * part_rows - listing.pictures
    return len(parts) * part_rows - (short if listing.parts - 1 in parts[-1:] else 0)


def summarize(out: Path) -> Outcome:
    """Count a result's verdicts, a part in memory at a time.

    Raises:
        DataError: A part cannot be read.
        OSError: The folder of the parts is not there, or cannot be listed.
    """
    from collections import Counter

    from magtiles_seg.batch.parquet import read_part

    counts: Counter[str | None] = Counter()
    for path in _files_of(out / "parts", "part-*.parquet"):
        counts.update(read_part(path, ["verdict"])["verdict"].to_pylist())
    errors = counts.pop(None, 0)
    verdicts = {str(verdict): count for verdict, count in sorted(counts.items(), key=str)}
    return Outcome(pictures=errors + sum(verdicts.values()), verdicts=verdicts, errors=errors)
