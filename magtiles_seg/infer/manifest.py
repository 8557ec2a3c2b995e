"""Manifest: what an artefact was made from, for which machine, and how it passed parity.

It is the file `NAME.engine.json` or `NAME.onnx.json` beside the artefact. An engine fits one
runtime version, one kind of GPU, one operating system; what loads it asks `mismatches` first, so
that a stale one is an error that names its reasons and never a crash or a silent rebuild.
"""

from __future__ import annotations

import json
import os
import platform
import re
import reprlib
from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from importlib import metadata
from pathlib import Path
from typing import Any

from magtiles_seg.errors import ModelError
from magtiles_seg.files import write
from magtiles_seg.jsontext import read_json
from magtiles_seg.model.card import ModelCard

SCHEMA_VERSION = 1
_PRECISIONS = ("fp32", "fp16", "int8")

ENVIRONMENT_KEYS = (
    "runtime",
    "runtime_version",
    "cuda",
    "driver",
    "gpu",
    "compute_capability",
    "os",
    "arch",
)
"""What an artefact may be bound to. `compute_capability` is a list where it was built for several,
as in `["SM86", "SM120"]`; what was not known when it was built is left out."""


@dataclass(frozen=True, kw_only=True)
class Manifest:
    """What stands beside an artefact.

    Attributes:
        sha256: Of the artefact.
        onnx_sha256: Of the ONNX file it was made from.
        precision: `"fp32"`, `"fp16"` or `"int8"`, of the arithmetic.
        environment: Values of `ENVIRONMENT_KEYS` as far as they were known.
        card: What the model says about itself.
        parity: Figures of the comparison that the artefact passed, what ran and on which pictures.
        profile: Shapes (N, H, W) by `min`, `opt` and `max`; empty where any will do.
        recipe: The device recipe it was built by.
        schema_version: Of this layout.
    """

    sha256: str
    onnx_sha256: str
    precision: str
    environment: Mapping[str, str | list[str]]
    card: ModelCard
    parity: Mapping[str, Any] = field(default_factory=dict)
    profile: Mapping[str, list[int]] = field(default_factory=dict)
    recipe: Mapping[str, Any] = field(default_factory=dict)
    schema_version: int = SCHEMA_VERSION

    def to_json(self) -> str:
        """Return the manifest as JSON text."""
        values = {item.name: getattr(self, item.name) for item in fields(self)}
        values["card"] = json.loads(self.card.to_json())
        return json.dumps(values, indent=2, sort_keys=True, allow_nan=False) + "\n"

    def _check(self, where: Path) -> None:
        wrong = [
            name
            for name in ("environment", "parity", "profile", "recipe")
            if not isinstance(getattr(self, name), dict)
        ]
        if wrong:
            raise _damaged(where, wrong[0], "a mapping", getattr(self, wrong[0]))
        for name in ("sha256", "onnx_sha256"):
            value = getattr(self, name)
            if not isinstance(value, str) or not re.fullmatch(r"([0-9a-f]{64})?", value):
                raise _damaged(where, name, "64 hexadecimal digits", value)
        if self.precision not in _PRECISIONS:
            raise _damaged(where, "precision", " or ".join(_PRECISIONS), self.precision)
        for name, value in self.environment.items():
            if not isinstance(value, str) and not _are(value, str):
                raise _damaged(where, f"environment.{name}", "a text or a list of texts", value)
        if self.profile and not _is_profile(self.profile):
            raise _damaged(where, "profile", "min <= opt <= max, each [N, H, W]", self.profile)
        if not isinstance(self.parity.get("tolerance", {}), dict):
            raise _damaged(where, "parity.tolerance", "a mapping", self.parity["tolerance"])

    @classmethod
    def read(cls, artefact: str | os.PathLike[str]) -> Manifest:
        """Return the manifest that stands beside an artefact.

        Args:
            artefact: The engine or ONNX file, not the manifest itself.

        Raises:
            ModelError: There is none, it is damaged, or of another schema version.
        """
        path = manifest_path(artefact)
        try:
            values = read_json(path)
        except (OSError, ValueError) as error:
            raise ModelError(
                f"{os.fspath(artefact)} has no readable manifest (expected {path}): {error}; "
                "copy both files, or export the model again"
            ) from error
        if not isinstance(values, dict):
            raise ModelError(f"{path} is not a manifest: no mapping; export the model again")
        version = values.get("schema_version")
        if version != SCHEMA_VERSION:
            raise ModelError(
                f"{path} has schema version {reprlib.repr(version)}, expected {SCHEMA_VERSION}: "
                "export the model again with this version of magtiles-seg"
            )
        try:
            card = ModelCard.from_json(json.dumps(values["card"]))
            manifest = cls(**{**values, "card": card})
        except (KeyError, TypeError) as error:
            raise ModelError(f"{path} is damaged: {error}; export the model again") from error
        manifest._check(path)
        return manifest

    def write(self, artefact: str | os.PathLike[str]) -> Path:
        """Write the manifest beside an artefact, at once or not at all, and return its path."""
        path = manifest_path(artefact)
        write(path, self.to_json(), durable=True)
        return path


