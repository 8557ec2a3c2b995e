"""Measure what a few reviewed pictures are worth: the figures of docs/tutorials/loop.md.

    python examples/experiments/loop_figures.py new-class DATA OUT --old data --count 30
    python examples/experiments/loop_figures.py few DATA OUT --count 10 20 50

`new-class` trains a model on (`--start`, the checkpoint of the old data's fold 0) with its own
training part and N pictures of a class that it has never seen, and compares the two on other
groups: those of the new class, and the old test part. Without `--start` it is the bundled model,
which was trained on that test part too. `few` trains the bundled model on with N pictures of
another product alone. DATA is a data set in a layout of ours, of the new pictures.
"""

from __future__ import annotations

import argparse
import json
import random
import sys
import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from magtiles_seg.config import load_params
from magtiles_seg.dataset import Sample, find_samples, make_split
from magtiles_seg.errors import DataError, MagtilesError
from magtiles_seg.evaluate import compare, metrics
from magtiles_seg.evaluate.report import evaluate
from magtiles_seg.evaluate.scoring import Records
from magtiles_seg.files import write_json
from magtiles_seg.infer import Segmenter
from magtiles_seg.labels import FREE, LABELS
from magtiles_seg.model.bundled import BUNDLED_MODEL
from magtiles_seg.train.loop import train


def main() -> int:
    """Run one of the experiments, print its figures and write them as OUT/figures.json."""
    arguments = _arguments()
    try:
        samples = find_samples(arguments.data, labels=arguments.labels)
        run = new_class if arguments.experiment == "new-class" else few
        figures = run(arguments, list(samples), arguments.labels)
        write_json(arguments.out / "figures.json", figures)
    except (MagtilesError, OSError) as error:
        print(error, file=sys.stderr)
        return 2
    print(json.dumps(figures, indent=2))
    return 0


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("experiment", choices=("new-class", "few"))
    parser.add_argument("data", type=Path)
    parser.add_argument("out", type=Path)
    parser.add_argument("--labels", default="", help="class names by index, a comma between")
    parser.add_argument("--count", type=int, nargs="+", default=[30])
    parser.add_argument("--old", type=Path, help="the data set that the model was trained on")
    parser.add_argument("--start", type=Path, help="the model to train on (default: bundled)")
    parser.add_argument("--tune", nargs="*", default=[], metavar="train.KEY=VALUE")
    parser.add_argument("--test", type=int, default=150, help="pictures to score, at most")
    arguments = parser.parse_args()
    arguments.labels = tuple(arguments.labels.split(",")) if arguments.labels else LABELS
    counts = arguments.count
    if any(count < 2 or count % 2 for count in counts) or len(set(counts)) < len(counts):
        named = " ".join(map(str, counts))
        parser.error(f"--count: half are sound: expected different even numbers, got {named}")
    if arguments.test < 2:
        parser.error(f"--test: expected at least 2, got {arguments.test}")
    if arguments.experiment == "few" and (arguments.old or arguments.start):
        parser.error("--old and --start are of new-class; few trains the bundled model on alone")
    if arguments.experiment == "new-class":
        if not arguments.old:
            parser.error("new-class needs --old, the data set that the model was trained on")
        if arguments.labels[: len(LABELS)] != LABELS:
            parser.error(f"--labels: expected {','.join(LABELS)} first, then the new classes")
    return arguments


def new_class(
    arguments: argparse.Namespace, samples: list[Sample], labels: tuple[str, ...]
) -> dict[str, Any]:
    """Train the bundled model on with the old training part and N pictures of the new class."""
    new = _renumbered(samples)
    pool, held_out = _halves(new, arguments.test)
    old = [sample for sample in find_samples(arguments.old) if not sample.label_issue]
    train_part, validation, old_test = _parts(old, arguments.test)
    start = arguments.start or BUNDLED_MODEL
    records, limit = _score(start, [*old_test, *held_out], validation, labels)
    scored = {"before": (records, limit)}
    figures: dict[str, Any] = {"pictures": {"new": len(held_out), "old": len(old_test)}}
    figures["defective, of groups"] = [
        sum(sample.label != FREE for sample in held_out),
        len({sample.group for sample in held_out}),
    ]
    for count in arguments.count:
        reviewed = _half_sound(pool, count)
        params = load_params(None, arguments.tune).train
        params = replace(params, start=str(start), keep="last")
        began = time.monotonic()
        out = arguments.out / f"after-{count}"
        model = train([*train_part, *reviewed], validation, params, out, labels=labels)
        figures[f"tuning with {count}, s"] = round(time.monotonic() - began)
        scored[f"after {count}"] = _score(model, [*old_test, *held_out], validation, labels)
    is_new = np.isin(records.ids, [sample.id for sample in held_out])
    for name, (found, at) in scored.items():
        figures[name] = {
            "new": _verdicts(found.where(is_new), at),
            "old": _verdicts(found.where(~is_new), at),
        }
        if name != "before":
            there = compare.compare(records.where(~is_new), found.where(~is_new))
            figures[f"{name}, old test part"] = {one.name: str(one) for one in there.figures}
    return figures


