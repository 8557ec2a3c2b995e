"""The local engine: processes on this machine, each with a model of its own."""

from __future__ import annotations

import multiprocessing
import os
import signal
import sys
import threading
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from multiprocessing import connection
from multiprocessing.context import SpawnProcess
from typing import Any

from tqdm import tqdm

from magtiles_seg.batch.work import Job, PartWorker
from magtiles_seg.errors import BackendError, DataError, InferenceError, ModelError


@dataclass(frozen=True, kw_only=True)
class StageTimes:
    """Mean times of one picture, as the columns of a result hold them.

    Attributes:
        read_ms: Until the bytes are there: disk or network.
        decode_ms: From bytes to pixels; takes a core.
        segment_ms: Inference and measuring; takes the worker's threads.
    """

    read_ms: float
    decode_ms: float
    segment_ms: float


def pictures_per_s(
    times: StageTimes, *, workers: int, readers: int, threads: int = 1, cores: int | None = None
) -> float:
    """Return the rate of a run: that of its narrowest station.

    A worker's readers together bring `readers / (read + decode)` pictures per second, and its model
    takes `1 / segment`; a buffer lies between, so the slower one decides. All workers share the
    cores, each of which a picture holds for `decode + threads x segment`.

    Source: the bound of asymptotic analysis for closed queueing networks, which a pipeline with a
    buffer of at least two pictures per reader comes close to (Denning and Buzen, 1978).

    Args:
        times: Measured with no more workers than cores.
        workers: How many workers.
        readers: Threads of a worker that read ahead.
        threads: Of one inference.
        cores: Of all machines together; None: more than the workers can use.
    """
    bring = 1000 * readers / (times.read_ms + times.decode_ms)
    rate = workers * min(bring, 1000 / times.segment_ms)
    if cores is None:
        return rate
    return min(rate, 1000 * cores / (times.decode_ms + threads * times.segment_ms))


_LOST_IN_A_ROW = 5
"""So many workers lost without one picture done between them: it is not the pictures."""

_CONTEXT = multiprocessing.get_context("spawn")


@dataclass
class _Task:
    """A part on its way."""

    part: int
    losses: int = 0
    unreadable: dict[int, str] = field(default_factory=dict)

    @property
    def careful(self) -> bool:
        return self.losses > 1


class _Worker:
    """A process, the pipe to it, and what it is at."""

    def __init__(self, job: Job, threads: int) -> None:
        self.pipe, theirs = _CONTEXT.Pipe()
        self.process: SpawnProcess = _CONTEXT.Process(
            target=_serve, args=(job, threads, theirs), daemon=True
        )
        with _without_main():
            self.process.start()
        theirs.close()
        self.task: _Task | None = None
        self.place = -1
        self.reason = ""

    def give(self, task: _Task) -> None:
        """Hand it a part; where it is lost meanwhile, its pipe says so to whoever listens."""
        self.task, self.place = task, -1
        with suppress(BrokenPipeError, ConnectionResetError):
            self.pipe.send((task.part, task.unreadable, task.careful))

    def end(self) -> None:
        """Stop it now."""
        self.process.kill()
        self.process.join()
        self.pipe.close()


def run_local(
    job: Job,
    parts: Iterable[int],
    *,
    workers: int,
    threads: int,
    report: Callable[[int, int], None],
) -> None:
    """Do parts in worker processes.

    Args:
        job: What the run does.
        parts: Numbers of the parts.
        workers: How many processes.
        threads: Of one inference, in each.
        report: Told how many pictures are done and how many of those got an error; errors are
            counted when a part is whole.

    Raises:
        DataError: The source is gone, and did not come back in time.
        OSError: The result cannot be written.
        ModelError: The model's file was replaced while a worker was.
        BackendError: The workers cannot start, or are lost without getting anything done.
    """
    _Pool(job, parts, workers, threads, report).run()