def manifest_path(artefact: str | os.PathLike[str]) -> Path:
    """Return where the manifest of an artefact stands."""
    return Path(f"{os.fspath(artefact)}.json")


def mismatches(manifest: Manifest, environment: Mapping[str, str | list[str]]) -> tuple[str, ...]:
    """Return one line for each fact in which a machine differs from what an artefact was made for.

    Args:
        manifest: Of the artefact.
        environment: This machine's values of `ENVIRONMENT_KEYS`; besides, `sha256` and
            `onnx_sha256` where the files themselves are to be compared.

    Returns:
        Lines such as `"driver: expected 580.65, got 575.12"`; none if the artefact fits. A fact
        that the manifest leaves out was not known when it was built, and fits anything.
    """
    expected: dict[str, str | list[str]] = {**manifest.environment}
    for key in ("sha256", "onnx_sha256"):
        if key in environment:
            expected[key] = getattr(manifest, key)
    return tuple(
        f"{key}: expected {_words(wanted)}, got {_words(environment.get(key, 'nothing'))}"
        for key, wanted in expected.items()
        if not _fits(wanted, environment.get(key))
    )


def local_environment(runtime: str, version: str = "") -> dict[str, str | list[str]]:
    """Return what can be known without a GPU: the runtime, its version, system and processor.

    Args:
        runtime: Name of the package, as in `"onnxruntime"`.
        version: Of the runtime; empty asks the installed package.
    """
    if not version:
        try:
            version = metadata.version(runtime)
        except metadata.PackageNotFoundError:
            version = "unknown"
    return {
        "runtime": runtime,
        "runtime_version": version,
        "os": platform.system().lower(),
        "arch": platform.machine().lower(),
    }


def _damaged(where: Path, name: str, wanted: str, got: object) -> ModelError:
    return ModelError(
        f"{where} is damaged: {name} must be {wanted}, got {reprlib.repr(got)}; "
        "export the model again"
    )


def _is_profile(profile: Mapping[str, Any]) -> bool:
    shapes: list[Any] = [profile.get(name) for name in ("min", "opt", "max")]
    if len(profile) != 3 or not all(_are(shape, int) and len(shape) == 3 for shape in shapes):
        return False
    return all(1 <= least <= opt <= most for least, opt, most in zip(*shapes, strict=True))


def _are(values: Any, kind: type) -> bool:  # noqa: ANN401 - from a file: of any type
    return isinstance(values, list) and all(type(value) is kind for value in values)


def _fits(wanted: str | list[str], got: str | list[str] | None) -> bool:
    if isinstance(wanted, list) and isinstance(got, str):
        return got in wanted
    return wanted == got


def _words(value: str | list[str]) -> str:
    return value if isinstance(value, str) else " or ".join(value)
