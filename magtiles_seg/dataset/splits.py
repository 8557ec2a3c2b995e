"""Splits: which pictures train, choose and test, as manifests that say how they were drawn."""

from __future__ import annotations

import json
import random
from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, fields
from numbers import Integral
from pathlib import Path
from typing import Any

from magtiles_seg.dataset.samples import Sample
from magtiles_seg.errors import ConfigError, DataError
from magtiles_seg.files import sha256_of
from magtiles_seg.labels import FREE


def fold_assignment(
    samples: Sequence[Sample], folds: int = 5, *, fixed: Mapping[int, int] | None = None
) -> dict[int, int]:
    """Return the fold of every group: largest first, to the fold that best evens the classes.

    Args:
        samples: The data set, in any order.
        folds: How many.
        fixed: Folds that are already decided; they stay. None: `committed_folds(folds)`.

    Raises:
        DataError: There are fewer groups than folds.
    """
    groups = len({sample.group for sample in samples})
    if groups < folds:
        raise DataError(
            f"cannot make {folds} folds of {groups} group{'s' if groups != 1 else ''} of pictures, "
            "which are never torn: lower data_split.folds, to 2 at least, or hold nothing out by "
            "data_split.fold=null"
        )
    fixed = committed_folds(folds) if fixed is None else fixed
    return even_out(samples, [1.0] * folds, seed=0, fixed=fixed)


def committed_folds(folds: int = 5) -> dict[int, int]:
    """Return {group: fold} of the public data set's tiles as protocol T fixes them.

    The list keeps a tile in its fold whatever else changes: other pictures, or another rule to even
    the classes out. There is one for five folds; for other numbers nothing is fixed.
    """
    if folds != 5:
        return {}
    text = Path(__file__).with_name("folds.json").read_text(encoding="utf-8")
    lists: list[list[int]] = json.loads(text)["folds"]
    return {group: fold for fold, groups in enumerate(lists) for group in groups}


def even_out(
    samples: Sequence[Sample], weights: Sequence[float], *, seed: int, fixed: Mapping[int, int]
) -> dict[int, int]:
    """Return {group: bin}, greedily minimising the squared class shares over weighted bins.

    Placing a group with g_c pictures of class c (of N_c in all) into a bin of weight w that holds
    n_c already costs Σ_c ((n_c + g_c)² − n_c²) / (w N_c²); of two bins that cost the same the
    emptier one gets it. Equal groups are taken in an order that the seed shuffles.
    """
    counts: dict[int, Counter[str]] = defaultdict(Counter)
    for sample in samples:
        counts[sample.group][sample.label] += 1
    totals = Counter(sample.label for sample in samples)
    held: list[Counter[str]] = [Counter() for _ in weights]
    chosen = {group: fixed[group] for group in counts if group in fixed}
    for group, index in chosen.items():
        held[index].update(counts[group])
    order = sorted(counts.keys() - chosen.keys())
    random.Random(seed).shuffle(order)
    for group in sorted(order, key=lambda group: -counts[group].total()):
        cost = [
            sum((2 * have[c] + g) * g / (weight * totals[c] ** 2) for c, g in counts[group].items())
            for have, weight in zip(held, weights, strict=True)
        ]
        load = [have.total() / weight for have, weight in zip(held, weights, strict=True)]
        chosen[group] = min(range(len(cost)), key=list(zip(cost, load, strict=True)).__getitem__)
        held[chosen[group]].update(counts[group])
    return chosen


RULES = ("grouped", "random", "P1", "P1b", "P2")
PARTS = ("train", "validation", "test")
SPLIT_NAME = "split.json"
"""The manifest in the folder of a run."""
SCHEMA_VERSION = 1
_P1_SEED = 42

Parts = tuple[Sequence[Sample], Sequence[Sample], Sequence[Sample]]


