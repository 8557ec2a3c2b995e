"""`Held`: what a runtime has loaded, kept so that a fork does no harm.

A forked child has the parent's memory and none of its threads. A runtime's object that was copied
so must not be used there, and not be freed either: both wait for threads that do not exist. The
child therefore leaves the parent's object alone for good and loads one of its own at first use.
"""

from __future__ import annotations

import ctypes
import os
import sys
import threading
import weakref
from collections.abc import Callable
from typing import Any, Generic, TypeVar

from magtiles_seg.errors import InferenceError, MagtilesError

T = TypeVar("T")

_every: weakref.WeakSet[Held[Any]] = weakref.WeakSet()


class Held(Generic[T]):
    """One loaded object of this process, safe for threads."""

    def __init__(
        self, load: Callable[[], T], name: str, *, again: Callable[[], T] | None = None
    ) -> None:
        """Load.

        Args:
            load: Returns the object; what it raises is passed on.
            name: What to call the model in a message.
            again: Returns the object in a forked child; None: `load` does.
        """
        self._again, self._name = again or load, name
        self._lock = threading.Lock()
        self._closed = False
        self._value: T | None = load()
        _every.add(self)

    def get(self) -> T:
        """Return the object, in a forked child after loading it there.

        Raises:
            InferenceError: It was closed, or a forked child cannot load it.
        """
        value = self._value
        return self._load_again() if value is None else value

    def close(self) -> T | None:
        """Let the object go, and return it where this process has one that is to be freed."""
        with self._lock:
            value, self._value, self._closed = self._value, None, True
            return value

    def __reduce__(self) -> str:
        """Refuse to be pickled."""
        raise TypeError(
            f"the loaded model {self._name} cannot be pickled or copied: pickle the Segmenter, "
            "which loads it again on the other side"
        )

    def _load_again(self) -> T:
        with self._lock:
            if self._closed:
                raise InferenceError(f"the model {self._name} is closed: make a new Segmenter")
            if self._value is None:
                try:
                    self._value = self._again()
                except (MagtilesError, OSError) as error:
                    raise InferenceError(
                        f"this process was forked after {self._name} was loaded, and cannot load "
                        f"it again: {error}"
                    ) from error
            return self._value

    def _forked(self) -> None:
        """Leave the parent's object and lock, whatever state they were in."""
        self._lock = threading.Lock()
        if self._value is not None:
            # One reference more than there are: not even the end of the interpreter frees it.
            ctypes.pythonapi.Py_IncRef(ctypes.py_object(self._value))
            self._value = None


def gpu_after_fork() -> Any:  # noqa: ANN401 - never returns
    """Raise what a forked child is told of a model on a GPU.

    Raises:
        InferenceError: Always.
    """
    raise InferenceError(
        "CUDA does not survive a fork: start the workers by multiprocessing's 'spawn' or "
        "'forkserver', or use the GPU in the workers only and not before the fork"
    )


def _after_fork_in_child() -> None:
    for held in list(_every):
        held._forked()
    # OpenCV's threads are not here either, and the lock it has them wait at may be held for good:
    # 0 has it work without threads, and is the one number it sets without that lock.
    if (set_threads := getattr(sys.modules.get("cv2"), "setNumThreads", None)) is not None:
        set_threads(0)


if hasattr(os, "register_at_fork"):  # Windows has no fork
    os.register_at_fork(after_in_child=_after_fork_in_child)
