"""What training runs on: one CPU or GPU, or a process on each of several, by Lightning Fabric.

Several devices share every batch. The answer is that of one device with the whole batch, but for
rounding: batch norm takes its statistics over the whole batch, and so does the loss, whose Dice
couples the pictures of a batch. Fabric starts the processes, averages the gradients, and owns the
mixed precision; what was asked for and is not there is an error, never another device.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from typing import TYPE_CHECKING, Any, TypeVar

import torch
from lightning_fabric import Fabric
from torch import Tensor, nn
from torch.optim import Optimizer

from magtiles_seg.errors import BackendUnavailableError, ConfigError
from magtiles_seg.train.kernels import use_fast_gradients

if TYPE_CHECKING:
    from magtiles_seg.config import TrainParams
    from magtiles_seg.train.data import Batch

Value = TypeVar("Value")

_FABRIC_PRECISION: dict[str, Any] = {"bf16": "bf16-mixed", "fp16": "16-mixed", "fp32": "32-true"}


class Devices:
    """One device, or a process on each of several.

    Attributes:
        device: That of this process.
        precision: `"bf16"`, `"fp16"` (with a loss scaler) or `"fp32"`.
        rank: Which of the processes this one is; 0 validates and writes.
        count: How many there are.
        pieces: Into how many pieces, one after another, each process cuts its share of a batch.
    """

    def __init__(self, params: TrainParams) -> None:
        """Start the other processes, if there are to be any: each runs the same command.

        Raises:
            ConfigError: The batch does not divide into equal shares, or the device does not
                compute in that precision.
            BackendUnavailableError: There is no CUDA device, or there are fewer than asked for.
        """
        self.count, self.pieces = params.devices, params.accumulate
        if params.batch_size % (self.count * self.pieces):
            raise ConfigError(
                f"train.batch_size must be a multiple of train.devices x train.accumulate "
                f"({self.count} x {self.pieces}), got {params.batch_size}"
            )
        kind = device_kind(params.device, params.devices)
        self.precision = precision_of(params.precision, kind)
        self._size = params.batch_size
        self._fabric = _launch(kind, self.count, self.precision)
        self._model: Any = None
        self._optimizer: Any = None
        self.device: torch.device = self._fabric.device
        self.rank: int = self._fabric.global_rank
        if kind == "cuda":  # the same algorithm every time: a resumed run ends in the same weights
            torch.backends.cudnn.deterministic = True

    @property
    def places(self) -> tuple[int, ...]:
        """Places in the whole batch of the pictures that this process makes, piece by piece."""
        share = self._size // (self.count * self.pieces)
        starts = range(self.rank * share, self._size, self.count * share)
        return tuple(place for start in starts for place in range(start, start + share))

    def set_up(
        self, network: nn.Module, optimizer: Optimizer
    ) -> Callable[[Tensor], tuple[Tensor, Tensor]]:
        """Return what is to be called in the network's place; its weights are the network's.

        It computes in the precision of the devices. The network is changed: to fast gradients on a
        CPU, and to common batch norm on several devices.
        """
        if self.device.type == "cpu":
            use_fast_gradients(network)
        if self.count > 1:
            for module in network.modules():
                if isinstance(module, nn.BatchNorm2d):
                    module.__class__ = GlobalBatchNorm2d
        self._model, self._optimizer = self._fabric.setup(network, optimizer)
        forward: Callable[[Tensor], tuple[Tensor, Tensor]] = self._model
        return forward

    def autocast(self) -> AbstractContextManager[object]:
        """Return a context in which a network that is not set up computes in the precision."""
        context: AbstractContextManager[object] = self._fabric.autocast()
        return context

    def gather(self, *parts: Tensor) -> tuple[Tensor, ...]:
        """Return tensors (n, ...) as those of all processes, (count * n, ...), with gradients."""
        if self.count == 1:
            return parts
        return tuple(self._gather(part) for part in parts)

    def _gather(self, part: Tensor) -> Tensor:
        before, after = self.rank * len(part), (self.count - 1 - self.rank) * len(part)
        slots = [part.new_zeros((size, *part.shape[1:])) for size in (before, after)]
        return _sum_over_all(torch.cat([slots[0], part, slots[1]]))

    def step(
        self, batch: Batch, loss_of: Callable[[Batch], Tensor], max_gradient_norm: float
    ) -> Tensor:
        """Let the optimizer take one step on a batch's mean loss over its pieces.

        Returns:
            That loss, () float32 on the device: reading it waits for the device.
        """
        self._optimizer.zero_grad(set_to_none=True)
        total = torch.zeros((), device=self.device)
        for piece, part in enumerate(batch.split(self.pieces)):
            with self._accumulating(piece):
                loss = loss_of(part) / self.pieces
                self._fabric.backward(loss)
            total += loss.detach()
        self._fabric.clip_gradients(
            self._model, self._optimizer, max_norm=max_gradient_norm, error_if_nonfinite=False
        )
        self._optimizer.step()
        return total

    def _accumulating(self, piece: int) -> AbstractContextManager[object]:
        """Return a context in which gradients are averaged over processes with the last piece."""
        if self.count == 1:
            return nullcontext()
        is_last = piece == self.pieces - 1
        context: AbstractContextManager[object] = self._fabric.no_backward_sync(
            self._model, enabled=not is_last
        )
        return context

    def of_first(self, make: Callable[[], Value]) -> Value:
        """Return what the first process makes, in all of them."""
        if self.count == 1:
            return make()
        shared: Value = self._fabric.broadcast(make() if self.rank == 0 else None)
        return shared

    def scaler_state(self) -> dict[str, float]:
        """Return the state of the loss scaler, which fp16 alone has."""
        scaler = self._scaler()
        return {} if scaler is None else dict(scaler.state_dict())

    def load_scaler_state(self, state: dict[str, float]) -> None:
        """Go on with a loss scaler's state; an empty one changes nothing."""
        scaler = self._scaler()
        if scaler is not None and state:
            scaler.load_state_dict(state)

    def _scaler(self) -> Any:  # noqa: ANN401  (a GradScaler)
        return getattr(self._fabric.strategy.precision, "scaler", None)


