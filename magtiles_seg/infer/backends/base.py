"""What every runtime under a model offers, and the checks that all of them share."""

from __future__ import annotations

import os
import stat
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol, TypeAlias

import numpy as np
import numpy.typing as npt

from magtiles_seg.decision import count
from magtiles_seg.errors import ConfigError, InferenceError, ModelError
from magtiles_seg.files import sha256_of
from magtiles_seg.image import MIN_SIDE_PX
from magtiles_seg.model.card import ModelCard

_MOST_BYTES = 2**31 - 1  # protobuf reads no more, and no engine or checkpoint of ours comes near
_MOST_THREADS = 1024

_ENGINE_AXES = (("batch", "in one run"), ("height", "px high"), ("width", "px wide"))

_TOPOLOGY = Path("/sys/devices/system/cpu")
_QUOTA = Path("/sys/fs/cgroup/cpu.max")


Answer: TypeAlias = tuple[npt.NDArray[np.float32], npt.NDArray[np.uint8]]
"""Probability and classes, as of `Backend.infer`."""


@dataclass(frozen=True, kw_only=True)
class BackendSpec:
    """What runs, and on what.

    Attributes:
        name: A name from `BACKENDS`, such as `"onnxruntime"`.
        device: `"cpu"` or `"cuda:0"`.
        provider: What really executes the graph, as the runtime itself reports it.
        threads: Of one inference on a CPU.
        path: The model file.
        sha256: Of the model file.
        card: What the model says about itself.
        precision: Of the arithmetic: `"fp32"`, `"fp16"` or `"int8"` as the file has it, `"bf16"` or
            `"int8 and bf16"` where OpenVINO was asked for bf16.
        selection: The file that chose this configuration, see `infer.selection`; empty: the caller
            or the defaults did.
        screen: The file of the screen that looks at everything first, see `infer.screen`; None:
            the model sees all.
        screen_sha256: Of that file; empty without one.
    """

    name: str
    device: str
    provider: str
    threads: int
    path: Path
    sha256: str
    card: ModelCard
    precision: str = "fp32"
    selection: str = ""
    screen: Path | None = None
    screen_sha256: str = ""


class Backend(Protocol):
    """A loaded model: grey pictures in, answer out. Safe to call from many threads at once."""

    @property
    def spec(self) -> BackendSpec:
        """What runs, and on what."""

    def infer(self, images: npt.NDArray[np.uint8]) -> Answer:
        """Return the model's answer to a batch of pictures of one size.

        Args:
            images: (N, H, W) uint8, N >= 1, H and W >= `MIN_SIDE_PX`.

        Returns:
            probability: (N, H, W) float32 in [0, 1] of "any defect"; a fresh array.
            classes: (N, H, W) uint8 in 1..K-1, each pixel's likeliest defect class; a fresh array.

        Raises:
            InferenceError: The pictures do not fit, the backend is closed, or the runtime failed.
        """

    def close(self) -> None:
        """Free the model. Closing twice is harmless."""


def check_images(images: npt.NDArray[np.uint8]) -> None:
    """Check that `images` is what `Backend.infer` takes.

    Raises:
        InferenceError: It has another dtype or number of axes, no picture, or too short a side.
    """
    shape: tuple[int, ...] = getattr(images, "shape", ())
    dtype = getattr(images, "dtype", type(images).__name__)
    if dtype != np.uint8 or len(shape) != 3 or shape[0] < 1 or min(shape[1:]) < MIN_SIDE_PX:
        raise InferenceError(
            f"the model takes uint8 pictures (N, H, W), N >= 1, sides of at least {MIN_SIDE_PX}, "
            f"got {dtype} {shape}; use Segmenter, which prepares any picture"
        )


def check_shape(shape: tuple[int, ...], least: Sequence[int], greatest: Sequence[int]) -> None:
    """Check that pictures (N, H, W) fit what an engine was built for.

    Raises:
        InferenceError: An axis is too small or too great; the message names the recipe's key.
    """
    for axis, (name, words) in enumerate(_ENGINE_AXES):
        size, low, high = shape[axis], least[axis], greatest[axis]
        if not low <= size <= high:
            key, bound = ("min", size) if size < low else ("max", size)
            key = f"{name}_{key}" + ("_px" if axis else "")
            raise InferenceError(
                f"the engine takes pictures {low} to {high} {words}, got {size}: build one "
                f"by a recipe with {key}: {bound}, or use the .onnx file"
            )


def check_answer(
    probability: npt.NDArray[np.float32], classes: npt.NDArray[np.uint8], shape: tuple[int, ...]
) -> None:
    """Check that a runtime answered what `Backend.infer` returns, for pictures of a shape.

    Raises:
        InferenceError: It answered arrays of another type or shape.
    """
    answered = (probability.dtype.name, classes.dtype.name, probability.shape, classes.shape)
    if answered != ("float32", "uint8", shape, shape):
        raise InferenceError(
            f"the model answered {probability.dtype} {probability.shape} and {classes.dtype} "
            f"{classes.shape}; expected float32 and uint8 {shape}: export the model again"
        )


