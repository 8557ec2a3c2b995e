"""The whole of protocol T on one GPU: five folds, five seeds, their figures, the model that ships.

    python examples/experiments/whole_run.py magnetic-tile-defects.zip --out runs/whole --minutes 9

SOURCE is what `data_load.source` takes. Runs stand side by side on the GPU, as many as the cores
feed. After --minutes all is stopped and the exit code is 3: the same line goes on from there, any
number of times, until it is 0. OUT/figures then holds files as docs/figures does, and
OUT/bundle.onnx is the model of all tiles, with thresholds chosen out of fold. The networks of the
first two seeds teach a `small` each, those of the first a `nano`, too; all of them are joined.
"""

from __future__ import annotations

import argparse
import json
import os
import signal
import sys
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import onnxruntime
import torch

from magtiles_seg import pipeline
from magtiles_seg.config import load_params
from magtiles_seg.errors import DataError, MagtilesError
from magtiles_seg.evaluate.folds import repeat
from magtiles_seg.files import write_json
from magtiles_seg.infer.backends.base import available_cores
from magtiles_seg.train.crossval import Processes, runs_at_a_time, write_splits
from magtiles_seg.train.devices import device_kind
from magtiles_seg.train.loop import train

GO_ON = 3
"""Exit code of a call whose time was up."""

WARM_UP_STEPS, TIMED_STEPS = 20, 200

ENSEMBLE = "ensemble"
PUPILS = {
    "small": ("train.epochs=16", "train.pictures_per_epoch=1280", "train.crop_px=256"),
    "nano": ("train.epochs=40", "train.pictures_per_epoch=1280", "train.pretrained=false"),
}
SHARES = {"lite0": 0.7, "small": 0.2, "nano": 0.1}
"""Of the model that ships: the networks of a kind have equal parts of its share."""


@dataclass(frozen=True)
class Step:
    """One call of `magtiles-seg`; a step is done when the same words came to a good end."""

    name: str
    words: tuple[str, ...]


@dataclass(frozen=True)
class Pupil:
    """A smaller network: its architecture, its teacher's run and seed (a setting), and its run."""

    name: str
    teacher: Path
    seed: str
    run: Path


