"""`Segmenter`, which turns pictures into `Segmentation`s, and `segment`, which needs no set-up."""

from __future__ import annotations

import logging
import os
import threading
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeAlias

import numpy as np
from numpy.typing import NDArray

from magtiles_seg.decision import scale
from magtiles_seg.errors import ConfigError, ImageError, ModelError, StaleEngineError
from magtiles_seg.image import ImageSource, pad_to_min_side, read_image
from magtiles_seg.infer.backends import open_backend
from magtiles_seg.infer.backends.base import FlippedBackend
from magtiles_seg.infer.screen import Screen, ScreenedBackend
from magtiles_seg.infer.selection import open_selected, selection_path
from magtiles_seg.model.bundled import model_path, portable_model
from magtiles_seg.result import Decision, Segmentation
from magtiles_seg.tile import TileResult

if TYPE_CHECKING:
    from types import TracebackType

    from magtiles_seg.infer.backends.base import Backend, BackendSpec
    from magtiles_seg.infer.backends.ortgpu import Profile

_log = logging.getLogger(__name__)
_BATCH_PX = 2_000_000  # About 30 tiles: more at once gains no speed on a CPU and costs memory.


@dataclass(frozen=True, eq=False)
class Picture:
    """One picture.

    Attributes:
        pixels: (H, W) uint8, as read.
        padded: The same, mirrored at bottom and right where a side is shorter than a model takes.
        source: Path of the file; None: it came from elsewhere.
    """

    pixels: NDArray[np.uint8]
    padded: NDArray[np.uint8]
    source: str | None

    @classmethod
    def read(cls, image: ImageSource) -> Picture:
        """Read a picture.

        Raises:
            FileNotFoundError: There is no such file.
            ImageError: It is not a picture that can be segmented.
            TypeError: It is of another Python type.
        """
        pixels = read_image(image)
        source = os.fspath(image) if isinstance(image, str | os.PathLike) else None
        return cls(pixels, pad_to_min_side(pixels), source)


def several_of(images: Iterable[ImageSource]) -> list[Picture]:
    """Read the pictures of a call that takes several.

    Raises:
        FileNotFoundError: There is no such file.
        ImageError: One is not a picture that can be segmented, or the array is a single picture.
        TypeError: One is of another Python type, or `images` is a single picture.
    """
    if isinstance(images, str | bytes | os.PathLike):
        raise TypeError(
            f"expected several pictures, got one ({type(images).__name__}); put it into a list, or "
            "call the Segmenter with it"
        )
    if isinstance(images, np.ndarray) and (
        images.ndim == 2 or (images.ndim == 3 and images.shape[2] in (1, 3, 4))
    ):
        raise ImageError(
            f"expected several pictures, got one array of shape {images.shape}, whose rows are no "
            "pictures; put it into a list, or call the Segmenter with it",
            reason="unsupported",
        )
    return [Picture.read(image) for image in images]