def is_first() -> bool:
    """Return whether this process is the one that speaks: the others are started by it."""
    return int(os.environ.get("LOCAL_RANK", 0)) == 0


def device_kind(wanted: str, count: int) -> str:
    """Return `"cpu"` or `"cuda"` for `auto`, `cpu` or `cuda`.

    Args:
        wanted: `train.device`; `auto` takes CUDA where torch sees a device of it.
        count: How many devices there must be; on a CPU each is a process.

    Raises:
        BackendUnavailableError: CUDA is wanted, and torch sees fewer devices.
    """
    seen = torch.cuda.device_count() if torch.cuda.is_available() else 0
    if wanted == "cpu" or (wanted == "auto" and not seen):
        return "cpu"
    if seen >= count:
        return "cuda"
    if torch.version.cuda is None:
        fix = (
            "this is a build without CUDA: pip install a CUDA build of torch "
            "(https://pytorch.org/get-started/locally)"
        )
    elif not seen:
        fix = "check the NVIDIA driver with nvidia-smi, and CUDA_VISIBLE_DEVICES"
    else:
        fix = f"set train.devices to {seen} at most"
    raise BackendUnavailableError(
        f"train.device={wanted} with train.devices={count} needs {count} CUDA devices, and torch "
        f"{torch.__version__} sees {seen}; {fix}, or set train.device to cpu"
    )


def precision_of(wanted: str, kind: str) -> str:
    """Return the precision that `train.precision` means on a kind of device.

    `auto` takes bf16 where the device multiplies it in hardware; else fp16 on CUDA, fp32 on a CPU.

    Raises:
        ConfigError: fp16 is wanted on a CPU.
    """
    if wanted == "fp16" and kind == "cpu":
        raise ConfigError("train.precision=fp16 needs train.device=cuda; take bf16, fp32 or auto")
    if wanted != "auto":
        return wanted
    if kind == "cuda":
        return "bf16" if torch.cuda.is_bf16_supported(including_emulation=False) else "fp16"
    fast = torch.cpu._is_avx512_bf16_supported() or torch.cpu._is_amx_tile_supported()
    return "bf16" if fast else "fp32"


def _launch(kind: str, count: int, precision: str) -> Any:  # noqa: ANN401  (Fabric carries no types)
    logging.getLogger("lightning_fabric").setLevel(logging.WARNING)
    strategy = "ddp" if count > 1 else "auto"
    fabric = Fabric(
        accelerator=kind, devices=count, strategy=strategy, precision=_FABRIC_PRECISION[precision]
    )
    fabric.launch()
    return fabric


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
