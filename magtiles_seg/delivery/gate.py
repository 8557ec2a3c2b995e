"""Whether an experiment is merged without a person: the base's code scores its model again.

What the experiment's branch says of itself is not taken for true. Its model is scored with the
code, the data and the split of the base branch; figures that differ from those that it committed
refuse it, and the comparison is made with the new ones. What changes code is left to a person,
since it could change what is measured.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from magtiles_seg.config import GateParams
from magtiles_seg.dataset.splits import Split, part_sha256, taken_over
from magtiles_seg.delivery.report import rule_of, scored_pictures
from magtiles_seg.delivery.revisions import Revision, check_whole, git, prefix
from magtiles_seg.errors import ConfigError, DataError
from magtiles_seg.evaluate.compare import Comparison, compare
from magtiles_seg.evaluate.plots.curves import metrics
from magtiles_seg.evaluate.report import EvaluationResult
from magtiles_seg.evaluate.scoring import Records
from magtiles_seg.evaluate.summary import figures
from magtiles_seg.jsontext import flatten
from magtiles_seg.model.card import ModelCard
from magtiles_seg.names import as_line

_RESULTS = re.compile(r"params\.yaml|dvc\.lock|results/.*\.(csv|json|md|tsv)")
"""All that an experiment may change which is merged without a person. A `results/x.dvc` is none of
these: `dvc pull` writes what it names to any place of the checkout."""

FIXED = ("data_load", "data_split", "evaluate", "gate", "train.start", "train.teacher")
"""Parameters, or sections of them, that both must have alike: what is measured, how it is judged,
and weights that may have seen the test tiles."""

_KNOWS_MORE = (
    "the model of {head} learnt from other pictures than this split's training part, which the "
    "model of {base} does not know: by its start, its teacher or one of its members, as its card "
    "says; it may know test tiles"
)
_FAMILIES = ("binary", "pictures", "verdict")
_METRICS = "results/metrics.json"
_PICTURES = "results/pictures.csv"


@dataclass(frozen=True, kw_only=True)
class Scored:
    """A state's model, scored by this code on this data.

    Attributes:
        result: The evaluation.
        card: What the model says about itself.
    """

    result: EvaluationResult
    card: ModelCard


Rescore = Callable[[Revision], "Scored | None"]
"""Scores a state's model on the base's test part; None where the state has no model."""


@dataclass(frozen=True, kw_only=True)
class Verdict:
    """What becomes of an experiment.

    Attributes:
        merge: It is merged without a person.
        reasons: Why, or why not, in sentences.
        comparison: The two models, scored again; None where it did not come to that.
    """

    merge: bool
    reasons: tuple[str, ...]
    comparison: Comparison | None = None

    def __str__(self) -> str:
        """Return the decision and its reasons, a line each."""
        head = "merge" if self.merge else "not merged without a person"
        return "\n".join([f"gate: {head}", *(f"- {reason}" for reason in self.reasons)])


def judge(base: Revision, head: Revision, split: Split, rescore: Rescore) -> Verdict:
    """Judge an experiment by what the base's code finds of its model.

    Args:
        base: The state to merge into; its code runs this.
        head: The experiment.
        split: Of the base.
        rescore: Scores a model with the base's code, data and split.

    Raises:
        ConfigError, DataError: A file of one of the states is damaged.
    """
    obstacles = [
        *changed_files(base, head),
        *other_parameters(base, head),
        *other_data(Revision(base.root), head),
    ]
    if obstacles:
        return Verdict(merge=False, reasons=tuple(obstacles))
    here = rescore(head)
    if here is None:
        raise DataError(
            f"the model of {head} is not to be had; expected it in the DVC remote: `dvc push` it"
        )
    rule = rule_of(base)
    obstacles = [*other_training(head, here.card, split), *other_figures(head, here.result, rule)]
    if obstacles:
        return Verdict(merge=False, reasons=tuple(obstacles))
    before = rescore(base)
    if before is None:
        return Verdict(merge=False, reasons=(f"{base} has no model to compare with",))
    if set(taken_over(here.card.training)) - set(taken_over(before.card.training)):
        return Verdict(merge=False, reasons=(_KNOWS_MORE.format(head=head, base=base),))
    comparison = compare(before.result.records, here.result.records)
    judged = comparison.judge(rule)
    basis = (
        f"Both models were scored again on {comparison.pictures} test pictures of "
        f"{comparison.tiles} tiles, protocol {here.result.protocol.name}."
    )
    return Verdict(
        merge=judged.improved,
        reasons=(judged.reason, judged.power, basis),
        comparison=comparison,
    )


def changed_files(base: Revision, head: Revision) -> list[str]:
    """Return why a person must look at what an experiment changed; empty: it changed results."""
    span = f"{base.name or 'HEAD'}...{head.name or 'HEAD'}"
    root = base.root
    try:
        listed = git("diff", "--name-only", "--no-renames", "--no-relative", "-z", span, root=root)
    except ConfigError:
        check_whole(root)
        raise
    folder = prefix(root)
    others = [
        as_line(name)
        for name in listed.split("\0")
        if name and not (name.startswith(folder) and _RESULTS.fullmatch(name, len(folder)))
    ]
    if not others:
        return []
    more = f" and {len(others) - 5} more" if len(others) > 5 else ""
    return [
        f"{head} changes {', '.join(others[:5])}{more}: a person reads what is neither a parameter "
        "nor a result"
    ]


def other_parameters(base: Revision, head: Revision) -> list[str]:
    """Return one line for each parameter by which two states cannot be compared."""
    old, new = (flatten(state.mapping("params.yaml")) for state in (base, head))
    return [
        f"{name} is {_plain(new, name)} at {head}, {_plain(old, name)} at {base}: their figures "
        "are not of the same"
        for name in sorted(old.keys() | new.keys())
        if name.startswith(tuple(f"{one}." for one in FIXED)) or name in FIXED
        if old.get(name) != new.get(name)
    ]


def other_data(here: Revision, head: Revision) -> list[str]:
    """Return one line for each file of data or split that an experiment did not get as it is here.

    Args:
        here: The base's working directory, after `dvc repro data_split`.
        head: The experiment.
    """
    old, new = _locked(here), _locked(head)
    return [
        f"{path} has the hash {new.get(path)} at {head}, {md5} here: it is not the same data"
        for path, md5 in old.items()
        if new.get(path) != md5
    ]


def _locked(state: Revision) -> dict[str, str]:
    """Return {path: hash} of the data and the split in a dvc.lock."""
    stages = state.mapping("dvc.lock").get("stages") or {}
    try:
        return {
            out["path"]: out["md5"]
            for name in ("data_load", "data_split")
            for out in stages.get(name, {}).get("outs", ())
        }
    except (AttributeError, KeyError, TypeError) as error:
        raise DataError(f"dvc.lock of {state} is damaged: {error!r}") from error


def other_training(head: Revision, card: ModelCard, split: Split) -> list[str]:
    """Return why a model was not trained on the base's training part, as far as its card tells."""
    said = card.training.get("training_sha256")
    if said == part_sha256(split.train):
        return []
    return [
        f"the model of {head} was not trained on the training part of this split, as its card says "
        f"(pictures {str(said)[:12]}, expected {part_sha256(split.train)[:12]}): it may know test "
        "tiles"
    ]