@dataclass(frozen=True)
class Split:
    """A split manifest.

    Attributes:
        rule: One of `RULES`.
        seed: Of the draw; the folds of `grouped` do not depend on it, its inner validation part
            does.
        fold: Which fold is the test part (`grouped` and `random`); None: there is no test part.
        folds: Out of how many.
        validation_fraction: Share of what is not test that was asked for as validation part.
        train: Ids of the pictures to train on, sorted.
        validation: Ids of the pictures that choose checkpoints and thresholds, sorted.
        test: Ids of the pictures that are reported on, sorted.
        data_sha256: Of the data that was split, see `data_sha256`.
    """

    rule: str
    seed: int
    fold: int | None
    folds: int
    validation_fraction: float
    train: tuple[str, ...]
    validation: tuple[str, ...]
    test: tuple[str, ...]
    data_sha256: str

    @property
    def sha256(self) -> str:
        """SHA-256 of the manifest's content."""
        return sha256_of(json.dumps(asdict(self), sort_keys=True).encode())

    @property
    def origin(self) -> dict[str, str | int | None]:
        """What a model that was trained on it says of it: rule, draw and hashes, no ids."""
        return {
            "rule": self.rule,
            "seed": self.seed,
            "fold": self.fold,
            "folds": self.folds,
            "data_sha256": self.data_sha256,
            "sha256": self.sha256,
        }

    def to_json(self) -> str:
        """Return the manifest as JSON text."""
        content = {"schema_version": SCHEMA_VERSION, **asdict(self), "sha256": self.sha256}
        return json.dumps(content, indent=1) + "\n"

    @classmethod
    def from_json(cls, text: str) -> Split:
        """Return the manifest that `to_json` wrote.

        Raises:
            DataError: The text is no manifest, of another schema, or was altered.
        """
        try:
            content = json.loads(text)
            if content["schema_version"] != SCHEMA_VERSION:
                raise DataError(
                    f"split manifest has the schema version {content['schema_version']!r:.40}; "
                    f"expected {SCHEMA_VERSION}; write it again: magtiles-seg data split"
                )
            values = {field.name: content[field.name] for field in fields(cls)}
            _check_types(values)
            for part in PARTS:
                values[part] = tuple(values[part])
            split, sha256 = cls(**values), content["sha256"]
        except (ValueError, KeyError, TypeError, RecursionError) as error:
            if isinstance(error, DataError):
                raise
            raise DataError(
                f"no split manifest: {error!r:.200}; expected what magtiles-seg data split writes"
            ) from error
        if split.sha256 != sha256:
            raise DataError(
                f"split manifest was altered: its content has the SHA-256 {split.sha256}, it "
                f"claims {sha256!r:.80}; write it again: magtiles-seg data split"
            )
        return split


def _check_types(values: Mapping[str, object]) -> None:
    """Refuse the values of a manifest that no split has.

    Raises:
        TypeError: One is of another type.
    """
    kinds = dict[str, type | tuple[type, ...]](
        rule=str,
        seed=int,
        fold=(int, type(None)),
        folds=int,
        validation_fraction=(int, float),
        data_sha256=str,
    )
    for name, kind in kinds.items():
        if not isinstance(values[name], kind) or isinstance(values[name], bool):
            raise TypeError(f"{name} is {values[name]!r:.80}")
    for part in PARTS:
        ids = values[part]
        if not isinstance(ids, list) or not all(isinstance(id_, str) for id_ in ids):
            raise TypeError(f"{part} is no list of names")