def read_model(path: Path) -> bytes:
    """Return the bytes of a model file.

    Raises:
        FileNotFoundError: There is no such file.
        ModelError: It cannot be read, is no ordinary file, or is larger than any model.
    """
    try:
        found = path.stat()
        if not stat.S_ISREG(found.st_mode):
            raise ModelError(f"cannot read the model file {path}: it is no ordinary file")
        if found.st_size > _MOST_BYTES:
            raise ModelError(
                f"{path} is no model: {found.st_size} bytes, expected at most {_MOST_BYTES}"
            )
        return path.read_bytes()
    except FileNotFoundError:
        made = {".safetensors": "magtiles-seg train", ".onnx": "magtiles-seg export"}
        hint = f"; `{made[path.suffix]}` writes one" if path.suffix in made else ""
        raise FileNotFoundError(f"no model file at {path}{hint}") from None
    except OSError as error:
        raise ModelError(f"cannot read the model file {path}: {error.strerror}") from error


def file_sha256(path: Path) -> str:
    """Return the SHA-256 of a model file, as `BackendSpec.sha256` has it.

    Raises:
        FileNotFoundError: There is no such file.
        ModelError: It cannot be read.
    """
    return sha256_of(read_model(path))


def default_device(path: Path) -> str:
    """Return where a model file runs unless told: an engine on a GPU, the others on the CPU."""
    return "cuda" if path.suffix.lower() == ".engine" else "cpu"


def parse_device(device: str, accelerators: Sequence[str] = ("cuda",)) -> tuple[str, int]:
    """Return kind and number of a device: `"cpu"`, `"cuda"` (number 0) or `"cuda:1"`.

    Args:
        device: What the caller asked for.
        accelerators: The kinds beside the CPU that the runtime has.

    Raises:
        ConfigError: It is none of these.
    """
    kind, colon, number = device.partition(":")
    if device == "cpu" or (kind in accelerators and (not colon or number.isdecimal())):
        return kind, int(number or 0)
    expected = "".join(f", {kind!r}, '{kind}:N'" for kind in accelerators)
    raise ConfigError(f"unknown device {device!r}: expected 'cpu'{expected}")


def check_threads(threads: int | None) -> int:
    """Return `threads`, or `available_cores()` for None.

    Raises:
        ConfigError: It is not a whole number from 1 to 1024.
    """
    if threads is None:
        return available_cores()
    threads = count("threads", threads)
    if threads > _MOST_THREADS:
        raise ConfigError(f"threads is {threads}; expected at most {_MOST_THREADS}, or None")
    return threads


def available_cores() -> int:
    """Return how many physical cores this process may use: by affinity and quota, at least 1.

    Two hardware threads of a core share its vector units: convolutions gain nothing by the second.
    """
    if not hasattr(os, "sched_getaffinity"):
        return os.cpu_count() or 1
    cores = {_siblings(cpu) for cpu in os.sched_getaffinity(0)}
    return max(1, min(len(cores), _quota_cores()))


def _siblings(cpu: int) -> str:
    try:
        return (_TOPOLOGY / f"cpu{cpu}/topology/thread_siblings_list").read_text(encoding="utf-8")
    except OSError:
        return str(cpu)


def _quota_cores() -> int:
    """Return the container's CPU quota in whole cores, rounded down; a large number without one."""
    try:
        quota, period = _QUOTA.read_text(encoding="utf-8").split()
        return int(quota) // int(period)
    except (OSError, ValueError):
        return 1_000_000


_AXES: tuple[tuple[int, ...], ...] = ((1,), (2,), (1, 2))
"""Of (N, H, W): what is flipped in the views beside the picture itself."""


class FlippedBackend:
    """A backend that shows another one each picture as it is, upside down, mirrored, and both."""

    def __init__(self, inner: Backend) -> None:
        """Wrap a backend, which closes with this one."""
        self._inner = inner

    @property
    def spec(self) -> BackendSpec:
        """That of the wrapped backend."""
        return self._inner.spec

    def infer(self, images: npt.NDArray[np.uint8]) -> Answer:
        """Answer as every `Backend`: the four views' mean probability, the first one's classes."""
        total, kinds = self._inner.infer(images)
        for axes in _AXES:
            probability, _ = self._inner.infer(np.ascontiguousarray(np.flip(images, axes)))
            total += np.flip(probability, axes)
        return total / np.float32(1 + len(_AXES)), kinds

    def close(self) -> None:
        """Close the wrapped backend."""
        self._inner.close()
