"""Coarse to fine: a small network looks at everything, the model only where that says so.

A screen sees a picture at half its size and answers for cells of 32 x 32 px. The model runs on
windows around the cells that it passes on, each with as much of the picture around as the model
sees: there the answer is the one that the model gives on the whole picture. Elsewhere the
probability is 0.
"""

from __future__ import annotations

import threading
import warnings
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

import cv2
import numpy as np
from numpy.typing import NDArray

from magtiles_seg.errors import ConfigError, InferenceError, ModelError
from magtiles_seg.files import sha256_of
from magtiles_seg.infer.backends.base import (
    Answer,
    Backend,
    BackendSpec,
    check_images,
    check_threads,
)
from magtiles_seg.infer.backends.held import Held
from magtiles_seg.infer.backends.onnxfile import read_again, read_onnx
from magtiles_seg.infer.backends.ort import open_on_cpu
from magtiles_seg.infer.backends.vendor import first_line
from magtiles_seg.model.card import CARD_KEY, ModelCard
from magtiles_seg.model.cells import halved

if TYPE_CHECKING:
    import onnxruntime

_NEIGHBOURS = np.ones((3, 3), np.uint8)
_TENSORS = [("image", "tensor(uint8)", 3), ("cells", "tensor(float)", 3)]


class ScreenWarning(UserWarning):
    """A screen was made for another model: how much it keeps of what this one finds is unknown."""


class Screen:
    """A loaded screen. Safe to call from many threads at once.

    Attributes:
        path: The file.
        sha256: Of the file.
        card: What the file says about itself; its stride is the side of a cell.
    """

    def __init__(self, path: Path, *, threads: int | None = None) -> None:
        """Load a screen.

        Args:
            path: A file that `magtiles-seg screen` wrote.
            threads: Of one inference; None: all physical cores that the process may use.

        Raises:
            FileNotFoundError: There is no such file.
            ModelError: The file is damaged, or is no screen.
        """
        threads = check_threads(threads)
        data = _read(path)
        self.path, self.sha256 = path, sha256_of(data)
        opened = partial(open_on_cpu, path=path, threads=threads)
        where = path.absolute()
        self._session: Held[onnxruntime.InferenceSession] = Held(
            lambda: opened(data),
            str(path),
            again=lambda: opened(read_again(where, self.sha256)),
        )
        self.card = _read_card(self._session.get(), path)

    def cells(self, image: NDArray[np.uint8]) -> NDArray[np.float32]:
        """Return how likely each cell of a picture holds something.

        Args:
            image: (H, W) uint8.

        Returns:
            (ceil(H / 32), ceil(W / 32)) float32 in [0, 1].

        Raises:
            InferenceError: The screen is closed, or onnxruntime failed.
        """
        small = halved(image, self.card.stride)
        session = self._session.get()
        try:
            (cells,) = session.run(["cells"], {"image": small[None]})
        except Exception as error:
            raise InferenceError(
                f"the screen {self.path} failed on a picture {image.shape}: {first_line(error)}"
            ) from error
        found: NDArray[np.float32] = cells[0]
        return found

    def passes(self, image: NDArray[np.uint8]) -> NDArray[np.bool_]:
        """Return where the model must look: cells that hold something, and their neighbours.

        Args:
            image: (H, W) uint8.

        Returns:
            (ceil(H / 32), ceil(W / 32)) bool.

        Raises:
            InferenceError: The screen is closed, or onnxruntime failed.
        """
        found = (self.cells(image) >= self.card.decision.threshold).view(np.uint8)
        return (
            cv2.dilate(found, _NEIGHBOURS).view(np.bool_) if found.any() else found.view(np.bool_)
        )

    def close(self) -> None:
        """Free the session once the calls in progress have ended."""
        self._session.close()


def _read(path: Path) -> bytes:
    try:
        return read_onnx(path)
    except FileNotFoundError:
        raise FileNotFoundError(f"no screen at {path}; `magtiles-seg screen` writes one") from None