class Whole:
    """The plan of a run, what of it is done, and its processes."""

    def __init__(self, arguments: argparse.Namespace) -> None:
        """Read what `OUT` holds of an earlier call.

        Raises:
            ConfigError: Of `--set` or params.yaml.
            DataError: The list of what is done is damaged.
        """
        self.out: Path = arguments.out
        sets = [f"data_load.source={arguments.source}", f"data_load.directory={self.out / 'data'}"]
        self.sets = [word for one in [*sets, *arguments.set] for word in ("--set", one)]
        found = Path("params.yaml")
        self.params = load_params(found if found.is_file() else None, [*sets, *arguments.set])
        self.kind = device_kind(self.params.train.device, 1)
        self.seeds = [self.out / f"seed{seed}" for seed in arguments.seeds]
        self.folds = [f"f{fold}" for fold in range(self.params.data_split.folds)]
        trainings = len(self.seeds) * len(self.folds) + len(self.of_all_tiles())
        self.slots = arguments.parallel or runs_at_a_time(trainings, self.params.train, self.kind)
        self.processes = Processes()
        self._record = self.out / "steps.json"
        self._lock = threading.Lock()
        self.done = _done(self._record)

    def stages(self) -> Iterator[list[Step]]:
        """Yield the steps; those of a list stand side by side, and need the lists before."""
        yield [self._step("data", "data", "load")]
        write_all_splits(self)
        yield [*self._trainings(), *self._train_all()]
        families = [[seed / fold for seed in self.seeds[:2]] for fold in self.folds]
        families.append(self.of_all_tiles())
        yield [self._teach(pupil) for family in families for pupil in self._pupils(family)]
        yield [self._join(family) for family in families]
        yield [self._evaluate(folder) for folder in self._evaluated()]
        yield [*self._tiles(), self._bundle()]
        if self.kind == "cuda":
            yield from ([step] for step in self._on_the_gpu())

    def _trainings(self) -> Iterator[Step]:
        for folder in self.seeds:
            seed = ("--set", _seed_of(folder))
            for fold in self.folds:
                name = f"train {folder.name} {fold}"
                yield self._step(name, "train", *_run_in(folder / fold), *seed)

    def _train_all(self) -> Iterator[Step]:
        for home, folder in zip(self.of_all_tiles(), self.seeds, strict=False):
            seed = ("--set", _seed_of(folder))
            words = ("train", *_run_in(home), "--set", "train.keep=last", *seed)
            yield self._step(f"train {home.name}", *words)

    def _pupils(self, teachers: Sequence[Path]) -> Iterator[Pupil]:
        """Yield the smaller networks that the runs of the first two seeds teach."""
        for name in PUPILS:
            for number, teacher in enumerate(teachers if name == "small" else teachers[:1]):
                run = self.out / f"{name}{'-other' * number}" / teachers[0].name
                yield Pupil(name, teacher, _seed_of(self.seeds[number]), run)

    def _teach(self, pupil: Pupil) -> Step:
        """Return the training of a smaller network; `--set` wins over its recipe."""
        path = str(pupil.teacher / "model.safetensors")
        own = [f"train.architecture={pupil.name}", f"train.teacher={path}", pupil.seed]
        own += [f"train.start={path}"] if pupil.name == "small" else []
        own += ["train.keep=last"] if pupil.run.name == "all" else []
        recipe, fixed = (
            [w for one in sets for w in ("--set", one)] for sets in (PUPILS[pupil.name], own)
        )
        words = ("--split", str(pupil.teacher / "split.json"), "--out", str(pupil.run))
        name = f"train {pupil.run.parent.name} {pupil.run.name}"
        return Step(name, ("train", *words, *recipe, *self.sets, *fixed))

    def _join(self, teachers: Sequence[Path]) -> Step:
        """Return the joining of two seeds' networks and their pupils."""
        runs = [("lite0", run) for run in teachers]
        runs += [(pupil.name, pupil.run) for pupil in self._pupils(teachers)]
        count = Counter(name for name, _ in runs)
        shares = [str(SHARES[name] / count[name]) for name, _ in runs]
        words = (*(str(run) for _, run in runs), "--shares", *shares, "--round")
        out = self.out / ENSEMBLE / teachers[0].name
        return Step(f"join {out.name}", ("ensemble", *words, "--out", str(out)))

    def of_all_tiles(self) -> list[Path]:
        """Return the runs that hold nothing out, of the first two seeds."""
        return [self.out / name for name in ("all", "all-other")[: len(self.seeds)]]

    def _evaluated(self) -> list[Path]:
        """Return the folders whose folds are scored joined."""
        return [*self.seeds, self.out / ENSEMBLE]

    def _evaluate(self, folder: Path) -> Step:
        return self._step(
            f"evaluate {folder.name}", "evaluate",
            "--folds", *(str(folder / fold) for fold in self.folds),
            "--out", str(folder / "joined"), "--json", self._figures(f"T-{folder.name}"),
        )  # fmt: skip

    def _tiles(self) -> Iterator[Step]:
        for folder in self._evaluated():
            scored, figures = folder / "joined/pictures.csv", self._figures(f"T-tile-{folder.name}")
            yield Step(
                f"tiles {folder.name}", ("evaluate", "--scored", str(scored), "--json", figures)
            )

    def _bundle(self) -> Step:
        choice, home = self.out / ENSEMBLE / "joined/choice.json", self.out / ENSEMBLE / "all"
        return self._step(
            "bundle", "export", "--model", str(home / "model.safetensors"),
            "--split", str(home / "split.json"), "--choice", str(choice),
            "--name", "magnetic-tile", "--out", str(self.out / "bundle.onnx"),
        )  # fmt: skip

    def _on_the_gpu(self) -> Iterator[Step]:
        """Yield what compares the GPU with the CPU, and the backends with each other."""
        checkpoint = str(self.out / ENSEMBLE / "all/model.safetensors")
        model = str(self.out / "bundle.onnx")
        split = ("--split", str(self.seeds[0] / "f0/split.json"), "--device", "cuda", "--json")
        yield self._step("parity eager", "parity", checkpoint, checkpoint, *split)
        if "CUDAExecutionProvider" in onnxruntime.get_available_providers():
            yield self._step("parity onnxruntime", "parity", checkpoint, model, *split)
        yield self._step("bench", "bench", "--model", model, "--out", self._figures("bench", ""))

    def _step(self, name: str, *words: str) -> Step:
        return Step(name, (*words, *self.sets))

    def _figures(self, name: str, suffix: str = ".json") -> str:
        return str(self.out / "figures" / f"{name}{suffix}")

    def work(self, steps: Sequence[Step]) -> bool:
        """Do what of a stage is not done, and return whether all of it is.

        Raises:
            MagtilesError: A step failed; the others were stopped, and go on next time.
        """
        todo = [
            step for step in steps if self.done.get(step.name, {}).get("words") != [*step.words]
        ]
        with ThreadPoolExecutor(self.slots) as pool:
            jobs = [pool.submit(self._do, step) for step in todo]
            try:
                ended = [job.result() for job in as_completed(jobs)]
                return all(ended)
            except BaseException:
                self.processes.stop()
                raise

    def _do(self, step: Step) -> bool:
        began = time.monotonic()
        log = self.out / "logs" / f"{step.name.replace(' ', '-')}.log"
        threads = str(max(1, available_cores() // self.slots))
        ended = self.processes.run(
            [sys.executable, "-m", "magtiles_seg", *step.words],
            {**os.environ, "OMP_NUM_THREADS": threads},
            log,
            step.name,
        )
        with self._lock:
            seconds = time.monotonic() - began + self.done.get(step.name, {}).get("seconds", 0.0)
            words = list(step.words) if ended else None
            self.done[step.name] = {"words": words, "seconds": round(seconds, 1)}
            write_json(self._record, self.done)
        if ended:
            print(f"{step.name}: {seconds:.0f} s", flush=True)
        return ended


def _done(record: Path) -> dict[str, Any]:
    try:
        done: dict[str, Any] = json.loads(record.read_text(encoding="utf-8"))
    except FileNotFoundError:
        return {}
    except ValueError as error:
        raise DataError(f"{record} is damaged: remove it, and every step is done again") from error
    return done


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("source", help="of the data: a .zip, a folder, a URL, synthetic:…")
    parser.add_argument("--out", type=Path, default=Path("runs/whole"))
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2, 3, 4])
    parser.add_argument("--minutes", type=float, help="stop after so long, to go on next time")
    parser.add_argument(
        "--parallel", type=int, default=0, help="steps at a time (0: as many as fit)"
    )
    parser.add_argument("--set", action="append", default=["evaluate.recall=0.9"])
    arguments = parser.parse_args()
    seeds, minutes = arguments.seeds, arguments.minutes
    if min(seeds) < 0 or len(set(seeds)) < len(seeds):
        named = " ".join(map(str, seeds))
        parser.error(f"--seeds: expected different whole numbers, at least 0, got {named}")
    if arguments.parallel < 0:
        parser.error(f"--parallel: expected at least 0, got {arguments.parallel}")
    if minutes is not None and not 0 < minutes < threading.TIMEOUT_MAX / 60:
        parser.error(f"--minutes: expected more than 0, got {minutes}")
    return arguments


