"""ModelCard: what a model file says about itself, and the seal that proves the file is whole.

The card travels inside the ONNX file as JSON (`metadata_props`), so that a model and its labels,
thresholds and origin cannot be parted.
"""

from __future__ import annotations

import dataclasses
import itertools
import json
import math
import reprlib
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from magtiles_seg.errors import ConfigError, ModelError
from magtiles_seg.files import lfs_pointer, sha256_of
from magtiles_seg.jsontext import MOST_CHARS, parse_json
from magtiles_seg.labels import BACKGROUND
from magtiles_seg.result import Decision

SCHEMA_VERSION = 1
CARD_KEY = "magtiles_seg.card"
"""Metadata key under which a model file carries its card."""

JOINT = "+"
"""Between the members' architectures in an ensemble's own: `lite0+small`."""

SEAL_KEY = "magtiles_seg.sha256"
"""Metadata key of an ONNX file's own SHA-256, taken with these 64 digits as zeros."""

_MOST_LABELS = 255  # classes are bytes
_MOST_WORD = 200  # characters
_MOST_STRIDE, _MOST_SIGHT_PX = 1024, 32_768
_MOST_AREA_PX = 2**31 - 1

_UNSEALED = b"0" * 64
# Protobuf spells an entry as key, tag of field 2 (the value), length 64, digits.
_SEAL_MARK = SEAL_KEY.encode() + b"\x12\x40"


@dataclass(frozen=True, kw_only=True)
class ModelCard:
    """What travels inside a model file.

    Attributes:
        name: What people call the model, such as `"magnetic-tile"`.
        architecture: A name from `magtiles_seg.model.network.ARCHITECTURES`, `patches`, or those of
            an ensemble's members, joined by `+`.
        labels: Class names by index, background first.
        decision: Thresholds chosen on tiles that were not trained on.
        stride: The network's input is padded to a multiple of this, in px.
        receptive_field_px: Side of the square that one output pixel can depend on.
        training: Revision of the data, split rule, seed: what is needed to train it again.
        metrics: One mapping a measurement, `{"protocol": name, "figures": {name: number}}`.
        git_revision: Of the code that trained it; empty if unknown.
        weights_sha256: SHA-256 of the checkpoint file it was made from; empty if unknown.
        licence: SPDX identifier.
        input_statistics: What `drift.input_statistics` found of usual pictures; may be empty.
        calibration: Scale and bias that were folded into the defect logit; empty where none were.
        schema_version: Of this card's layout.

    Example:
        >>> labels = ("background", "crack")
        >>> card = ModelCard(name="demo", architecture="nano", labels=labels, stride=16)
        >>> ModelCard.from_json(card.to_json()) == card
        True
    """

    name: str
    architecture: str
    labels: tuple[str, ...]
    stride: int
    decision: Decision = field(default_factory=Decision)
    receptive_field_px: int = 0
    training: Mapping[str, Any] = field(default_factory=dict)
    metrics: tuple[Mapping[str, Any], ...] = ()
    git_revision: str = ""
    weights_sha256: str = ""
    licence: str = "Apache-2.0"
    input_statistics: Mapping[str, Any] = field(default_factory=dict)
    calibration: Mapping[str, float] = field(default_factory=dict)
    schema_version: int = SCHEMA_VERSION

    def __post_init__(self) -> None:
        """Check every field.

        Raises:
            ModelError: One has a value that no model of this package has.
        """
        for name in ("name", "architecture", "git_revision", "weights_sha256", "licence"):
            _check_word(name, getattr(self, name))
        _check_labels(self.labels)
        _check_whole("stride", self.stride, 1, _MOST_STRIDE)
        if self.stride & (self.stride - 1):
            raise ModelError(f"model card: stride must be a power of two, got {self.stride}")
        _check_whole("receptive_field_px", self.receptive_field_px, 0, _MOST_SIGHT_PX)
        for name in ("min_area_px", "score_top_k_px", "score_margin_px"):
            _check_whole(name, getattr(self.decision, name), 0, _MOST_AREA_PX)
        _check_calibration(self.calibration)
        _check_statistics(self.input_statistics)

    def with_figures(self, protocol: str, pictures: int, figures: Mapping[str, float]) -> ModelCard:
        """Return a card with an evaluation's figures, in place of older ones of that protocol.

        Args:
            protocol: Its name.
            pictures: How many were scored.
            figures: By name; those that are NaN are left out.
        """
        others = [entry for entry in self.metrics if entry["protocol"] != protocol]
        entry = measurement(protocol, pictures, figures)
        return dataclasses.replace(self, metrics=(*others, entry))

    def to_json(self) -> str:
        """Return the card as one line of JSON with sorted keys.

        Raises:
            ModelError: `training`, `metrics` or `input_statistics` hold something that JSON cannot
                carry, such as NaN.
        """
        fields = {entry.name: getattr(self, entry.name) for entry in dataclasses.fields(self)}
        for name in _OPTIONAL:  # left out when empty: older versions read the card, too
            if not fields[name]:
                del fields[name]
        fields["decision"] = self.decision.to_dict()
        try:
            text = json.dumps(fields, sort_keys=True, allow_nan=False)
        except (TypeError, ValueError, RecursionError) as error:
            raise ModelError(f"the model card cannot be written as JSON: {error}") from error
        if len(text) > MOST_CHARS:
            raise ModelError(
                f"the model card has {len(text)} characters as JSON, expected at most {MOST_CHARS}"
            )
        return text

    @classmethod
    def from_json(cls, text: str) -> ModelCard:
        """Return the card that `to_json` wrote.

        Raises:
            ModelError: The text is not a card, or one of another schema version.
        """
        fields = _parse(text)
        _check_schema(fields)
        try:
            fields["decision"] = Decision(**fields["decision"])
            return cls(
                **{**fields, "labels": tuple(fields["labels"]), "metrics": tuple(fields["metrics"])}
            )
        except (ConfigError, TypeError) as error:
            raise ModelError(
                f"the model card is damaged: {error}; export the model again"
            ) from error


