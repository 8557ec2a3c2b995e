"""A camera's settings: GenICam features by name, from the command line or from a file.

A file is one of

- Pylon's feature stream, `.pfs`: the Viewer saves it; Basler's own library loads it;
- GenApi's persistence text, the same form from other makers: `Name<tab>Value`, with
  `{Selector=Value}` between them where a selector has to be set first;
- lines `Name=Value`, or `Name<tab>Value`; lines that begin with `#` are comments.

Beside GenICam's names some plain ones are known, which mean the feature that a camera has:

| name | feature |
|---|---|
| `width`, `height`, `pixel-format` | Width, Height, PixelFormat |
| `exposure-us` | ExposureTime, or ExposureTimeAbs |
| `line-rate` | AcquisitionLineRate, or AcquisitionLineRateAbs; switched on where it can be |
| `trigger` | `off`, or the source of the line trigger, as `Line1`: selector, mode and source |
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol, TypeAlias

from magtiles_seg.errors import DataError

Value: TypeAlias = int | float | str
_EMPTY = "GENICAM_EMPTY_STRING"
_TRIGGERS = ("LineStart", "FrameStart", "FrameBurstStart", "AcquisitionStart")
_PLAIN = {
    "width": ("Width",),
    "height": ("Height",),
    "pixel-format": ("PixelFormat",),
    "exposure-us": ("ExposureTime", "ExposureTimeAbs"),
    "line-rate": ("AcquisitionLineRate", "AcquisitionLineRateAbs"),
}


class Nodes(Protocol):
    """A camera's node map, in the one way that settings need of it."""

    def has(self, name: str) -> bool:
        """Tell whether the camera has a feature."""

    def get(self, name: str) -> str:
        """Return a feature's value as text."""

    def set(self, name: str, value: str) -> None:
        """Set a feature from text; the vendor's own error where it is refused."""

    def choices(self, name: str) -> tuple[str, ...]:
        """Return an enumeration's values, those of no use now included."""

    def load(self, path: Path) -> bool:
        """Load a feature stream with the vendor's own means; False: there are none."""


@dataclass(frozen=True)
class Feature:
    """One value, and the selectors that say of what."""

    name: str
    value: str
    selectors: tuple[tuple[str, str], ...] = ()


def read_features(path: str | Path) -> list[Feature]:
    """Return what a settings file says, in its order.

    Raises:
        FileNotFoundError: There is no such file.
        DataError: A line is none of the forms above, or it is not text.
    """
    try:
        lines = Path(path).read_text(encoding="utf-8-sig").splitlines()
    except UnicodeDecodeError as error:
        raise DataError(f"{path} is no text ({error}); expected a camera's settings") from error
    return [
        _feature(line, f"{path}, line {number}")
        for number, line in enumerate(lines, 1)
        if line.strip() and not line.lstrip().startswith("#")
    ]


def _feature(line: str, where: str) -> Feature:
    parts = [part.strip() for part in line.split("\t") if part.strip()]
    if len(parts) == 1:
        name, equals, value = line.partition("=")
        parts = [name.strip(), value.strip()] if equals else parts
    if len(parts) == 3 and parts[1].startswith("{") and parts[1].endswith("}"):
        pairs = [word.partition("=") for word in parts.pop(1)[1:-1].split(",")]
        selectors = tuple((name.strip(), value.strip()) for name, _, value in pairs)
    else:
        selectors = ()
    if len(parts) != 2 or not all(parts) or " " in parts[0]:
        raise DataError(f"{where}: {line.strip()!r}; expected Name=Value, or Name, tab and Value")
    name, value = parts
    return Feature(name, "" if value == _EMPTY else value, selectors)


def apply(nodes: Nodes, path: Path | None, features: Mapping[str, Value]) -> None:
    """Set a camera up: first by the file, then feature by feature, in their order.

    Raises:
        FileNotFoundError: There is no such file.
        DataError: A line of the file, or a name, is not understood.
        Exception: The vendor's own, where the camera refuses a value.
    """
    if path is not None:
        wanted = read_features(path)
        if not nodes.load(path):
            _set_all(nodes, wanted)
    for name, value in features.items():
        _set_all(nodes, _meant(nodes, name, _text(value)))


def is_triggered(nodes: Nodes) -> bool:
    """Tell whether frames or lines wait for a trigger, so that silence means nothing."""
    if not (nodes.has("TriggerSelector") and nodes.has("TriggerMode")):
        return nodes.has("TriggerMode") and nodes.get("TriggerMode") == "On"
    selected = nodes.get("TriggerSelector")
    offered = [name for name in _TRIGGERS if name in nodes.choices("TriggerSelector")]
    try:
        for name in offered:
            nodes.set("TriggerSelector", name)
            if nodes.get("TriggerMode") == "On":
                return True
    finally:
        nodes.set("TriggerSelector", selected)
    return False


def _set_all(nodes: Nodes, features: Iterable[Feature]) -> None:
    for feature in features:
        for name, value in (*feature.selectors, (feature.name, feature.value)):
            if not nodes.has(name):
                raise DataError(f"it has no feature {name}")
            nodes.set(name, value)


def _meant(nodes: Nodes, name: str, value: str) -> list[Feature]:
    """Return the features that a name stands for at this camera."""
    if name == "trigger":
        return _trigger(nodes, value)
    if name not in _PLAIN:
        return [Feature(name, value)]
    known = [one for one in _PLAIN[name] if nodes.has(one)]
    if not known:
        raise DataError(f"it has no feature {' or '.join(_PLAIN[name])}, so no {name} can be set")
    wanted = [Feature(known[0], value)]
    if name == "line-rate" and nodes.has("AcquisitionLineRateEnable"):
        wanted.insert(0, Feature("AcquisitionLineRateEnable", "1"))
    return wanted


def _trigger(nodes: Nodes, source: str) -> list[Feature]:
    choices = nodes.choices("TriggerSelector") if nodes.has("TriggerSelector") else ()
    offered = [name for name in _TRIGGERS[:2] if name in choices]
    selectors = (("TriggerSelector", offered[0]),) if offered else ()
    if source.lower() == "off":
        return [Feature("TriggerMode", "Off", selectors)]
    return [Feature("TriggerSource", source, selectors), Feature("TriggerMode", "On", selectors)]


def _text(value: Value) -> str:
    return str(int(value)) if isinstance(value, bool) else str(value)