def _renumbered(samples: list[Sample]) -> list[Sample]:
    """Return the new pictures under groups that no old one has."""
    return [replace(sample, group=10_000_000 + sample.group) for sample in samples]


def _halves(samples: list[Sample], most: int) -> tuple[list[Sample], list[Sample]]:
    """Return the pictures to choose the reviewed ones of, and some of other groups."""
    split = make_split(samples, fold=0, folds=2, fold_of_group={})
    held_out = [sample for sample in samples if sample.id in set(split.test)]
    return [sample for sample in samples if sample not in held_out], _some(held_out, most)


def _parts(old: list[Sample], most: int) -> tuple[list[Sample], list[Sample], list[Sample]]:
    split = make_split(old, fold=0)
    train_part, validation, test = (
        [sample for sample in old if sample.id in set(part)]
        for part in (split.train, split.validation, split.test)
    )
    return train_part, _some(validation, 30), _some(test, most)


def few(
    arguments: argparse.Namespace, samples: list[Sample], labels: tuple[str, ...]
) -> dict[str, Any]:
    """Train the bundled model on with N labelled pictures, half of them sound."""
    split = make_split(samples, rule="grouped", fold=0, folds=2)
    by_id = {sample.id: sample for sample in samples}
    test = _some([by_id[name] for name in split.test], arguments.test)
    pool = [by_id[name] for name in (*split.train, *split.validation)]
    figures: dict[str, Any] = {"pictures": len(test), "groups": len({s.group for s in test})}
    figures["defective"] = sum(sample.label != FREE for sample in test)
    for count in arguments.count:
        chosen = _half_sound(pool, count)
        params = replace(load_params(None, arguments.tune).train, start="bundled", keep="last")
        began = time.monotonic()
        model = train(chosen, chosen, params, arguments.out / f"few-{count}", labels=labels)
        figures[f"{count}, training_s"] = round(time.monotonic() - began)
        with Segmenter(model, threads=params.threads or None) as segmenter:
            result = evaluate(segmenter, test, labels=labels)
        wanted = ("auroc", "false_reject_at_95_recall", "iou")
        figures[str(count)] = {name: result.figures[name] for name in wanted}
    return figures


def _score(
    model: Path, samples: Sequence[Sample], validation: Sequence[Sample], labels: Sequence[str]
) -> tuple[Records, float]:
    """Return a model's records, and the score that a tenth of the sound validation part reaches."""
    with Segmenter(model, threads=1) as segmenter:
        sound = [s for s in validation if s.label == FREE and not s.label_issue]
        limit = float(np.quantile([segmenter(s.image_path).score for s in sound], 0.9))

        def answer(image: NDArray[np.uint8]) -> tuple[NDArray[np.float32], NDArray[np.uint8]]:
            return segmenter(image).probability, np.ones_like(image)  # classes are not compared

        found = evaluate(answer, samples, labels=labels, decision=segmenter.decision)
        return found.records, limit


def _verdicts(records: Records, limit: float) -> dict[str, float]:
    """Return what a reject score makes of pictures, and their AUROC."""
    found, sound = records.score >= limit, records.label == 0
    return {
        "recall": float(found[~sound].mean()),
        "false rejects": float(found[sound].mean()),
        "auroc": float(metrics.auroc(records.score, ~sound)),
    }


def _some(samples: list[Sample], most: int) -> list[Sample]:
    """Return at most so many, every class by its share at least a third."""
    random.Random(0).shuffle(samples)
    defective = [sample for sample in samples if sample.label != FREE]
    sound = [sample for sample in samples if sample.label == FREE]
    return [*defective[: most // 2], *sound[: most - min(len(defective), most // 2)]]


def _half_sound(pool: list[Sample], count: int) -> list[Sample]:
    """Return pictures of as many groups as can be, half of them sound.

    Raises:
        DataError: There are not so many.
    """
    chosen: list[Sample] = []
    for wants_sound in (False, True):
        fitting = [sample for sample in pool if (sample.label == FREE) == wants_sound]
        if len(fitting) < count // 2:
            what = "sound" if wants_sound else "defective"
            raise DataError(
                f"--count {count}: expected {count // 2} {what} pictures to choose, "
                f"got {len(fitting)}"
            )
        random.Random(0).shuffle(fitting)
        one_each = list({sample.group: sample for sample in fitting}.values())
        rest = [sample for sample in fitting if sample not in one_each]
        chosen += [*one_each, *rest][: count // 2]
    return chosen


if __name__ == "__main__":
    sys.exit(main())