def measurement(protocol: str, pictures: int, figures: Mapping[str, float]) -> dict[str, Any]:
    """Return an entry of `ModelCard.metrics`; figures that are NaN are left out."""
    known = {name: value for name, value in figures.items() if not math.isnan(value)}
    return {"protocol": protocol, "pictures": pictures, "figures": known}


_TYPES: dict[str, type] = {
    "name": str,
    "architecture": str,
    "labels": list,
    "stride": int,
    "decision": dict,
    "receptive_field_px": int,
    "training": dict,
    "metrics": list,
    "git_revision": str,
    "weights_sha256": str,
    "licence": str,
    "input_statistics": dict,
    "calibration": dict,
    "schema_version": int,
}
_OPTIONAL = frozenset({"calibration", "input_statistics"})


def _parse(text: str) -> dict[str, Any]:
    try:
        fields = parse_json(text)
    except ValueError as error:
        raise ModelError(f"the model card is not JSON ({error}); export the model again") from error
    if not isinstance(fields, dict) or "schema_version" not in fields:
        raise ModelError(
            "the model card is not one of magtiles-seg: no schema_version; export the model again"
        )
    return fields


def _check_schema(fields: Mapping[str, Any]) -> None:
    version = fields["schema_version"]
    if version != SCHEMA_VERSION:
        fix = (
            "upgrade magtiles-seg"
            if isinstance(version, int) and version > SCHEMA_VERSION
            else "export it again"
        )
        raise ModelError(
            f"the model card has schema version {reprlib.repr(version)}, "
            f"expected {SCHEMA_VERSION}: {fix}"
        )
    missing = _TYPES.keys() - _OPTIONAL - fields.keys()
    if missing or fields.keys() - _TYPES.keys():
        raise ModelError(
            f"the model card is damaged: missing {sorted(missing)}, unknown "
            f"{reprlib.repr(sorted(fields.keys() - _TYPES.keys()))}; export the model again"
        )
    for name, value in fields.items():
        kind = _TYPES[name]
        if not isinstance(value, kind) or isinstance(value, bool):
            raise ModelError(
                f"the model card is damaged: {name} must be {kind.__name__}, got "
                f"{reprlib.repr(value)}; "
                "export the model again"
            )
    if not all(isinstance(label, str) for label in fields["labels"]):
        raise ModelError(
            "the model card is damaged: labels must be strings, got "
            f"{reprlib.repr(fields['labels'])}"
        )
    if not all(isinstance(entry, dict) for entry in fields["metrics"]):
        raise ModelError(
            "the model card is damaged: metrics must be mappings, got "
            f"{reprlib.repr(fields['metrics'])}; export the model again"
        )


def _check_word(name: str, value: object) -> None:
    """Check a text that is printed and sent as an HTTP header."""
    if not isinstance(value, str) or len(value) > _MOST_WORD or not _plain(value):
        raise ModelError(
            f"model card: {name} must be text of at most {_MOST_WORD} characters without control "
            f"characters, got {reprlib.repr(value)}"
        )