def _read_card(session: onnxruntime.InferenceSession, path: Path) -> ModelCard:
    text = session.get_modelmeta().custom_metadata_map.get(CARD_KEY)
    tensors = (*session.get_inputs(), *session.get_outputs())
    found = [(entry.name, entry.type, len(entry.shape)) for entry in tensors]
    if text is None or found != _TENSORS:
        raise ModelError(
            f"{path} is no screen: expected {_TENSORS} and the metadata {CARD_KEY!r}, got {found}; "
            "make one with `magtiles-seg screen`"
        )
    return ModelCard.from_json(text)


@dataclass(frozen=True)
class Window:
    """A rectangle of cells; ends are exclusive."""

    top: int
    left: int
    bottom: int
    right: int

    def joined(self, other: Window) -> Window:
        """Return the smallest window around both."""
        return Window(
            min(self.top, other.top),
            min(self.left, other.left),
            max(self.bottom, other.bottom),
            max(self.right, other.right),
        )

    def grown(self, cells: int, rows: int, columns: int) -> Window:
        """Return the window with `cells` more on each side, inside a picture of that many cells."""
        return Window(
            max(0, self.top - cells),
            max(0, self.left - cells),
            min(rows, self.bottom + cells),
            min(columns, self.right + cells),
        )

    @property
    def area(self) -> int:
        """How many cells it has."""
        return (self.bottom - self.top) * (self.right - self.left)


def windows(passed: NDArray[np.bool_], halo: int) -> list[Window]:
    """Return windows that hold all passed cells, joined where one costs less than two.

    Args:
        passed: (h, w) bool.
        halo: Cells around a window that its inference needs besides.

    Returns:
        Windows without halo; none where nothing was passed.
    """
    count, _, found, _ = cv2.connectedComponentsWithStats(passed.view(np.uint8))
    joined: list[Window] = []
    for left, top, width, height, _ in found[1:count].tolist():
        window = Window(top, left, top + height, left + width)
        while (other := _cheaper(joined, window, halo, passed.shape)) is not None:
            joined.remove(other)
            window = window.joined(other)
        joined.append(window)
    return joined


def _cheaper(
    joined: list[Window], window: Window, halo: int, shape: tuple[int, ...]
) -> Window | None:
    """Return a window that is better inferred together with another; None: there is none."""
    rows, columns = shape
    alone = window.grown(halo, rows, columns).area
    for other in joined:
        apart = alone + other.grown(halo, rows, columns).area
        if window.joined(other).grown(halo, rows, columns).area <= apart:
            return other
    return None


