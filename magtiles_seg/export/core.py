"""The core of a graph: nearly all that lies between its first and its last convolution."""

from __future__ import annotations

from typing import TYPE_CHECKING

from magtiles_seg.errors import ModelError

if TYPE_CHECKING:
    import onnx

EXACT_CONVOLUTIONS = 3
"""How many stay fp32 at the input in fp16: their weights reach 100 where others reach 1,
and rounding them moves the answers as much as rounding all the rest."""


def core_of(graph: onnx.GraphProto) -> set[int]:
    """Return the indices of the convolutions, but for the first few, and of all between them."""
    convolutions = [i for i, node in enumerate(graph.node) if node.op_type == "Conv"]
    if len(convolutions) <= EXACT_CONVOLUTIONS:
        raise ModelError(
            f"the model has {len(convolutions)} convolutions, expected more than "
            f"{EXACT_CONVOLUTIONS}: name one that magtiles-seg exported"
        )
    before = before_convolutions(graph)
    after: set[str] = set()  # what depends on a convolution of the core
    core = set()
    for index, node in enumerate(graph.node):
        if index in convolutions[EXACT_CONVOLUTIONS:] or (
            after & set(node.input) and before & set(node.output)
        ):
            after.update(node.output)
            core.add(index)
    return core


def before_convolutions(graph: onnx.GraphProto) -> set[str]:
    """Return the tensors that a convolution depends on."""
    before: set[str] = set()
    for node in reversed(graph.node):
        if node.op_type == "Conv" or before & set(node.output):
            before.update(node.input)
    return before
