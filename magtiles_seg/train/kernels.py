"""Training on a CPU without its slow spots: some gradients, and fresh memory pages.

oneDNN has fast kernels for most gradients of a depthwise convolution and very slow ones for two:
in bf16 that of the input at stride 2 (30 times the forward pass), and that of 5 x 5 weights. Both
are composed here of kernels that are fast; the sums are the same ones, in another order. torch's
gradient of a doubling copies all of it into another order and back; a pooling does not.
"""

from __future__ import annotations

import ctypes
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

_TRIM_THRESHOLD, _TOP_PAD, _MMAP_MAX = -1, -2, -4
"""`mallopt`'s numbers in <malloc.h>."""

_USUAL = {_TRIM_THRESHOLD: 128 << 10, _TOP_PAD: 128 << 10, _MMAP_MAX: 65536}
_KEEPING = {_TRIM_THRESHOLD: 2**31 - 1, _TOP_PAD: 256 << 20, _MMAP_MAX: 0}


@contextmanager
def kept_memory() -> Iterator[None]:
    """Let the process keep what it frees, for as long as the context lasts.

    glibc gives large blocks back to the system at once, and gets them as pages that have to be
    cleared: with activations of 40 MB that is a seventh of a training step. Without effect where
    the C library is another.
    """
    libc = ctypes.CDLL(None) if sys.platform == "linux" else None
    if libc is None or not hasattr(libc, "mallopt"):
        yield
        return
    for option, value in _KEEPING.items():
        libc.mallopt(option, value)
    try:
        yield
    finally:
        for option, value in _USUAL.items():
            libc.mallopt(option, value)
        libc.malloc_trim(0)


class DepthwiseConv2d(nn.Conv2d):
    """A depthwise convolution, k x k with padding k // 2, whose gradients are fast on a CPU."""

    def forward(self, x: Tensor) -> Tensor:
        """Return (N, C, H / stride, W / stride)."""
        if not self.training or x.device.type != "cpu":
            return super().forward(x)
        weight = self.weight
        if torch.is_autocast_enabled("cpu"):
            dtype = torch.get_autocast_dtype("cpu")
            x, weight = x.to(dtype), weight.to(dtype)
        answer: Tensor = _Depthwise.apply(x, weight, self.stride[0])  # type: ignore[no-untyped-call]
        return answer


class Doubling(nn.Upsample):
    """A nearest-neighbour enlargement by 2 whose gradient is fast on a CPU."""

    def forward(self, x: Tensor) -> Tensor:
        """Return (N, C, 2 H, 2 W)."""
        if not self.training or x.device.type != "cpu":
            return super().forward(x)
        answer: Tensor = _Doubling.apply(x)  # type: ignore[no-untyped-call]
        return answer


def use_fast_gradients(network: nn.Module) -> None:
    """Give every square depthwise convolution and doubling of a network its fast gradients."""
    for module in network.modules():
        if type(module) is nn.Upsample and (module.scale_factor, module.mode) == (2, "nearest"):
            module.__class__ = Doubling
        if type(module) is nn.Conv2d and 1 < module.groups == module.in_channels:
            size = module.kernel_size[0]
            same = module.kernel_size == (size, size) and module.padding == (size // 2, size // 2)
            if same and module.out_channels == module.groups and module.bias is None:
                module.__class__ = DepthwiseConv2d


class _Doubling(torch.autograd.Function):
    """Each pixel of x (N, C, H, W) as 2 x 2 pixels."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:  # noqa: ANN401, ARG004
        return functional.interpolate(x, scale_factor=2, mode="nearest")

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Tensor:  # noqa: ANN401, ARG004
        return functional.avg_pool2d(gradient, 2, divisor_override=1)


class _Depthwise(torch.autograd.Function):
    """The convolution of x (N, C, H, W) with weight (C, 1, k, k)."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, stride: int) -> Tensor:  # noqa: ANN401
        ctx.save_for_backward(x, weight)
        ctx.stride = stride
        return functional.conv2d(x, weight, None, stride, weight.shape[-1] // 2, 1, x.shape[1])

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, Tensor | None, None]:  # noqa: ANN401
        x, weight = ctx.saved_tensors
        of_x = _of_input(gradient, x, weight, ctx.stride) if ctx.needs_input_grad[0] else None
        of_weight = _of_weight(gradient, x, weight, ctx.stride) if ctx.needs_input_grad[1] else None
        return of_x, of_weight, None


def _of_input(gradient: Tensor, x: Tensor, weight: Tensor, stride: int) -> Tensor:
    padding = weight.shape[-1] // 2
    if stride == 1 or x.dtype == torch.float32:
        return _gradients(gradient, x, weight, stride, padding, of_input=True)
    shape_alone = torch.empty_like(x, dtype=torch.float32)
    wide = _gradients(gradient.float(), shape_alone, weight.float(), stride, padding, of_input=True)
    return wide.to(x.dtype)


def _of_weight(gradient: Tensor, x: Tensor, weight: Tensor, stride: int) -> Tensor:
    """Return the gradient of the weights; that of 5 x 5 is put together of four 3 x 3.

    Tap (i, j) is the sum of gradient times the input shifted by it, whatever kernel the tap
    belongs to: a 3 x 3 convolution of the input from (2, 2) on has the taps from (2, 2) on.
    """
    size = weight.shape[-1]
    if size != 5 or (stride > 1 and x.dtype == torch.float32):
        return _gradients(gradient, x, weight, stride, size // 2, of_input=False)
    padded = functional.pad(x, (2, 2, 2, 2))
    height, width = (stride * (side - 1) + 3 for side in gradient.shape[2:])
    shape_alone = weight[:, :, :3, :3].contiguous()
    taps = torch.empty_like(weight)
    for i in (0, 2):
        for j in (0, 2):
            shown = padded[:, :, i : i + height, j : j + width]
            taps[:, :, i : i + 3, j : j + 3] = _gradients(
                gradient, shown, shape_alone, stride, 0, of_input=False
            )
    return taps


def _gradients(
    gradient: Tensor, x: Tensor, weight: Tensor, stride: int, padding: int, *, of_input: bool
) -> Tensor:
    """Return one of the two gradients, as torch's own kernel computes it."""
    strides, paddings = [stride, stride], [padding, padding]
    found = torch.ops.aten.convolution_backward(
        gradient, x, weight, None, strides, paddings, [1, 1], False, [0, 0], x.shape[1],
        [of_input, not of_input, False],
    )  # fmt: skip
    answer: Tensor = found[0 if of_input else 1]
    return answer