def other_figures(head: Revision, again: EvaluationResult, rule: GateParams) -> list[str]:
    """Return one line for each committed figure that the same model does not reach here."""
    records, said, true = scored_pictures(head), head.mapping(_METRICS), metrics(again)
    if records is None or not said:
        return [f"{head} has no {_PICTURES} or {_METRICS}: run `dvc repro` and commit them"]
    found = [
        f"{_METRICS} says {name} {said.get(name)}, computed again it is {true[name]}"
        for name in ("protocol", "pictures", "tiles")
        if said.get(name) != true[name]
    ]
    if set(records.ids) != set(again.records.ids):
        found.append(f"{_PICTURES} holds other pictures than the test part")
    found += _unlike(_METRICS, _numbers(said), _numbers(true), rule.tolerance)
    found += _unlike(_PICTURES, _figures(records), _figures(again.records), rule.tolerance)
    return [f"refused: the figures of {head} are not those of its model", *found] if found else []


def _unlike(
    source: str, said: Mapping[str, float], true: Mapping[str, float], tolerance: float
) -> list[str]:
    return [
        f"{source} says {name} {_number(said.get(name))}, computed again it is {value:.4f}"
        for name, value in true.items()
        if not abs(said.get(name, np.inf) - value) <= tolerance
    ]


def _figures(records: Records) -> dict[str, float]:
    values = figures(records, _FAMILIES, np.ones(len(records)))
    return {name: float(value) for name, value in values.items() if not np.isnan(value)}


def _numbers(content: Mapping[str, Any]) -> dict[str, float]:
    flat = flatten(content)
    return {name: value for name, value in flat.items() if isinstance(value, float)}


def _number(value: float | None) -> str:
    return "nothing" if value is None else f"{value:.4f}"


def _plain(values: Mapping[str, Any], name: str) -> str:
    return repr(values[name]) if name in values else "not set"