def _plain(text: str) -> bool:
    return not any(ord(sign) < 32 or 127 <= ord(sign) < 160 or 0xD800 <= ord(sign) < 0xE000
                   for sign in text)  # fmt: skip


def _check_labels(labels: object) -> None:
    if not isinstance(labels, tuple) or not 2 <= len(labels) <= _MOST_LABELS:
        raise ModelError(
            f"model card: labels must be {BACKGROUND!r} and other names, at most {_MOST_LABELS}, "
            f"got {reprlib.repr(labels)}"
        )
    for label in labels:
        _check_word("a label", label)
    if labels[0] != BACKGROUND or len(set(labels)) != len(labels):
        raise ModelError(
            f"model card: labels must be {BACKGROUND!r} and other names, each once, "
            f"got {reprlib.repr(labels)}"
        )


def _check_whole(name: str, value: object, least: int, most: int) -> None:
    if not isinstance(value, int) or isinstance(value, bool) or not least <= value <= most:
        raise ModelError(
            f"model card: {name} must be at least {least} and at most {most}, a whole number, "
            f"got {reprlib.repr(value)}"
        )


def _check_calibration(calibration: Mapping[str, float]) -> None:
    numbers = [calibration.get(name) for name in ("scale", "bias")] if calibration else [1, 0]
    if not all(map(_is_finite, numbers)) or numbers[0] <= 0 or len(calibration) > 2:  # type: ignore[operator]
        raise ModelError(
            "model card: calibration must be empty, or a scale above 0 and a bias, got "
            f"{reprlib.repr(calibration)}"
        )


def _check_statistics(statistics: Mapping[str, Any]) -> None:
    """Check what `drift` reads: the number of pictures, and of each feature its bins."""
    rest = dict(statistics)
    if statistics:
        _check_whole("input_statistics.pictures", rest.pop("pictures", None), 1, _MOST_AREA_PX)
    for name, bins in rest.items():
        edges, shares = (
            (bins.get("edges"), bins.get("shares")) if isinstance(bins, dict) else (None, None)
        )
        if not _are_bins(edges, shares):
            raise ModelError(
                f"model card: input_statistics of {reprlib.repr(name)} must be rising edges and "
                f"one share (0..1, together 1) more, got {reprlib.repr(bins)}; measure them again"
            )


def _are_bins(edges: Any, shares: Any) -> bool:  # noqa: ANN401 - from a file
    if not _are_numbers(edges) or not _are_numbers(shares):
        return False
    rising = all(low < high for low, high in itertools.pairwise(edges))
    whole = all(0 <= share <= 1 for share in shares) and abs(sum(shares) - 1) < 1e-3
    return rising and whole and len(shares) == len(edges) + 1


def _are_numbers(values: object) -> bool:
    return isinstance(values, list) and len(values) <= 1000 and all(map(_is_finite, values))


def _is_finite(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)


def seal_onnx(data: bytes) -> bytes:
    """Return an ONNX file's bytes with its own SHA-256 filled in.

    Args:
        data: A serialized model whose metadata holds `SEAL_KEY` with 64 zeros.

    Raises:
        ModelError: It has no such entry, or more than one.
    """
    start = _seal_start(data)
    if start is None:
        raise ModelError(f"cannot seal the model: its metadata must hold {SEAL_KEY!r} once")
    blank = data[:start] + _UNSEALED + data[start + 64 :]
    return data[:start] + sha256_of(blank).encode() + data[start + 64 :]


def check_seal(data: bytes, name: str) -> None:
    """Check that an ONNX file's bytes are those that `seal_onnx` returned.

    Args:
        data: The whole file.
        name: What to call the file in the message.

    Raises:
        ModelError: The file is of another origin, or a byte of it has changed.
    """
    if said := lfs_pointer(data, "model"):
        raise ModelError(f"{name} {said}")
    start = _seal_start(data)
    if start is None:
        raise ModelError(
            f"{name} is not a magtiles-seg model, or a damaged one: "
            "expected an ONNX file that `magtiles-seg export` wrote"
        )
    blank = data[:start] + _UNSEALED + data[start + 64 :]
    if sha256_of(blank).encode() != data[start : start + 64]:
        raise ModelError(
            f"{name} is damaged: its content does not match its SHA-256; copy or export it again"
        )


def _seal_start(data: bytes) -> int | None:
    mark = data.find(_SEAL_MARK)
    if mark < 0 or data.find(_SEAL_MARK, mark + 1) >= 0:
        return None
    return mark + len(_SEAL_MARK)
