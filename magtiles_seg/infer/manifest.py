"""Manifest: what an artefact was made from, for which machine, and how it passed parity.

It is the file `NAME.engine.json` or `NAME.onnx.json` beside the artefact. An engine fits one
runtime version, one kind of GPU, one operating system; what loads it asks `mismatches` first, so
that a stale one is an error that names its reasons and never a crash or a silent rebuild.
"""

from __future__ import annotations

import hashlib
import json
import os
import platform
from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from importlib import metadata
from pathlib import Path
from typing import Any

from magtiles_seg.errors import ModelError
from magtiles_seg.model.card import ModelCard

SCHEMA_VERSION = 1

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

    @classmethod
    def from_json(cls, text: str, *, where: str = "the manifest") -> Manifest:
        """Return the manifest that `to_json` wrote.

        Args:
            text: The JSON text.
            where: What to call it in a message.

        Raises:
            ModelError: It is not a manifest, or one of another schema version.
        """
        try:
            values = json.loads(text)
            version = values.get("schema_version")
        except (ValueError, AttributeError) as error:
            raise ModelError(
                f"{where} is not a manifest: {error}; export the model again"
            ) from None
        if version != SCHEMA_VERSION:
            raise ModelError(
                f"{where} has schema version {version!r}, expected {SCHEMA_VERSION}: "
                "export the model again with this version of magtiles-seg"
            )
        try:
            card = ModelCard.from_json(json.dumps(values["card"]))
            manifest = cls(**{**values, "card": card})
        except (KeyError, TypeError) as error:
            raise ModelError(f"{where} is damaged: {error}; export the model again") from error
        manifest._check(where)
        return manifest

    def _check(self, where: str) -> None:
        for name in ("environment", "parity", "profile", "recipe"):
            if not isinstance(getattr(self, name), dict):
                raise ModelError(
                    f"{where} is damaged: {name} must be a mapping, got {getattr(self, name)!r}; "
                    "export the model again"
                )

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
            text = path.read_text(encoding="utf-8")
        except (OSError, UnicodeDecodeError) as error:
            raise ModelError(
                f"{os.fspath(artefact)} has no readable manifest (expected {path}): {error}; "
                "copy both files, or export the model again"
            ) from error
        return cls.from_json(text, where=str(path))

    def write(self, artefact: str | os.PathLike[str]) -> Path:
        """Write the manifest beside an artefact, at once or not at all, and return its path."""
        path = manifest_path(artefact)
        part = path.with_name(f".{path.name}.{os.getpid()}.part")
        try:
            part.write_text(self.to_json(), encoding="utf-8")
            part.replace(path)
        finally:
            part.unlink(missing_ok=True)
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


def sha256_of(data: bytes) -> str:
    """Return the SHA-256 of an artefact's bytes, in hexadecimal digits."""
    return hashlib.sha256(data).hexdigest()


def _fits(wanted: str | list[str], got: str | list[str] | None) -> bool:
    if isinstance(wanted, list) and isinstance(got, str):
        return got in wanted
    return wanted == got


def _words(value: str | list[str]) -> str:
    return value if isinstance(value, str) else " or ".join(value)
