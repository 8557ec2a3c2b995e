"""All folds of a cross-validation: a split and a training each, side by side where there is room.

Each fold is a run in a folder of its own, trained by `magtiles-seg train` in a process of its own:
what was stopped goes on, and what is finished is left alone.
"""

from __future__ import annotations

import os
import subprocess
import sys
import threading
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from dataclasses import replace
from pathlib import Path

import torch

from magtiles_seg.config import DataSplitParams, TrainParams
from magtiles_seg.dataset.samples import Sample
from magtiles_seg.dataset.splits import PARTS, SPLIT_NAME, make_split
from magtiles_seg.errors import ConfigError, DataError, MagtilesError
from magtiles_seg.files import write
from magtiles_seg.infer.backends.base import available_cores
from magtiles_seg.train.devices import device_kind

_THREADS_A_RUN = 4
"""More threads than these make a run on a CPU little faster: further folds use them better."""

_CORES_A_GPU_RUN = 2
_LOG = "train.log"


def write_splits(
    samples: Sequence[Sample], params: DataSplitParams, out_dir: Path
) -> tuple[Path, ...]:
    """Write the split of each fold to `out_dir/f0/split.json` and so on, and return the folders.

    Raises:
        ConfigError: The rule does not split into folds.
        DataError: A part of a fold is empty, before anything is written; or a folder holds another
            split: a run of it would go on with other pictures.
    """
    if params.rule not in ("grouped", "random"):
        raise ConfigError(
            f"data_split.rule={params.rule} has no folds: take grouped, or train its one split "
            "with several train.seed and join them with `evaluate --repeats`"
        )
    drawn = [make_split(samples, **replace(params, fold=fold).draw) for fold in range(params.folds)]
    for fold, split in enumerate(drawn):
        empty = [part for part in PARTS if not getattr(split, part)]
        if empty:
            raise DataError(
                f"fold {fold} of {params.folds} has no pictures in its {empty[0]} part: change "
                "data_split.validation_fraction or data_split.folds, or give more tiles"
            )
    folders = []
    for fold, split in enumerate(drawn):
        folder, text = out_dir / f"f{fold}", split.to_json()
        manifest = folder / SPLIT_NAME
        if manifest.is_file() and manifest.read_text(encoding="utf-8") != text:
            raise DataError(
                f"{manifest} is another split than the data and data_split give now: give the "
                "cross-validation another --out, or delete this folder to train it anew"
            )
        write(manifest, text)
        folders.append(folder)
    return tuple(folders)


def train_folds(
    folders: Sequence[Path],
    params: TrainParams,
    words: Sequence[str],
    *,
    parallel: int = 0,
    progress: Callable[[int, int | None], None] | None = None,
) -> None:
    """Train every fold to its end.

    Args:
        folders: With a split.json each; checkpoint, state and `train.log` come beside it.
        params: Parameters of each run, as `words` say them.
        words: Options of `magtiles-seg train` that set these parameters.
        parallel: Runs at a time; 0 takes as many as `runs_at_a_time` says.
        progress: Told how many folds are done, and of how many.

    Raises:
        BackendUnavailableError: The device that `params` asks for is not there.
        MagtilesError: The training of a fold failed; the others were stopped, and go on next time.
    """
    kind = device_kind(params.device, params.devices)
    parallel = parallel or runs_at_a_time(len(folders), params, kind)
    running = Processes()
    with ThreadPoolExecutor(parallel, thread_name_prefix="folds") as pool:
        jobs = {
            pool.submit(
                running.run,
                [sys.executable, "-m", "magtiles_seg", "train", *_paths(folder), *words],
                _environment(kind, params, number, parallel),
                folder / _LOG,
                f"training in {folder}",
            ): folder
            for number, folder in enumerate(folders)
        }
        try:
            for done, job in enumerate(as_completed(jobs), 1):
                job.result()
                if progress:
                    progress(done, len(folders))
        except BaseException:
            running.stop()
            for job in jobs:
                job.cancel()
            raise


def runs_at_a_time(folds: int, params: TrainParams, kind: str) -> int:
    """Return how many folds are worth training side by side on this machine.

    A run of small batches does not fill a GPU: folds share one, as long as each has two cores. On
    a CPU each run gets some threads.
    """
    needed = _CORES_A_GPU_RUN if kind == "cuda" else params.threads or _THREADS_A_RUN
    return max(1, min(folds, available_cores() // (needed * params.devices)))


def _paths(folder: Path) -> list[str]:
    return [f"--split={folder / SPLIT_NAME}", f"--out={folder}"]  # `=`: a name may begin with -


def _environment(kind: str, params: TrainParams, number: int, parallel: int) -> Mapping[str, str]:
    """Return the environment of a fold's process: its share of the GPUs, or of the cores."""
    environment = dict(os.environ)
    if kind == "cuda":
        seen = environment.get("CUDA_VISIBLE_DEVICES") or ",".join(
            map(str, range(torch.cuda.device_count()))
        )
        names, first = seen.split(","), number * params.devices
        chosen = [names[(first + index) % len(names)] for index in range(params.devices)]
        environment["CUDA_VISIBLE_DEVICES"] = ",".join(chosen)
    elif parallel > 1 and not params.threads:
        environment["OMP_NUM_THREADS"] = str(max(1, available_cores() // parallel))
    return environment


class Processes:
    """Runs commands and, when one fails, ends those that are under way."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._running: set[subprocess.Popen[bytes]] = set()
        self._stopped = False

    def run(
        self, command: Sequence[str], environment: Mapping[str, str], log: Path, title: str
    ) -> bool:
        """Run a command to its end, what it prints in a log file.

        Returns:
            Whether it came to its end; False after `stop`.

        Raises:
            MagtilesError: It failed; `title` says what did.
        """
        with log.open("wb") as file:
            with self._lock:
                if self._stopped:
                    return False
                process = subprocess.Popen(
                    command, env=environment, stdout=file, stderr=subprocess.STDOUT
                )
                self._running.add(process)
            code = process.wait()
        with self._lock:
            self._running.discard(process)
            if not code or self._stopped:
                return not code
        lines = log.read_text(encoding="utf-8", errors="replace").strip().splitlines() or ["-"]
        raise MagtilesError(f"{title} failed, exit code {code}: {lines[-1]} ({log})")

    def stop(self) -> None:
        """End what is under way; what was to come does not start."""
        with self._lock:
            self._stopped = True
            for process in self._running:
                process.terminate()
