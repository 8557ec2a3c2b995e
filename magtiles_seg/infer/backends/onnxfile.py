"""ONNX files before a runtime sees them: whole, ours, and complete in themselves.

A runtime follows an initializer that lies outside the file (`external_data`) to any path that the
file names, and one that is opened from bytes looks for it in the working directory. Files of this
package never have one; a file with one is refused here, before anything is opened.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from magtiles_seg.errors import ModelError
from magtiles_seg.files import sha256_of
from magtiles_seg.infer.backends.base import read_model
from magtiles_seg.model.card import check_seal

DECISION_OUTPUTS = ("mask", "score", "verdict")
"""What a file whose graph decides gives beside `probability` and `classes`, for programs without
this library; the library takes the first two and decides itself."""

_MESSAGES = {
    "model": {7: "graph", 20: "training", 25: "function"},
    "graph": {1: "node", 5: "tensor", 15: "sparse tensor"},
    "node": {5: "attribute"},
    "attribute": {
        5: "tensor",
        6: "graph",
        10: "tensor",
        11: "graph",
        22: "sparse tensor",
        23: "sparse tensor",
    },
    "sparse tensor": {1: "tensor", 2: "tensor"},
    "function": {7: "node", 11: "attribute"},
    "training": {1: "graph", 2: "graph"},
    "tensor": {},
}
"""Messages that lead to a tensor, by field number. Source: onnx/onnx.proto, IR version 13."""

_EXTERNAL_DATA, _DATA_LOCATION = 13, 14
_GRAPH, _NODE, _INITIALIZER, _FLOAT16 = 7, 1, 5, 10
_VARINT, _FIXED64, _BYTES, _FIXED32 = 0, 1, 2, 5
_MOST_TAG = 2**32 - 1
"""Runtimes cut a greater one to 32 bits without a word: it would hide a field from this check."""


def read_onnx(path: Path) -> bytes:
    """Return the bytes of a model file that a runtime may open.

    Raises:
        FileNotFoundError: There is no such file.
        ModelError: It is damaged, not a model of this package, or has parts outside itself.
    """
    data = read_model(path)
    check_seal(data, str(path))
    refuse_external_data(data, str(path))
    return data


def read_again(path: Path, sha256: str) -> bytes:
    """Return the bytes of a model file that was read before.

    Raises:
        FileNotFoundError: There is no such file any more.
        ModelError: It is another file than it was.
    """
    data = read_model(path)
    if sha256_of(data) != sha256:
        raise ModelError(f"{path} has changed since it was loaded: make a new Segmenter")
    return data


def precision_of(data: bytes) -> str:
    """Return in what an ONNX file's graph computes: `"fp32"`, `"fp16"` or `"int8"`.

    The graph itself is asked, so that files without a manifest tell as well. Weights that are only
    stored as fp16 stand behind a cast: their arithmetic is fp32.

    Args:
        data: The whole file, as `read_onnx` returned it.
    """
    graph = next(value for number, value in _messages(memoryview(data)) if number == _GRAPH)
    computed: set[bytes] = set()
    halves: set[bytes] = set()
    for number, value in _messages(graph):
        if number == _NODE:
            inputs, operator = _node(value)
            if operator == b"DequantizeLinear":
                return "int8"
            computed.update(inputs if operator != b"Cast" else ())
        elif number == _INITIALIZER:
            kind, name = _tensor(value)
            halves.update([name] if kind == _FLOAT16 else [])
    return "fp16" if computed & halves else "fp32"


def _node(message: memoryview) -> tuple[list[bytes], bytes]:
    """Return a node's inputs and its operator."""
    fields = [*_messages(message)]
    return [bytes(value) for number, value in fields if number == 1], bytes(dict(fields)[4])


def _tensor(message: memoryview) -> tuple[int, bytes]:
    """Return a tensor's type, by its number in onnx.proto, and its name."""
    kind = next(v for number, v in _fields(message) if number == 2 and isinstance(v, int))
    return kind, bytes(dict(_messages(message))[8])


def refuse_external_data(data: bytes, name: str) -> None:
    """Check that all tensors of an ONNX file lie in the file.

    Args:
        data: The whole file.
        name: What to call the file in the message.

    Raises:
        ModelError: One does not, or the file is no ONNX file.
    """
    waiting = [("model", memoryview(data))]
    try:
        while waiting:
            kind, message = waiting.pop()
            children = _MESSAGES[kind]
            for number, value in _fields(message):
                if kind == "tensor" and number in (_EXTERNAL_DATA, _DATA_LOCATION) and value:
                    raise ModelError(
                        f"{name} keeps a tensor in another file, which is not opened: expected one "
                        "file that holds everything; export the model again"
                    )
                if number in children and isinstance(value, memoryview):
                    waiting.append((children[number], value))
    except (ValueError, IndexError) as error:
        raise ModelError(f"{name} is no readable ONNX file ({error}): export it again") from error


def _fields(message: memoryview) -> Iterator[tuple[int, int | memoryview]]:
    """Yield number and value of a message's fields: of bytes the bytes, of the rest a number.

    Source: https://protobuf.dev/programming-guides/encoding/
    """
    at = 0
    while at < len(message):
        tag, at = _varint(message, at)
        if tag > _MOST_TAG:
            raise ValueError("a field's number of more than 32 bits")
        wire = tag & 7
        if wire == _VARINT:
            value, at = _varint(message, at)
            yield tag >> 3, value
            continue
        if wire == _BYTES:
            size, at = _varint(message, at)
        elif wire in (_FIXED64, _FIXED32):
            size = 8 if wire == _FIXED64 else 4
        else:
            raise ValueError(f"wire type {wire}")
        if at + size > len(message):
            raise ValueError("a field runs over its end")
        if wire == _BYTES:
            yield tag >> 3, message[at : at + size]
        at += size


def _messages(message: memoryview) -> Iterator[tuple[int, memoryview]]:
    """Yield those of a message's fields that are bytes: messages and texts."""
    for number, value in _fields(message):
        if isinstance(value, memoryview):
            yield number, value


def _varint(message: memoryview, at: int) -> tuple[int, int]:
    value = 0
    for shift in range(0, 70, 7):
        byte = message[at]
        at += 1
        value |= (byte & 0x7F) << shift
        if byte < 0x80:
            return value, at
    raise ValueError("a number of more than ten bytes")
