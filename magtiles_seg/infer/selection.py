"""Which backend runs a model on this machine: what `magtiles-seg bench --select` measured.

The choice stands in one JSON file of the user's, under the model's SHA-256 and the machine's name:
a choice made for another model or another machine does not apply. It applies only where the caller
leaves backend, device, threads and precision open. A choice that no longer holds is not used, and
a `SelectionWarning` says why and how to choose again: segmenting goes on with the defaults.
"""

from __future__ import annotations

import os
import platform
import re
import reprlib
import warnings
from contextlib import suppress
from dataclasses import asdict, dataclass, fields
from importlib import metadata
from pathlib import Path
from typing import TYPE_CHECKING, Any

from magtiles_seg.errors import BackendError, ConfigError, ModelError
from magtiles_seg.files import write_json
from magtiles_seg.infer.backends import BACKENDS, open_backend
from magtiles_seg.infer.backends.base import available_cores, file_sha256
from magtiles_seg.jsontext import read_json

if TYPE_CHECKING:
    from magtiles_seg.infer.backends import Backend

_AGAIN = "choose again with `magtiles-seg bench --select`"
_CPUINFO = Path("/proc/cpuinfo")
_GPUS = Path("/proc/driver/nvidia/gpus")
_DISTRIBUTIONS = {
    "eager": ("torch",),
    "onnxruntime": ("onnxruntime", "onnxruntime-gpu"),
    "tensorrt": ("tensorrt", "tensorrt-cu12", "tensorrt-cu13", "tensorrt-rtx"),
}


class SelectionWarning(UserWarning):
    """A configuration that was selected for this machine is not used; the message says why."""


@dataclass(frozen=True, kw_only=True)
class Selection:
    """A configuration that was the fastest to pass parity.

    Attributes:
        backend: A name from `infer.backends.BACKENDS`.
        device: As `Segmenter` takes it.
        threads: Of one inference on a CPU.
        precision: As `Segmenter` takes it; None: as the file has it.
        runtime: Distribution and version that was measured, such as `"openvino 2026.4.1"`.
        file: A model file that runs instead of the one asked for; None: that one itself.
        file_sha256: Of `file`; empty without one.
        measured: The figures that it was chosen by, for people.
    """

    backend: str
    device: str
    threads: int
    precision: str | None
    runtime: str
    file: str | None = None
    file_sha256: str = ""
    measured: str = ""


def selection_path() -> Path:
    """Return the file that holds the choices: `$MAGTILES_CONFIG`, or in the user's config folder.

    That folder is `$XDG_CONFIG_HOME`, by default `~/.config`.
    """
    if named := os.environ.get("MAGTILES_CONFIG"):
        return Path(named)
    home = os.environ.get("XDG_CONFIG_HOME") or os.path.expanduser("~/.config")  # noqa: PTH111
    # (which, other than pathlib's, is content where a container's user has no home)
    return Path(home) / "magtiles-seg" / "backends.json"


def machine() -> str:
    """Return what this machine is called in the file: its CPU, cores, and NVIDIA GPUs if any."""
    parts = [f"{_cpu_name()}, {available_cores()} cores"]
    for path in sorted(_GPUS.glob("*/information")):
        if found := re.search(r"^Model:\s*(.+)$", path.read_text(), re.MULTILINE):
            parts.append(found[1].strip())
    return "; ".join(parts)


def runtime_of(backend: str) -> str:
    """Return the installed distributions under a backend, with versions; empty if none is."""
    found = []
    for name in _DISTRIBUTIONS.get(backend, (backend,)):
        with suppress(metadata.PackageNotFoundError):
            found.append(f"{name} {metadata.version(name)}")
    return ", ".join(found)


def save_selection(model_sha256: str, selection: Selection) -> Path:
    """Remember a configuration for a model on this machine; others in the file stay.

    Args:
        model_sha256: Of the model file.
        selection: What is to run it.

    Returns:
        The file that was written.

    Raises:
        OSError: It cannot be written.
    """
    path = selection_path()
    try:
        choices = _read(path)
    except (OSError, ValueError):
        choices = {}  # Missing, or damaged as each load has said: written anew.
    machines = choices.get(model_sha256)
    choices[model_sha256] = {
        **(machines if isinstance(machines, dict) else {}),
        machine(): asdict(selection),
    }
    write_json(path, choices)
    return path


def open_selected(model: Path) -> Backend | None:
    """Load a model as selected for this machine; None where nothing is selected, or it is stale.

    Args:
        model: The model file.

    Raises:
        FileNotFoundError, ModelError: The model file cannot be read.

    Warns:
        SelectionWarning: Something is selected, and cannot be used.
    """
    path = selection_path()
    if not os.path.lexists(path):
        return None
    sha256 = file_sha256(model)
    try:
        entry = _read(path).get(sha256, {}).get(machine())
        return None if entry is None else _open(model, _parse(entry))
    except (OSError, ValueError, TypeError, AttributeError, ModelError, BackendError) as error:
        warnings.warn(
            f"{path}: the backend selected for {model.name} is not used, the default runs: "
            f"{error}; {_AGAIN}, or delete that file",
            SelectionWarning,
            stacklevel=4,
        )
        return None


def _open(model: Path, selection: Selection) -> Backend:
    if selection.runtime != runtime_of(selection.backend):
        raise ConfigError(
            f"it was measured with {selection.runtime}, "
            f"installed is {runtime_of(selection.backend) or 'none'}"
        )
    if selection.file is not None and file_sha256(Path(selection.file)) != selection.file_sha256:
        raise ConfigError(f"{selection.file} has changed since")
    return open_backend(
        Path(selection.file or model),
        device=selection.device,
        backend=selection.backend,
        threads=selection.threads,
        precision=selection.precision,
    )


def _read(path: Path) -> dict[str, Any]:
    choices = read_json(path)
    if not isinstance(choices, dict):
        raise ConfigError("the file is damaged: expected one JSON object")
    return choices


def _parse(entry: Any) -> Selection:  # noqa: ANN401  (from a file: of any type)
    names = {field.name for field in fields(Selection)}
    if not isinstance(entry, dict) or set(entry) != names:
        raise ConfigError(
            f"the file is damaged: expected the fields {sorted(names)}, got {reprlib.repr(entry)}"
        )
    texts = [entry[name] for name in names - {"threads", "precision", "file"}]
    maybe = [entry[name] for name in ("precision", "file") if entry[name] is not None]
    if not all(isinstance(value, str) for value in (*texts, *maybe)):
        raise ConfigError(f"the file is damaged: expected texts, got {reprlib.repr(entry)}")
    if entry["backend"] not in BACKENDS:
        raise ConfigError(f"the file is damaged: unknown backend {entry['backend']!r}")
    return Selection(**entry)


def _cpu_name() -> str:
    try:
        found = re.search(r"^model name\s*:\s*(.+)$", _CPUINFO.read_text(), re.MULTILINE)
    except OSError:
        found = None
    return found[1].strip() if found else platform.processor() or platform.machine()