def main() -> int:
    """Go as far as the time allows."""
    arguments = _arguments()
    try:
        whole = Whole(arguments)
        (whole.out / "logs").mkdir(parents=True, exist_ok=True)
    except (MagtilesError, OSError) as error:
        print(error, file=sys.stderr)
        return 2
    clock = threading.Timer((arguments.minutes or 0) * 60, whole.processes.stop)
    clock.daemon = True
    if arguments.minutes is not None:
        clock.start()
    try:
        if not all(whole.work(steps) for steps in whole.stages()):
            print("time is up: start the same line again, it goes on")
            return GO_ON
    except MagtilesError as error:
        print(error, file=sys.stderr)
        return 2
    finally:
        clock.cancel()
        whole.processes.stop()
    print_summary(whole)
    return 0


def write_all_splits(whole: Whole) -> None:
    """Write the split of every run, or see that it is there.

    Raises:
        DataError: A folder holds another split.
    """
    params = whole.params
    samples = pipeline.samples_of(params)
    for folder in whole.seeds:
        write_splits(samples, params.data_split, folder)
    nothing_out = replace(params.data_split, fold=None, validation_fraction=0.1)
    for home in whole.of_all_tiles():
        home.mkdir(exist_ok=True)
        pipeline.split(replace(params, data_split=nothing_out), home / "split.json")