def make_split(
    samples: Sequence[Sample],
    *,
    rule: str = "grouped",
    seed: int = 0,
    fold: int | None = 0,
    folds: int = 5,
    validation_fraction: float = 0.15,
    fold_of_group: Mapping[int, int] | None = None,
) -> Split:
    """Split a data set by a rule.

    Reviewed pictures (`Sample.train_only`) change none of the other parts: they join the training
    part, except those of a group that is validated or tested on, which are in no part.

    Args:
        samples: The data set, in any order.
        rule: `"grouped"`, `"random"`, `"P1"`, `"P1b"` or `"P2"`.
        seed: Of the draw. Seed 0 of `P1` is the published list.
        fold: Which fold is the test part (`grouped` and `random`); None: no picture is, for a
            model that ships after its recipe was judged on the folds.
        folds: Out of how many.
        validation_fraction: Share of the rest that becomes the validation part; `P1` fixes its own.
        fold_of_group: Folds that are already fixed (`grouped`); groups it lacks are placed beside
            them. None: `committed_folds(folds)`.

    Raises:
        ConfigError: A parameter is unknown, out of range or no whole number where one is needed.
        DataError: There are fewer groups than folds.
    """
    seed, folds = _whole("seed", seed), _whole("folds", folds, least=2)
    fold = None if fold is None else _whole("fold", fold)
    _check(rule, fold, folds, validation_fraction)
    everything = sorted(samples, key=lambda sample: sample.id)
    ordered = [sample for sample in everything if not sample.train_only]
    if rule == "grouped":
        parts = _grouped(ordered, seed, fold, folds, validation_fraction, fold_of_group)
    elif rule == "random":
        parts = _random(ordered, seed, fold, folds, validation_fraction)
    else:
        draw = {"P1": _p1, "P1b": _p1b, "P2": _p2}[rule]
        parts = draw(ordered, seed, validation_fraction)
    parts = (_with_reviewed(everything, parts), *parts[1:])
    train, validation, test = (tuple(sorted(sample.id for sample in part)) for part in parts)
    return Split(
        rule=rule,
        seed=seed,
        fold=fold,
        folds=folds,
        validation_fraction=validation_fraction,
        train=train,
        validation=validation,
        test=test,
        data_sha256=data_sha256(everything),
    )


def _with_reviewed(samples: Sequence[Sample], parts: Parts) -> list[Sample]:
    """Return the training part with the reviewed pictures that are of no other part's group."""
    train, *others = parts
    held_out = {sample.group for part in others for sample in part}
    reviewed = [s for s in samples if s.train_only and s.group not in held_out]
    return [*train, *reviewed]


def data_sha256(samples: Sequence[Sample]) -> str:
    """Return a SHA-256 over the sorted ids, classes, groups and file contents of a data set."""
    parts = []
    for sample in sorted(samples, key=lambda sample: sample.id):
        parts.append(f"{sample.id}\0{sample.label}\0{sample.group}\0".encode())
        for path in (sample.image_path, sample.mask_path):
            parts.append(bytes.fromhex(sha256_of(path or b"")))
    return sha256_of(b"".join(parts))


def note_changed(splits: Iterable[Split], samples: Sequence[Sample]) -> tuple[str, ...]:
    """Return a sentence where a data set is not that which splits were drawn from, else nothing.

    Reviewed pictures that came since change nothing that is validated or tested on.
    """
    own = [sample for sample in samples if not sample.train_only]
    given = [samples] if len(own) == len(samples) else [samples, own]
    known = {data_sha256(part) for part in given}  # reads every file
    if all(split.data_sha256 in known for split in splits):
        return ()
    return (
        "The data set is not what the split was drawn from: pictures, masks or tiles have changed, "
        "come or gone since; draw the split again if the figures are to be of these data.",
    )


def part_sha256(ids: Iterable[str]) -> str:
    """Return a SHA-256 over the sorted ids of a part; a model's card holds its training part's."""
    return sha256_of("\n".join(sorted(ids)).encode())


def taken_over(training: Mapping[str, Any]) -> tuple[str, ...]:
    """Return which training parts a model knows beside its own: of its start, teacher or members.

    Args:
        training: What its card says of its training.

    Returns:
        A `part_sha256` each; "" where nothing is known of one.
    """
    if "ancestors" in training:
        own = training.get("training_sha256")
        return tuple(str(part) for part in training["ancestors"] if part != own)
    return ("",) if {"start", "teacher"} & set(training) else ()


def _whole(name: str, value: Any, *, least: int = 0) -> int:  # noqa: ANN401 - checked here
    if isinstance(value, Integral) and not isinstance(value, bool) and int(value) >= least:
        return int(value)
    raise ConfigError(f"{name} is {value!r:.80}; expected a whole number, at least {least}")