class ScreenedBackend:
    """A backend behind a screen.

    Attributes:
        screen: Looks at everything first.
    """

    def __init__(self, inner: Backend, screen: Screen) -> None:
        """Put a screen before a backend; both close with this one.

        Raises:
            ConfigError: The backend runs on a GPU, or the screen is of other classes.
            ModelError: The model does not say how far it sees.

        Warns:
            ScreenWarning: The screen was made for a model of other weights.
        """
        spec = inner.spec
        if spec.device != "cpu":
            raise ConfigError(
                f"a screen is for a model on the CPU, this one runs on {spec.device}: leave the "
                "screen out, or set device='cpu'"
            )
        if screen.card.labels != spec.card.labels:
            raise ConfigError(
                f"the screen {screen.path} is for the classes {', '.join(screen.card.labels)}, the "
                f"model {spec.card.name!r} has {', '.join(spec.card.labels)}: make a screen for "
                "this model with `magtiles-seg screen`"
            )
        if spec.card.receptive_field_px < 1:
            raise ModelError(
                f"model {spec.card.name!r} does not say how far it sees: export the checkpoint "
                "again"
            )
        if not _made_for(screen.card, spec):
            warnings.warn(
                f"the screen {screen.path} was made for another model than {spec.card.name!r}: "
                "what it keeps of this one's findings is unknown; make one for this model with "
                "`magtiles-seg screen`, or see what it costs by `magtiles-seg evaluate --screen`",
                ScreenWarning,
                stacklevel=4,
            )
        self.screen = screen
        self._inner = inner
        self._cell_px = screen.card.stride
        self._halo = -(-(spec.card.receptive_field_px // 2) // self._cell_px)
        self.spec = _screened(spec, screen)
        self._grid_px = self.spec.card.stride
        self._lock = threading.Lock()
        self._seen = self._passed = 0

    @property
    def passed_share(self) -> float:
        """Share of all cells so far that were passed on to the model, in [0, 1]."""
        with self._lock:
            return self._passed / max(1, self._seen)

    def infer(self, images: NDArray[np.uint8]) -> Answer:
        """Answer as every `Backend` where the screen passes a cell on, else by 0 and class 1."""
        probability, classes, _ = self.infer_and_tell(images)
        return probability, classes

    def infer_and_tell(
        self, images: NDArray[np.uint8]
    ) -> tuple[NDArray[np.float32], NDArray[np.uint8], list[NDArray[np.bool_]]]:
        """Answer as `infer`, and tell which cells of each picture were passed on.

        Args:
            images: (N, H, W) uint8, N >= 1.

        Returns:
            The two of `infer`, and (ceil(H / 32), ceil(W / 32)) bool for each picture.

        Raises:
            InferenceError: As `infer`.
        """
        check_images(images)
        probability = np.zeros(images.shape, np.float32)
        classes = np.ones(images.shape, np.uint8)
        passed = [self.screen.passes(image) for image in images]
        with self._lock:
            self._seen += sum(cells.size for cells in passed)
            self._passed += sum(int(np.count_nonzero(cells)) for cells in passed)
        for index, cells in enumerate(passed):
            if cells.any():
                self._look(images[index], cells, probability[index], classes[index])
        return probability, classes, passed

    def _look(
        self,
        image: NDArray[np.uint8],
        cells: NDArray[np.bool_],
        probability: NDArray[np.float32],
        classes: NDArray[np.uint8],
    ) -> None:
        """Write the model's answer for the passed cells into those of the picture."""
        cell_px = self._cell_px
        for window in windows(cells, self._halo):
            shown = self._shown(window.grown(self._halo, *cells.shape), image.shape)
            seen, kinds = self._inner.infer(np.ascontiguousarray(image[shown])[None])
            inside = self._pixels(window)
            own = tuple(
                slice(part.start - whole.start, None)
                for part, whole in zip(inside, shown, strict=True)
            )
            part = probability[inside]
            rows, columns = part.shape
            wanted = cells[window.top : window.bottom, window.left : window.right]
            mask = wanted.repeat(cell_px, 0).repeat(cell_px, 1)[:rows, :columns]
            np.copyto(part, seen[0][own][:rows, :columns], where=mask)
            np.copyto(classes[inside], kinds[0][own][:rows, :columns], where=mask)

    def _pixels(self, window: Window) -> tuple[slice, slice]:
        """Return a window's rows and columns in px; a picture's last cells may be cut."""
        cell_px = self._cell_px
        return (
            slice(window.top * cell_px, window.bottom * cell_px),
            slice(window.left * cell_px, window.right * cell_px),
        )

    def _shown(self, window: Window, shape: tuple[int, ...]) -> tuple[slice, slice]:
        """Return a window in px, grown to the model's strides, counted from both ends.

        A model that is shown mirrored views counts them from the picture's end as well.
        """
        rows, columns = (
            slice(
                part.start // self._grid_px * self._grid_px,
                side - max(0, side - part.stop) // self._grid_px * self._grid_px,
            )
            for side, part in zip(shape, self._pixels(window), strict=True)
        )
        return rows, columns

    def close(self) -> None:
        """Close the model and the screen."""
        self._inner.close()
        self.screen.close()


def _made_for(screen: ModelCard, spec: BackendSpec) -> bool:
    """Return whether a screen was made for a model: a file of the same weights is the same one."""
    wanted = {screen.training.get(key) for key in ("model_sha256", "model_weights_sha256")}
    wanted -= {None, ""}
    return not wanted or bool(wanted & {spec.sha256, spec.card.weights_sha256})


def _screened(spec: BackendSpec, screen: Screen) -> BackendSpec:
    """Return what a model and its screen are together: a pixel's cell and its neighbours decide."""
    card = spec.card
    cell_px = screen.card.stride
    sight = max(card.receptive_field_px, screen.card.receptive_field_px + 4 * cell_px)
    together = replace(card, stride=max(card.stride, cell_px), receptive_field_px=sight)
    return replace(spec, card=together, screen=screen.path, screen_sha256=screen.sha256)