def print_summary(whole: Whole) -> None:
    """Write mean and spread over the seeds, and on a GPU how fast training is, and print them."""
    for name in ("T", "T-tile"):
        files = {seed.name: whole.out / f"figures/{name}-{seed.name}.json" for seed in whole.seeds}
        contents = {seed: json.loads(path.read_text()) for seed, path in files.items()}
        runs = {
            seed: {key: value for key, value in content["figures"].items() if value is not None}
            for seed, content in contents.items()
        }
        if len(runs) < 2:
            continue
        spread = repeat(runs.values())
        table = {
            "protocol": next(iter(contents.values()))["protocol"],
            "runs": runs,
            "mean": {key: mean for key, (mean, _) in spread.items()},
            "standard_deviation": {key: deviation for key, (_, deviation) in spread.items()},
        }
        write_json(whole.out / f"figures/{name}-seeds.json", table)
        for key, (mean, deviation) in spread.items():
            print(f"{table['protocol']} {key}: {mean:.3f} ± {deviation:.3f}")
    speed: dict[str, object] = {"runs_at_a_time": whole.slots, "crops_per_s": side_by_side(whole)}
    if whole.kind == "cuda":
        speed |= {"device": torch.cuda.get_device_name(), "crops_per_s_alone": throughput(whole)}
    write_json(whole.out / "figures/training.json", speed)
    print(speed)


def side_by_side(whole: Whole) -> float:
    """Return crops a second of all runs together; start, validation and lost epochs count."""
    params = whole.params.train
    steps = [
        step for name, step in whole.done.items() if name.startswith(("train seed", "train all"))
    ]
    crops = len(steps) * params.epochs * params.pictures_per_epoch
    seconds: float = sum(step["seconds"] for step in steps)
    return crops * whole.slots / seconds


def throughput(whole: Whole) -> float:
    """Return crops a second of one run alone, warm, drawing included, validation not."""
    params = replace(
        whole.params.train, epochs=1, patch_share=0.0,
        pictures_per_epoch=whole.params.train.batch_size * (WARM_UP_STEPS + TIMED_STEPS),
    )  # fmt: skip
    parts = pipeline.split_parts(whole.out / "all/split.json", whole.params)
    marks: list[float] = []

    def timed(batches: Iterable[Any], *_: object) -> Iterator[Any]:
        for number, batch in enumerate(batches):
            if number == WARM_UP_STEPS:
                torch.cuda.synchronize()
                marks.append(time.perf_counter())
            yield batch
        torch.cuda.synchronize()
        marks.append(time.perf_counter())

    with tempfile.TemporaryDirectory() as folder:
        train(parts["train"], parts["validation"][:8], params, Path(folder), progress=timed)
    return TIMED_STEPS * params.batch_size / (marks[1] - marks[0])


def _seed_of(folder: Path) -> str:
    return f"train.seed={folder.name.removeprefix('seed')}"


def _run_in(folder: Path) -> tuple[str, ...]:
    return ("--split", str(folder / "split.json"), "--out", str(folder))


if __name__ == "__main__":
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(128 + signal.SIGTERM))  # ends the processes
    sys.exit(main())
