"""Measure what a few reviewed pictures are worth: the figures of docs/tutorials/loop.md.

    python examples/experiments/loop_figures.py new-class DATA OUT --train train.epochs=8
    python examples/experiments/loop_figures.py few DATA OUT --count 10 20 50

`new-class` trains a model that has never seen one class of defect, adds N pictures of it to the
training part, trains on from there, and compares the two on groups that neither has seen: those
with the class, and the test part without it. `few` trains the bundled model on with N pictures of
another product. DATA is a data set in a layout of ours; minutes to an hour on one core.
"""

from __future__ import annotations

import argparse
import json
import random
import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from magtiles_seg.config import load_params
from magtiles_seg.dataset import Sample, find_samples, make_split
from magtiles_seg.evaluate import compare, metrics
from magtiles_seg.evaluate.report import evaluate
from magtiles_seg.evaluate.scoring import Records
from magtiles_seg.infer import Segmenter
from magtiles_seg.labels import FREE, LABELS
from magtiles_seg.train.loop import train


def main() -> None:
    """Run one of the experiments, print its figures and write them as OUT/figures.json."""
    parser = argparse.ArgumentParser()
    parser.add_argument("experiment", choices=("new-class", "few"))
    parser.add_argument("data", type=Path)
    parser.add_argument("out", type=Path)
    parser.add_argument("--labels", default="", help="class names by index, a comma between")
    parser.add_argument("--count", type=int, nargs="+", default=[30])
    parser.add_argument("--label", default="blowhole", help="the class that is new")
    parser.add_argument("--train", nargs="*", default=[], metavar="train.KEY=VALUE")
    parser.add_argument("--tune", nargs="*", default=[], metavar="train.KEY=VALUE")
    parser.add_argument("--test", type=int, default=150, help="pictures to score, at most")
    arguments = parser.parse_args()
    labels = tuple(arguments.labels.split(",")) if arguments.labels else LABELS
    samples = find_samples(arguments.data, labels=labels)
    run = new_class if arguments.experiment == "new-class" else few
    figures = run(arguments, list(samples), labels)
    arguments.out.mkdir(parents=True, exist_ok=True)
    (arguments.out / "figures.json").write_text(json.dumps(figures, indent=2) + "\n")
    print(json.dumps(figures, indent=2))


def new_class(
    arguments: argparse.Namespace, samples: list[Sample], labels: tuple[str, ...]
) -> dict[str, Any]:
    """Train without a class, then with N pictures of it."""
    split = make_split(samples, rule="grouped", fold=0)
    by_id = {sample.id: sample for sample in samples}
    train_part, validation, test = (
        [by_id[name] for name in part] for part in (split.train, split.validation, split.test)
    )
    new = arguments.label
    held_out = [sample for sample in test if sample.label == new]
    old_test = _some([s for s in test if s.label != new and not s.label_issue], arguments.test)
    old = [sample for sample in train_part if sample.label != new]
    old_validation = [sample for sample in validation if sample.label != new]
    params = load_params(None, arguments.train).train
    began = time.monotonic()
    before = train(old, old_validation, params, arguments.out / "before", labels=labels)
    figures: dict[str, Any] = {"base_training_s": round(time.monotonic() - began)}
    chosen = [*old_test, *held_out]
    scored = {"before": _score(before, chosen, old_validation, labels)}
    for count in arguments.count:
        reviewed = _whole_groups([s for s in train_part if s.label == new], count)
        tuned = replace(load_params(None, arguments.tune).train, start=str(before))
        began = time.monotonic()
        out = arguments.out / f"after-{count}"
        after = train([*old, *reviewed], old_validation, tuned, out, labels=labels)
        figures[f"tuning_{count}_s"] = round(time.monotonic() - began)
        figures[f"reviewed_{count}"] = [len(reviewed), len({s.group for s in reviewed})]
        scored[f"after {count}"] = _score(after, chosen, old_validation, labels)
    figures |= {
        name: _new_and_old(records, new, limit) for name, (records, limit) in scored.items()
    }
    base = scored["before"][0]
    for name, (records, _) in scored.items():
        if name != "before":
            is_old = [label != new for label in records.labels[records.label]]
            there = compare.compare(base.where(np.array(is_old)), records.where(np.array(is_old)))
            figures[f"{name}, old test part"] = {one.name: str(one) for one in there.figures}
    figures["pictures"] = {"new class": len(held_out), "old test part": len(old_test)}
    return figures


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
        return evaluate(segmenter, samples, labels=labels).records, limit


def _new_and_old(records: Records, new: str, limit: float) -> dict[str, float]:
    names = records.labels[records.label]
    sound, is_new = records.label == 0, names == new
    either = sound | is_new
    found = records.score >= limit
    return {
        "recall of the new class": float(found[is_new].mean()),
        "groups of it with a find": float(
            np.mean([found[records.group == g].any() for g in np.unique(records.group[is_new])])
        ),
        "auroc, new class against sound": float(
            metrics.auroc(records.score[either], is_new[either])
        ),
        "recall of the other classes": float(found[~either].mean()),
        "false rejects": float(found[sound].mean()),
    }


def _some(samples: list[Sample], most: int) -> list[Sample]:
    """Return at most so many, every class by its share at least a third."""
    random.Random(0).shuffle(samples)
    defective = [sample for sample in samples if sample.label != FREE]
    sound = [sample for sample in samples if sample.label == FREE]
    return [*defective[: most // 2], *sound[: most - min(len(defective), most // 2)]]


def _whole_groups(samples: list[Sample], count: int) -> list[Sample]:
    """Return at least `count` pictures, in whole groups."""
    groups = sorted({sample.group for sample in samples})
    random.Random(0).shuffle(groups)
    chosen: list[Sample] = []
    while len(chosen) < count and groups:
        group = groups.pop()
        chosen += [sample for sample in samples if sample.group == group]
    return chosen[:count]


def _half_sound(pool: list[Sample], count: int) -> list[Sample]:
    """Return pictures of as many groups as can be, half of them sound."""
    chosen: list[Sample] = []
    for wants_sound in (False, True):
        fitting = [sample for sample in pool if (sample.label == FREE) == wants_sound]
        random.Random(0).shuffle(fitting)
        one_each = list({sample.group: sample for sample in fitting}.values())
        rest = [sample for sample in fitting if sample not in one_each]
        chosen += [*one_each, *rest][: count // 2]
    return chosen


if __name__ == "__main__":
    main()