def groups(pictures: Sequence[Picture]) -> Iterator[list[int]]:
    """Yield indices of pictures of one size, as many at a time as one inference should take."""
    by_size: dict[tuple[int, ...], list[int]] = {}
    for index, picture in enumerate(pictures):
        by_size.setdefault(picture.padded.shape, []).append(index)
    for (height, width), indices in by_size.items():
        step = max(1, _BATCH_PX // (height * width))
        for start in range(0, len(indices), step):
            yield indices[start : start + step]


Rebuild: TypeAlias = Callable[[Path, "str | None"], object]
"""Makes an engine anew, given its path and the device that was asked for."""


class Segmenter:
    """A loaded model and its thresholds. One instance may be called from many threads.

    A process forked from this one loads the model again at its first use; so does what a Segmenter
    is pickled, copied or sent to. A GPU and OpenVINO do not survive a fork, which is an error
    there: start such workers by multiprocessing's "spawn" or "forkserver".

    Example:
        >>> with Segmenter(threshold=0.4) as segmenter:
        ...     results = segmenter.batch(["a.png", "b.png"])
    """

    def __init__(
        self,
        model: str | os.PathLike[str] | None = None,
        *,
        device: str | None = None,
        backend: str | None = None,
        precision: str | None = None,
        threshold: float | None = None,
        min_area_px: int | None = None,
        reject_score: float | None = None,
        review_score: float | None = None,
        mm_per_px: float | None = None,
        threads: int | None = None,
        flips: bool = False,
        screen: str | os.PathLike[str] | None = None,
        rebuild: Rebuild | None = None,
        profile: Profile | None = None,
    ) -> None:
        """Load a model.

        Where device, backend, precision and threads are all left open, the configuration runs that
        `magtiles-seg bench --select` found for this model on this machine, and `spec.selection`
        says so; without one, onnxruntime on the CPU.

        Args:
            model: An `.onnx` file, an `.engine` or a `.safetensors` checkpoint, or a bundled model
                by name: `"lite0"`, `"small"` or `"nano"`; None: `"lite0"`.
            device: `"cpu"`, `"cuda"`, `"cuda:N"`, or `"tensorrt"` for onnxruntime's TensorRT
                execution provider; None: as selected, or the CPU.
            backend: `"onnxruntime"`, `"openvino"` or `"eager"`; None: as selected, or by the file's
                suffix.
            precision: `"fp32"` or `"bf16"`, of OpenVINO's arithmetic; None: as selected, or fp32.
            threshold: A pixel of at least this probability is defect; None: as the model says.
            min_area_px: Smaller connected regions are dropped; None: as the model says.
            reject_score: A picture of at least this score is rejected; None: as the model says.
            review_score: From this score on a picture wants review; None: as the model says.
            mm_per_px: Scale of the pictures, for measures in mm; None: unknown.
            threads: Of one inference on a CPU; None: as selected, or all physical cores that the
                process may use.
            flips: Whether each picture's probability is the mean over its four mirrored views:
                steadier, at four times the cost.
            screen: A file of `magtiles-seg screen`: a small network that looks at everything, so
                that the model needs to look only where it says so (`infer.screen`); on a CPU. None:
                the model sees all.
            rebuild: Builds an engine that does not fit this machine again, which is logged as a
                warning: `magtiles_seg.export.rebuild.rebuild_engine`. None: that is an error.
            profile: Of device `"tensorrt"`: least, tuned and greatest (N, H, W) of the pictures,
                for which it builds once, such as a recipe's `shapes`; None: it builds for what it
                meets, and again at each size beyond.

        Raises:
            FileNotFoundError: There is no such model file, or screen.
            ModelError: The file is damaged, not a model of this package, or an engine that was
                not built for this machine; the screen is damaged, or none.
            ParityError: The engine that was built again answers differently from its ONNX file.
            ConfigError: A value is of no sense.
            BackendUnavailableError: The runtime, or its support for the device, is not installed.

        Warns:
            SelectionWarning: What was selected for this machine cannot be used; the default runs.
            ScreenWarning: The screen was made for another model.
        """
        for word, given in (("device", device), ("backend", backend), ("precision", precision)):
            if given is not None and not isinstance(given, str):  # 0 would quietly mean the CPU
                raise ConfigError(f"{word} is {given!r}; expected a name, such as 'cpu', or None")
        if not isinstance(flips, bool):
            raise ConfigError(f"flips is {flips!r}; expected True or False")
        path = model_path(model)
        asked: dict[str, Any] = {
            "device": device,
            "backend": backend,
            "precision": precision,
            "threads": threads,
            "profile": profile,
        }
        self._origin = _Origin(
            None if model is None else portable_model(model),
            asked,
            flips,
            rebuild,
            None if screen is None else Path(screen).absolute(),
        )
        self._mm_per_px = scale(mm_per_px)
        self._backend, self._spec = self._origin.open(path)
        self._decision = self.spec.card.decision.overridden(
            threshold=threshold,
            min_area_px=min_area_px,
            reject_score=reject_score,
            review_score=review_score,
        )
        self._lineage = _lineage(self.spec)

    @property
    def backend(self) -> Backend:
        """The loaded model, which answers batches of bytes without any decision."""
        return self._backend

    @property
    def spec(self) -> BackendSpec:
        """What runs, on what, and the model's card."""
        return self._spec

    @property
    def lineage(self) -> dict[str, str]:
        """What an answer says of the model: name, sha256 and so on."""
        return dict(self._lineage)

    @property
    def passed_share(self) -> float | None:
        """Share of what was seen so far that the screen passed on, in [0, 1]; None without one."""
        backend = self._backend
        return backend.passed_share if isinstance(backend, ScreenedBackend) else None

    @property
    def decision(self) -> Decision:
        """The thresholds in use."""
        return self._decision

    def __call__(self, image: ImageSource) -> Segmentation:
        """Segment one picture.

        Args:
            image: Path, bytes of an image file, PIL image, or uint8 or uint16 array (H, W[, 3]).

        Raises:
            FileNotFoundError: There is no such file.
            ImageError: It is not a picture that can be segmented.
            TypeError: It is of another Python type.
            InferenceError: The Segmenter is closed, or the runtime failed.
        """
        return self._answer(image, self._decision, self._mm_per_px)

    def batch(self, images: Iterable[ImageSource]) -> list[Segmentation]:
        """Segment several pictures, those of equal size together.

        Args:
            images: As for a call, of any sizes; one array may hold a stack (N, H, W) or
                (N, H, W, 3), but not a single picture.

        Returns:
            One result a picture, in the order given.

        Raises:
            FileNotFoundError: There is no such file.
            ImageError: One is not a picture that can be segmented.
            TypeError: One is of another Python type.
            InferenceError: The Segmenter is closed, or the runtime failed.
        """
        pictures = several_of(images)
        results: dict[int, Segmentation] = {}
        for indices in groups(pictures):
            stack = np.stack([pictures[index].padded for index in indices])
            probability, classes = self._backend.infer(stack)
            for row, index in enumerate(indices):
                results[index] = self._result(
                    pictures[index], probability[row], classes[row], self._decision, self._mm_per_px
                )
        return [results[index] for index in range(len(pictures))]

    def tile(self, images: Iterable[ImageSource], *, name: str | None = None) -> TileResult:
        """Segment several exposures of one tile, and give one verdict.

        Args:
            images: As for a call, of any sizes; at least one.
            name: What the tile is called.

        Raises:
            FileNotFoundError: There is no such file.
            ImageError: One is not a picture that can be segmented.
            TypeError: One is of another Python type.
            InferenceError: There is no picture, the Segmenter is closed, or the runtime failed.
        """
        return TileResult(exposures=tuple(self.batch(images)), name=name)

    def close(self) -> None:
        """Free the model. Later calls raise InferenceError; closing twice is harmless."""
        self._backend.close()

    def __getstate__(self) -> dict[str, Any]:
        """Return what makes this Segmenter again elsewhere: everything but the loaded model."""
        return {name: value for name, value in self.__dict__.items() if name != "_backend"}

    def __setstate__(self, state: dict[str, Any]) -> None:
        """Load the model again.

        Raises:
            ModelError: The model file, or the screen, is another one than it was, or damaged.
            FileNotFoundError, BackendUnavailableError: It or its runtime is not here.
        """
        self.__dict__.update(state)
        known = self._spec
        self._backend, self._spec = self._origin.open(model_path(self._origin.model))
        for path, found, wanted in (
            (self._spec.path, self._spec.sha256, known.sha256),
            (self._spec.screen, self._spec.screen_sha256, known.screen_sha256),
        ):
            if found != wanted:
                self.close()
                raise ModelError(
                    f"{path} is another file here (SHA-256 {found[:12]}…) than the one that the "
                    f"Segmenter was made with ({wanted[:12]}…): copy that file here, or make a "
                    "new Segmenter"
                )

    def __enter__(self) -> Segmenter:
        """Return this Segmenter."""
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        """Free the model."""
        self.close()

    def _answer(
        self, image: ImageSource, decision: Decision, mm_per_px: float | None
    ) -> Segmentation:
        picture = Picture.read(image)
        probability, classes = self._backend.infer(picture.padded[None])
        return self._result(picture, probability[0], classes[0], decision, mm_per_px)

    def _result(
        self,
        picture: Picture,
        probability: NDArray[np.float32],
        classes: NDArray[np.uint8],
        decision: Decision,
        mm_per_px: float | None,
    ) -> Segmentation:
        height, width = picture.pixels.shape
        return Segmentation.from_prediction(
            picture.pixels,
            probability[:height, :width],
            classes[:height, :width],
            decision=decision,
            labels=self.spec.card.labels,
            mm_per_px=mm_per_px,
            source=picture.source,
            model=self._lineage,
        )


def segment(
    image: ImageSource,
    *,
    threshold: float | None = None,
    min_area_px: int | None = None,
    reject_score: float | None = None,
    review_score: float | None = None,
    mm_per_px: float | None = None,
) -> Segmentation:
    """Segment one picture with the bundled model, which is loaded once and kept.

    Args:
        image: Path, bytes of an image file, PIL image, or uint8 or uint16 array (H, W[, 3]).
        threshold: A pixel of at least this probability is defect; None: as the model says.
        min_area_px: Smaller connected regions are dropped; None: as the model says.
        reject_score: A picture of at least this score is rejected; None: as the model says.
        review_score: From this score on a picture wants review; None: as the model says.
        mm_per_px: Scale of the picture, for measures in mm; None: unknown.

    Raises:
        FileNotFoundError: There is no such file.
        ImageError: It is not a picture that can be segmented.
        TypeError: It is of another Python type.
        ConfigError: A threshold is out of its range.

    Example:
        >>> result = magtiles_seg.segment("tile.png")
        >>> result.verdict
        'accept'
    """
    segmenter = _default_segmenter()
    decision = segmenter.decision.overridden(
        threshold=threshold,
        min_area_px=min_area_px,
        reject_score=reject_score,
        review_score=review_score,
    )
    return segmenter._answer(image, decision, mm_per_px)


@dataclass(frozen=True)
class _Origin:
    """What a Segmenter was asked for; `model` as `model_path` takes it in any folder."""

    model: str | Path | None
    asked: dict[str, Any]
    flips: bool
    rebuild: Rebuild | None
    screen: Path | None

    def open(self, path: Path) -> tuple[Backend, BackendSpec]:
        """Load the model, and its screen."""
        backend, spec = _open(path, self.asked, self.rebuild)
        if self.flips:
            backend = FlippedBackend(backend)
        if self.screen is None:
            return backend, spec
        screened = ScreenedBackend(backend, Screen(self.screen, threads=spec.threads))
        return screened, replace(screened.spec, selection=spec.selection)


def _open(
    path: Path, asked: dict[str, Any], rebuild: Rebuild | None
) -> tuple[Backend, BackendSpec]:
    """Load a model as asked for; where nothing is, as selected for this machine."""
    if all(value is None for value in asked.values()) and (chosen := open_selected(path)):
        return chosen, replace(chosen.spec, selection=str(selection_path()))
    try:
        backend = open_backend(path, **asked)
    except StaleEngineError as error:
        if rebuild is None:
            raise
        _log.warning("building again: %s", error)
        rebuild(path, asked["device"])
        backend = open_backend(path, **asked)
    return backend, backend.spec


def _lineage(spec: BackendSpec) -> dict[str, str]:
    return {
        "name": spec.card.name,
        "architecture": spec.card.architecture,
        "sha256": spec.sha256,
        "weights_sha256": spec.card.weights_sha256,
        "git_revision": spec.card.git_revision,
        "backend": spec.name,
        "device": spec.device,
        "precision": spec.precision,
        **({"screen_sha256": spec.screen_sha256} if spec.screen else {}),
    }


_default: Segmenter | None = None
_default_lock = threading.Lock()


def _default_segmenter() -> Segmenter:
    """Return this process's Segmenter of the bundled model."""
    global _default
    with _default_lock:
        if _default is None:
            _default = Segmenter()
        return _default


def _renew_lock() -> None:
    """Replace the lock in a forked child: whichever of the parent's threads had it is not here."""
    global _default_lock
    _default_lock = threading.Lock()


if hasattr(os, "register_at_fork"):  # Windows has no fork
    os.register_at_fork(after_in_child=_renew_lock)
