"""Training on several devices: each works on a share of every batch, all as one.

The answer is that of one device with the whole batch, but for rounding: batch norm takes its
statistics over the whole batch, and so does the loss, whose Dice couples the pictures of a batch.
Lightning Fabric starts the processes and averages the gradients; with one device it is not needed.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from typing import TYPE_CHECKING, Any, TypeVar

import torch
from torch import Tensor, nn

from magtiles_seg.errors import BackendUnavailableError, ConfigError

if TYPE_CHECKING:
    from magtiles_seg.config import TrainParams
    from magtiles_seg.train.batches import Batch

Value = TypeVar("Value")


class GlobalBatchNorm2d(nn.BatchNorm2d):
    """Batch norm whose statistics are those of all processes' pictures together.

    torch's own `SyncBatchNorm` runs on CUDA alone. Every process holds equally many pictures.
    """

    def forward(self, x: Tensor) -> Tensor:
        """Return the same shape."""
        if not self.training:
            return super().forward(x)
        values = x.float()
        count = values.numel() // values.shape[1] * torch.distributed.get_world_size()
        mean = _sum_over_all(values.sum((0, 2, 3))) / count
        centred = values - mean[:, None, None]
        variance = _sum_over_all(centred.square().sum((0, 2, 3))) / count
        self._follow(mean.detach(), variance.detach() * count / (count - 1))
        scale = self.weight * torch.rsqrt(variance + self.eps)
        return (centred * scale[:, None, None] + self.bias[:, None, None]).to(x.dtype)

    def _follow(self, mean: Tensor, variance: Tensor) -> None:
        """Move the running statistics, as `nn.BatchNorm2d` does."""
        if self.running_mean is None or self.running_var is None or self.momentum is None:
            return
        self.running_mean.lerp_(mean, self.momentum)
        self.running_var.lerp_(variance, self.momentum)
        if self.num_batches_tracked is not None:
            self.num_batches_tracked.add_(1)


class Devices:
    """One device, or a process on each of several.

    Attributes:
        rank: Which of the processes this one is; 0 validates and writes.
        count: How many there are.
        pieces: Into how many pieces, one after another, each process cuts its share of a batch.
    """

    def __init__(self, params: TrainParams) -> None:
        """Start the other processes, if there are to be any: each runs the same command.

        Raises:
            ConfigError: The batch does not divide into equal shares.
            BackendUnavailableError: There are to be several, and lightning-fabric is not installed.
        """
        self.count, self.pieces = params.devices, params.accumulate
        if params.batch_size % (self.count * self.pieces):
            raise ConfigError(
                f"train.batch_size must be a multiple of train.devices x train.accumulate "
                f"({self.count} x {self.pieces}), got {params.batch_size}"
            )
        self._size = params.batch_size
        self._fabric: Any = _launch(self.count) if self.count > 1 else None
        self._model: Any = None
        self.rank: int = self._fabric.global_rank if self._fabric else 0

    @property
    def places(self) -> tuple[int, ...]:
        """Places in the whole batch of the pictures that this process makes, piece by piece."""
        share = self._size // (self.count * self.pieces)
        starts = range(self.rank * share, self._size, self.count * share)
        return tuple(place for start in starts for place in range(start, start + share))

    def set_up(self, network: nn.Module) -> Callable[[Tensor], tuple[Tensor, Tensor]]:
        """Return what is to be called in the network's place; its weights are the network's."""
        if self._fabric is None:
            return network
        for module in network.modules():
            if isinstance(module, nn.BatchNorm2d):
                module.__class__ = GlobalBatchNorm2d
        self._model = self._fabric.setup_module(network)
        forward: Callable[[Tensor], tuple[Tensor, Tensor]] = self._model
        return forward

    def gather(self, *parts: Tensor) -> tuple[Tensor, ...]:
        """Return tensors (n, ...) as those of all processes, (count * n, ...), with gradients."""
        if self._fabric is None:
            return parts
        return tuple(self._gather(part) for part in parts)

    def _gather(self, part: Tensor) -> Tensor:
        before, after = self.rank * len(part), (self.count - 1 - self.rank) * len(part)
        slots = [part.new_zeros((size, *part.shape[1:])) for size in (before, after)]
        return _sum_over_all(torch.cat([slots[0], part, slots[1]]))

    def backward(self, batch: Batch, loss_of: Callable[[Batch], Tensor]) -> float:
        """Add the gradients of a batch's mean loss over its pieces, and return that loss."""
        total = 0.0
        for piece, part in enumerate(batch.split(self.pieces)):
            with self._accumulating(piece):
                loss = loss_of(part) / self.pieces
                loss.backward()  # type: ignore[no-untyped-call]
            total += float(loss.detach())
        return total

    def _accumulating(self, piece: int) -> AbstractContextManager[object]:
        """Return a context in which gradients are averaged over processes with the last piece."""
        if self._fabric is None:
            return nullcontext()
        is_last = piece == self.pieces - 1
        context: AbstractContextManager[object] = self._fabric.no_backward_sync(
            self._model, enabled=not is_last
        )
        return context

    def of_first(self, make: Callable[[], Value]) -> Value:
        """Return what the first process makes, in all of them."""
        if self._fabric is None:
            return make()
        shared: Value = self._fabric.broadcast(make() if self.rank == 0 else None)
        return shared


def is_first() -> bool:
    """Return whether this process is the one that speaks: the others are started by it."""
    return int(os.environ.get("LOCAL_RANK", 0)) == 0


def _launch(count: int) -> Any:  # noqa: ANN401  (loaded only when used)
    try:
        from lightning_fabric import Fabric
    except ImportError as error:
        raise BackendUnavailableError(
            f"train.devices={count} needs lightning-fabric: pip install 'magtiles-seg[fabric]'"
        ) from error
    fabric = Fabric(accelerator="cpu", devices=count, strategy="ddp")
    fabric.launch()
    return fabric


class _SumOverAll(torch.autograd.Function):
    """The sum over all processes; the gradient of a sum is that of every process, summed."""

    @staticmethod
    def forward(ctx: Any, values: Tensor) -> Tensor:  # noqa: ANN401, ARG004
        total = values.clone(memory_format=torch.contiguous_format)
        torch.distributed.all_reduce(total)
        return total

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Tensor:  # noqa: ANN401, ARG004
        return _SumOverAll.forward(None, gradient)


def _sum_over_all(values: Tensor) -> Tensor:
    total: Tensor = _SumOverAll.apply(values)  # type: ignore[no-untyped-call]
    return total