class _Pool:
    def __init__(
        self,
        job: Job,
        parts: Iterable[int],
        workers: int,
        threads: int,
        report: Callable[[int, int], None],
    ) -> None:
        self._job, self._threads, self._report = job, threads, report
        self._todo = deque(_Task(part) for part in parts)
        self._workers = [_Worker(job, threads) for _ in range(min(workers, len(self._todo)))]
        self._done = self._errors = self._lost_in_a_row = 0

    def run(self) -> None:
        try:
            for worker in self._workers:
                worker.give(self._todo.popleft())
            while self._workers:
                pipes: dict[Any, _Worker] = {worker.pipe: worker for worker in self._workers}
                for pipe in connection.wait(list(pipes)):
                    self._hear(pipes[pipe])
                places = sum(worker.place + 1 for worker in self._workers)
                self._report(self._done + places, self._errors)
        finally:
            for worker in self._workers:
                worker.end()

    def _hear(self, worker: _Worker) -> None:
        """Take what a worker says: a number is the place it is at, the rest speaks for itself."""
        try:
            kind, value = worker.pipe.recv()
        except (EOFError, ConnectionResetError):
            self._replace(worker)
            return
        if kind == "at":
            worker.place, self._lost_in_a_row = value, 0
        elif kind == "fatal":
            raise value
        elif kind == "failed":
            worker.reason = value
        else:
            count, errors = value
            self._done, self._errors = self._done + count, self._errors + errors
            worker.place = -1
            if self._todo:
                worker.give(self._todo.popleft())
            else:
                self._workers.remove(worker)
                worker.end()

    def _replace(self, worker: _Worker) -> None:
        self._workers.remove(worker)
        worker.end()
        reason = worker.reason or f"exit code {worker.process.exitcode}"
        self._lost_in_a_row += 1
        if self._lost_in_a_row >= _LOST_IN_A_ROW:
            raise BackendError(
                f"{_LOST_IN_A_ROW} workers were lost one after another without a picture done, the "
                f"last with {reason}; if memory ran out, use fewer workers; what is done stays done"
            )
        task = worker.task
        fresh = _Worker(self._job, self._threads)
        self._workers.append(fresh)
        if task is None:
            return
        if task.careful and worker.place >= 0:
            task.unreadable[worker.place] = f"its worker was lost twice over it: {reason}"
        task.losses += 1
        fresh.give(task)


@contextmanager
def _without_main() -> Iterator[None]:
    """Keep a new process from running the main script again: a worker needs nothing of it.

    So a script that has no `if __name__ == "__main__"` can start a run as well.
    """
    main = sys.modules["__main__"].__dict__
    hidden: dict[str, Any] = {
        name: main.pop(name) for name in ("__file__", "__spec__") if name in main
    }
    main["__spec__"] = None
    try:
        yield
    finally:
        main.update(hidden)


def _serve(job: Job, threads: int, pipe: connection.Connection) -> None:
    """Do parts until the pipe closes: what a worker process runs."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is for the one that started it
    _end_with_parent()
    tqdm.set_lock(threading.RLock())  # its own is a semaphore, which a killed process leaves behind

    def announce(place: int) -> None:
        pipe.send(("at", place))

    try:
        worker = PartWorker(job, threads=threads)
        while True:
            part, unreadable, careful = pipe.recv()
            done = worker.run(part, announce=announce, unreadable=unreadable, careful=careful)
            pipe.send(("done", done))
    except EOFError:
        return
    except (InferenceError, MemoryError) as error:
        pipe.send(("failed", f"{type(error).__name__}: {error}"))
    except (DataError, ModelError, BackendError, OSError) as error:
        pipe.send(("fatal", error))


def _end_with_parent() -> None:
    """End this process as soon as the one that started it is gone, be it by kill -9."""
    parent = multiprocessing.parent_process()
    if parent is None:
        return
    sentinel = parent.sentinel

    def watch() -> None:
        connection.wait([sentinel])
        os._exit(1)

    threading.Thread(target=watch, daemon=True, name="parent").start()