def _check(rule: str, fold: int | None, folds: int, validation_fraction: float) -> None:
    if rule not in RULES:
        raise ConfigError(f"unknown split rule {rule!r}; expected one of {', '.join(RULES)}")
    if fold is None and rule not in ("grouped", "random"):
        raise ConfigError(f"rule {rule!r} has a test part of its own; expected a fold, got none")
    if (fold or 0) >= folds:
        raise ConfigError(f"fold {fold} of {folds} folds; expected 0 <= fold < folds")
    if not 0 <= validation_fraction < 1:
        raise ConfigError(f"validation_fraction is {validation_fraction}; expected 0 <= x < 1")


def _grouped(
    samples: Sequence[Sample],
    seed: int,
    fold: int | None,
    folds: int,
    validation_fraction: float,
    fixed: Mapping[int, int] | None,
) -> Parts:
    fold_of = {} if fold is None else fold_assignment(samples, folds, fixed=fixed)
    test = [sample for sample in samples if fold_of.get(sample.group, -1) == fold]
    rest = [sample for sample in samples if fold_of.get(sample.group, -1) != fold]
    if not validation_fraction:
        return rest, [], test
    weights = [1 - validation_fraction, validation_fraction]
    inner = even_out(rest, weights, seed=seed, fixed={})
    train, validation = ([s for s in rest if inner[s.group] == index] for index in (0, 1))
    return train, validation, test


def _shuffled_classes(samples: Sequence[Sample], rng: random.Random) -> dict[str, list[Sample]]:
    """Return {class: its samples, shuffled}, drawing class by class in sorted order."""
    labels = sorted({sample.label for sample in samples})
    classes: dict[str, list[Sample]] = {label: [] for label in labels}
    for sample in samples:
        classes[sample.label].append(sample)
    for members in classes.values():
        rng.shuffle(members)
    return classes


def _hold_out(samples: Sequence[Sample], fraction: float, rng: random.Random) -> Parts:
    """Cut a random share of every class off; the third part is empty."""
    kept, held = [], []
    for members in _shuffled_classes(samples, rng).values():
        cut = int(fraction * len(members))
        held += members[:cut]
        kept += members[cut:]
    return kept, held, []


def _random(
    samples: Sequence[Sample], seed: int, fold: int | None, folds: int, validation_fraction: float
) -> Parts:
    rng = random.Random(seed)
    dealt = [s for members in _shuffled_classes(samples, rng).values() for s in members]
    test = [] if fold is None else dealt[fold::folds]
    rest = sorted(set(dealt) - set(test), key=lambda sample: sample.id)
    train, validation, _ = _hold_out(rest, validation_fraction, rng)
    return train, validation, test


def _p1(samples: Sequence[Sample], seed: int, _: float) -> Parts:
    parts: tuple[list[Sample], list[Sample], list[Sample]] = ([], [], [])
    for members in _shuffled_classes(samples, random.Random(_P1_SEED + seed)).values():
        first, second = int(0.6 * len(members)), int(0.8 * len(members))
        parts[0].extend(members[:first])
        parts[1].extend(members[first:second])
        parts[2].extend(members[second:])
    return parts


def _p1b(samples: Sequence[Sample], seed: int, validation_fraction: float) -> Parts:
    rng = random.Random(seed)
    defects = [sample for sample in samples if sample.label != FREE]
    rng.shuffle(defects)
    cut = int(0.2 * len(defects))
    rest = sorted(defects[cut:], key=lambda sample: sample.id)
    train, validation, _ = _hold_out(rest, validation_fraction, rng)
    return train, validation, defects[:cut]


def _p2(samples: Sequence[Sample], seed: int, validation_fraction: float) -> Parts:
    rng = random.Random(seed)
    free = [sample for sample in samples if sample.label == FREE]
    defects = [sample for sample in samples if sample.label != FREE]
    rest, test = [], []
    for members in _shuffled_classes(defects, rng).values():
        cut = int(0.8 * len(members))
        rest += members[:cut]
        test += members[cut:]
    rest.sort(key=lambda sample: sample.id)
    train, validation, _ = _hold_out(rest, validation_fraction, rng)
    return [*train, *free], validation, test
