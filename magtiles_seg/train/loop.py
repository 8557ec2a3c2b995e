"""The training loop.

Killed at any moment and started again with the same arguments, it goes on from the last whole
epoch and ends in the same weights: every random draw is a function of seed, epoch and step, and
the state of an epoch is written whole or not at all.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import nullcontext
from copy import deepcopy
from functools import cached_property
from pathlib import Path
from typing import Protocol as TypingProtocol
from typing import TypeVar

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from magtiles_seg.config import TrainParams
from magtiles_seg.dataset.augment import Augmentation, CopyPaste, View
from magtiles_seg.dataset.samples import Sample, load_image
from magtiles_seg.dataset.synthetic.defects import DRAWN_LABELS
from magtiles_seg.errors import ConfigError, DataError
from magtiles_seg.evaluate.protocols import get_protocol
from magtiles_seg.labels import FREE, LABELS
from magtiles_seg.model.checkpoint import CHECKPOINT, STATE, load_checkpoint, save_checkpoint
from magtiles_seg.model.ensemble import Network
from magtiles_seg.model.losses import segmentation_loss
from magtiles_seg.model.network import SegmentationNetwork, build_network
from magtiles_seg.model.patch_network import PATCHES
from magtiles_seg.model.warmstart import has_patches, start_from
from magtiles_seg.train.data import (
    BalancedSampler,
    Batch,
    BatchPlan,
    TrainingSet,
    epoch_batches,
    learnt_from,
    training_pictures,
)
from magtiles_seg.train.devices import Devices, is_first
from magtiles_seg.train.frozen import train_patches
from magtiles_seg.train.kernels import kept_memory
from magtiles_seg.train.patches import fit_patches
from magtiles_seg.train.state import (
    Fingerprints,
    RunState,
    ancestors,
    check_run,
    fingerprints,
    identity,
    is_finished,
    load_state,
    save_state,
    seal_checkpoint,
    start_path,
    teacher_path,
)
from magtiles_seg.train.validation import Validation, ValidationPart
from magtiles_seg.train.views import DeviceViews, fits_on

NetworkT = TypeVar("NetworkT", bound=Network)

WARM_UP = 0.1
"""Share of the run over which the rate rises."""

_PRETRAINED_RATE = 0.4
"""Share of the learning rate that a pretrained encoder gets: it has less to learn than the rest."""

_MAX_GRADIENT_NORM = 5.0
_WARM_START_PICTURES = 16


class Logger(TypingProtocol):
    """Where curves go: the part of `dvclive.Live` that training uses."""

    def log_metric(self, name: str, val: float) -> object:
        """Record one figure of the current step."""

    def log_image(self, name: str, val: NDArray[np.uint8]) -> object:
        """Record one (H, W, 3) uint8 RGB picture of the current step."""

    def next_step(self) -> object:
        """End the current step."""


WrapEpoch = Callable[[Iterable[Batch], int, str], Iterable[Batch]]
"""Wraps the batches of an epoch, given their number and a title, to show how far it is."""


def train(
    training: Sequence[Sample],
    validation: Sequence[Sample],
    params: TrainParams,
    out_dir: Path,
    *,
    labels: tuple[str, ...] = LABELS,
    known: Fingerprints | None = None,
    progress: WrapEpoch | None = None,
    logger: Logger | None = None,
) -> Path:
    """Train a network, or go on with a run that was stopped, and return its best checkpoint.

    Args:
        training: Pictures that the weights are fitted to; those that are filed as sound although
            their tile-mates are masked as defective, or as defective with an empty mask, are left
            out.
        validation: Pictures that choose the checkpoint; of other tiles than `training`, or the
            choice is of no worth.
        params: The run's parameters.
        out_dir: Where the checkpoint and the run's state are kept.
        labels: Class names by index, background first.
        known: What `fingerprints` returns for the two parts, where the caller has it; it reads
            every file.
        progress: Shows each epoch's batches.
        logger: Gets each epoch's figures.

    Returns:
        `out_dir/model.safetensors`: averaged weights of the epoch that scored best on `validation`,
        or of the last one (`params.keep`).

    Raises:
        DataError: A picture is damaged, a part is empty, or `out_dir` holds a run with other
            parameters, or of pictures or masks that have changed since.
        ConfigError: The parameters have no sense together, or the training diverged.
        BackendUnavailableError: The device that `params` asks for is not there.
    """
    if params.threads:
        torch.set_num_threads(params.threads)
    expected = identity(training, validation, params, labels)
    if is_first():  # which speaks for the processes that it starts
        check_run(out_dir, expected, training, validation, known)
    if is_finished(out_dir, expected):
        return out_dir / CHECKPOINT
    if params.architecture == PATCHES:
        found, state = train_patches(
            training, validation, params, out_dir, labels=labels, known=known
        )
        if logger:
            _log(logger, found, state)
        return out_dir / CHECKPOINT
    run = _Run(training, validation, params, out_dir, labels, known)
    if not run.finished():
        _fit(run, progress, logger)
    if run.devices.rank == 0:
        run.complete()
        seal_checkpoint(out_dir, run.state)
    return out_dir / CHECKPOINT


def _fit(run: _Run, progress: WrapEpoch | None, logger: Logger | None) -> None:
    """Go through the epochs that a run has left."""
    run.read_pictures()
    with kept_memory() if run.devices.device.type == "cpu" else nullcontext():
        while not run.finished():
            losses = [run.step(batch) for batch in _shown(run.batches(), run, progress)]
            found = run.end_epoch(float(np.mean(torch.stack(losses).tolist())))
            if logger:
                _log(logger, found, run.state)


class _Run:
    """Everything that one run holds while it lasts: fresh, or as the state in `out_dir` has it."""

    def __init__(
        self,
        training: Sequence[Sample],
        validation: Sequence[Sample],
        params: TrainParams,
        out_dir: Path,
        labels: tuple[str, ...],
        known: Fingerprints | None,
    ) -> None:
        self.params, self.out_dir, self.labels = params, out_dir, labels
        self.training = learnt_from(training, validation)
        _check_defects(self.training, params, labels)
        self.sampler = BalancedSampler(self.training, free_fraction=params.free_fraction)
        self.validation, self.protocol = validation, get_protocol(params.protocol)
        self.steps = max(1, params.pictures_per_epoch // params.batch_size)
        self.devices = Devices(params)
        self.network = self._fresh_network(training)
        self.teacher = self._load_teacher()
        self.stride = max(self.network.stride, self.teacher.stride if self.teacher else 1)
        _check_crop(params, self.stride)
        self.average = MovingAverage(self.network, params.ema_decay)
        self.optimizer = torch.optim.AdamW(
            weight_groups(self.network, params), lr=params.learning_rate, fused=True
        )
        self.model = self.devices.set_up(self.network, self.optimizer)
        self.state = RunState(identity(training, validation, params, labels))
        if (out_dir / STATE).is_file():
            self.state = load_state(
                out_dir / STATE, self.state.identity, self.network, self.average, self.optimizer
            )
            self.devices.load_scaler_state(self.state.scaler)
        elif self.devices.rank == 0:  # which alone writes the state
            known = known or fingerprints(training, validation)
            self.state.code_sha256, self.state.data_sha256 = known
        self.ancestors = ancestors(params)

    def _fresh_network(self, training: Sequence[Sample]) -> SegmentationNetwork:
        """Return a network on the run's device, with the weights that the parameters start from."""
        params = self.params
        torch.manual_seed(params.seed)
        network = build_network(
            params.architecture,
            labels=self.labels,
            pretrained=params.pretrained and params.start is None,
        )
        if _judges_patches(params):
            network.add_patches()
        if params.start is not None and not (self.out_dir / STATE).is_file():
            few = training[:: max(1, len(training) // _WARM_START_PICTURES)]
            start_from(network, start_path(params.start), [load_image(sample) for sample in few])
        return _placed(network, self.devices.device)

    def _load_teacher(self) -> Network | None:
        """Return the network whose probabilities are taught, its weights fixed."""
        if self.params.teacher is None:
            return None
        network, _ = load_checkpoint(teacher_path(self.params.teacher))
        return _placed(network.eval().requires_grad_(False), self.devices.device)

    @cached_property
    def pictures(self) -> list[View]:
        """The training pictures, read once.

        Raises:
            DataError: One is damaged.
        """
        return training_pictures(self.training, self.protocol, self.labels)

    def read_pictures(self) -> None:
        """Bring the pictures into memory, and onto the device where that draws them itself.

        Raises:
            DataError: One is damaged.
        """
        params, device, pictures = self.params, self.devices.device, self.pictures
        copy_paste = CopyPaste(pictures, self.labels) if params.copy_paste_fraction else None
        self.shown = TrainingSet(pictures, self.sampler, copy_paste)
        self.device_views = DeviceViews(self.shown, device) if fits_on(device, pictures) else None
        self.held_out = ValidationPart(
            self.validation, self.protocol, labels=self.labels, stride=self.network.stride
        )

    def finished(self) -> bool:
        """Return whether all epochs are done, or too many of them brought nothing better."""
        return self.state.finished(self.params)

    def is_coarse(self) -> bool:
        """Return whether the current epoch shows everything at half its size."""
        return self.state.epoch < int(self.params.coarse_fraction * self.params.epochs)

    def batches(self) -> Iterator[Batch]:
        """Yield the batches of the current epoch, on the device."""
        params = self.params
        plan = BatchPlan(
            params.seed,
            params.batch_size,
            params.crop_px,
            self.network.class_stride,
            Augmentation(),
            params.copy_paste_fraction,
            self.devices.places,
        )
        if self.is_coarse():
            plan = plan.coarse(self.stride)
        if self.device_views is not None:
            return self.device_views.epoch(plan, epoch=self.state.epoch, steps=self.steps)
        device = self.devices.device
        return epoch_batches(
            self.shown, plan, epoch=self.state.epoch, steps=self.steps, device=device
        )

    def step(self, batch: Batch) -> Tensor:
        """Fit the weights to one batch and return its loss, () on the device."""
        progress = self.average.updates / (self.steps * self.params.epochs)
        rate = one_cycle(progress) * self.params.learning_rate
        for group in self.optimizer.param_groups:
            group["lr"] = rate * group["rate_share"]
        self.network.train()
        loss = self.devices.step(batch, self._loss, _MAX_GRADIENT_NORM)
        self.average.update(self.network)
        return loss

    def _loss(self, batch: Batch) -> Tensor:
        image = batch.image.to(memory_format=torch.channels_last)
        target = batch.target
        if self.teacher is not None:
            with torch.no_grad(), self.devices.autocast():
                taught = torch.sigmoid(self.teacher(image)[0]).float()
            mixed = torch.lerp(target, taught, self.params.teacher_weight)
            target = torch.where(target < 0, target, mixed)
        whole = self.devices.gather(*self.model(image), target, batch.class_target)
        return segmentation_loss(
            *whole, dice_weight=self.params.dice_weight, class_weight=self.params.class_weight
        )

    def end_epoch(self, loss: float) -> Validation:
        """Score the averaged weights, keep them if they are the best, and write the state.

        After a coarse epoch they are kept as they are.
        """
        averaged, coarse = self.average.module, self.is_coarse()
        self._check_finite(loss)
        found = Validation({}, {})
        if not coarse:
            found = self.devices.of_first(lambda: self.held_out.score(averaged, self.devices))
        figures = found.figures
        score = figures.get("score", self.state.best_score)
        if coarse or self.params.keep == "last" or score > self.state.best_score:
            self.state.best_score, self.state.best_epoch = score, self.state.epoch
            meta = {
                "training": self.state.identity,
                "epoch": self.state.epoch,
                "validation": figures,
                **({"ancestors": self.ancestors} if self.ancestors else {}),
            }
            if self.devices.rank == 0:
                save_checkpoint(self.out_dir / CHECKPOINT, averaged, meta)
        self.state.history.append({"loss": loss, **figures})
        self.state.epoch += 1
        self.state.scaler = self.devices.scaler_state()
        if self.devices.rank == 0:
            state = self.out_dir / STATE
            save_state(state, self.state, self.network, self.average, self.optimizer)
        return found

    def _check_finite(self, loss: float) -> None:
        """Refuse to keep weights that are no numbers: what was kept before them stays.

        Raises:
            ConfigError: There are some.
        """
        weights = self.average.module.state_dict().values()
        if not all(bool(tensor.isfinite().all()) for tensor in weights):
            raise ConfigError(
                f"training diverged in epoch {self.state.epoch + 1} of {self.params.epochs}: the "
                f"loss is {loss}, and weights are no numbers; lower train.learning_rate "
                f"({self.params.learning_rate:g}) or the weights of the losses, and start afresh"
            )

    def complete(self) -> None:
        """Fit the kept checkpoint's patch classifier, unless that is done.

        Raises:
            DataError: A picture is damaged.
        """
        share = self.params.effective_patch_share
        if not share:
            return
        network, meta = load_checkpoint(self.out_dir / CHECKPOINT)
        if not isinstance(network, SegmentationNetwork) or network.patches is None:
            return
        if network.patch_share:  # they are fitted already
            return
        _placed(network, self.devices.device)
        fit_patches(network, self.pictures, share=share, seed=self.params.seed)
        held_out = ValidationPart(
            self.validation, self.protocol, labels=self.labels, stride=network.stride
        )
        figures = held_out.score(network.eval(), self.devices).figures
        save_checkpoint(self.out_dir / CHECKPOINT, network, {**meta, "validation": figures})


def _check_defects(
    training: Sequence[Sample], params: TrainParams, labels: tuple[str, ...]
) -> None:
    """Refuse to fit a network to pictures that will never show it a defect."""
    drawn = params.copy_paste_fraction > 0 and not set(labels).isdisjoint(DRAWN_LABELS)
    sound = [sample for sample in training if sample.label == FREE]
    if sound and params.free_fraction == 1 and not params.copy_paste_fraction:
        raise ConfigError(
            "train.free_fraction is 1 and train.copy_paste_fraction 0: no defect would ever be "
            "shown; lower the first, or raise the second"
        )
    if not drawn and len(sound) == len(training):
        raise DataError(
            f"none of the {len(training)} training pictures has a defect, so a "
            f"{params.architecture!r} network would learn to find none: set train.architecture to "
            f"{PATCHES!r}, which learns from sound pictures alone"
        )


def _check_crop(params: TrainParams, stride: int) -> None:
    """Refuse crops that a network cannot take.

    Raises:
        ConfigError: Their side is no multiple of its stride.
    """
    if params.crop_px % stride:
        least = params.crop_px // stride * stride
        near = " or ".join(str(side) for side in (least, least + stride) if side)
        raise ConfigError(
            f"train.crop_px is {params.crop_px}; expected a multiple of {stride}, the stride of "
            f"{params.architecture!r}{' and its teacher' if params.teacher else ''}: set it to "
            f"{near}"
        )


def _judges_patches(params: TrainParams) -> bool:
    """Return whether the network gets a patch classifier; a model to start from must have one.

    Raises:
        ConfigError: It is asked for, and there are no frozen features for it.
    """
    if not params.effective_patch_share:
        return False
    frozen = params.pretrained
    if params.start:
        frozen = has_patches(start_path(params.start), params.architecture)
    if not frozen and params.patch_share:
        raise ConfigError(
            f"train.patch_share is {params.patch_share}, but there are no frozen features: "
            + (
                f"{params.start} has no patch classifier; set train.patch_share to 0"
                if params.start
                else "set train.pretrained to true, or train.patch_share to 0"
            )
        )
    return frozen


def _placed(network: NetworkT, device: torch.device) -> NetworkT:
    """Return the network on a device, its weights in the order that convolutions are fastest in."""
    network.to(device=device, memory_format=torch.channels_last)  # type: ignore[call-overload]
    return network


def one_cycle(progress: float) -> float:
    """Return the share of the peak rate: a cosine up over `WARM_UP`, then one down to near zero.

    Source: https://arxiv.org/abs/1708.07120, with cosine flanks.

    Args:
        progress: Share of the run's steps that are done, in [0, 1].
    """
    if progress < WARM_UP:
        return 0.04 + 0.96 * (1 - math.cos(math.pi * progress / WARM_UP)) / 2
    rest = (progress - WARM_UP) / (1 - WARM_UP)
    return 0.001 + 0.999 * (1 + math.cos(math.pi * min(rest, 1.0))) / 2


def weight_groups(network: SegmentationNetwork, params: TrainParams) -> list[dict[str, object]]:
    """Return the parameters in groups: kernels decay, biases and norms do not; encoder and rest."""
    encoder = {id(weight) for weight in network.encoder.parameters()}
    groups: dict[tuple[bool, bool], list[nn.Parameter]] = {}
    for weight in network.parameters():
        if weight.requires_grad:
            groups.setdefault((id(weight) in encoder, weight.ndim > 1), []).append(weight)
    return [
        {
            "params": weights,
            "weight_decay": params.weight_decay if decays else 0.0,
            "rate_share": _PRETRAINED_RATE
            if encodes and (params.pretrained or params.start)
            else 1.0,
        }
        for (encodes, decays), weights in groups.items()
    ]


class MovingAverage(nn.Module):
    """An exponential moving average of a network's weights that follows closely at first.

    Attributes:
        module: The network with the averaged weights and batch norm statistics.
        n_averaged: () int64, networks averaged; on the CPU, so that reading it waits for no GPU.
    """

    n_averaged: Tensor

    def __init__(self, network: SegmentationNetwork, decay: float) -> None:
        """Start with a copy of the network; `decay` is the share that stays, at last."""
        super().__init__()
        self.module: SegmentationNetwork = deepcopy(network).requires_grad_(False)
        self.register_buffer("n_averaged", torch.zeros((), dtype=torch.int64))
        self._decay = decay

    @property
    def updates(self) -> int:
        """How many networks were averaged."""
        return int(self.n_averaged)

    @torch.no_grad()
    def update(self, network: SegmentationNetwork) -> None:
        """Move the average towards a network's weights."""
        done = self.updates
        kept = min(self._decay, (1 + done) / (10 + done)) if done else 0.0
        ours, theirs = self.module.state_dict(), network.state_dict()
        floating = [name for name, tensor in ours.items() if tensor.is_floating_point() and done]
        if floating:
            averages = [ours.pop(name) for name in floating]
            torch._foreach_lerp_(averages, [theirs[name] for name in floating], 1 - kept)
        for name, tensor in ours.items():
            tensor.copy_(theirs[name])
        self.n_averaged += 1


def _log(logger: Logger, found: Validation, state: RunState) -> None:
    """Log an epoch's figures, and the pictures of the best one so far."""
    for name, value in state.history[-1].items():
        logger.log_metric(name, value)
    if state.best_epoch == state.epoch - 1:
        for name, picture in found.triptychs.items():
            logger.log_image(f"{name}.png", picture)
    logger.next_step()


def _shown(batches: Iterable[Batch], run: _Run, progress: WrapEpoch | None) -> Iterable[Batch]:
    if progress is None:
        return batches
    return progress(batches, run.steps, f"epoch {run.state.epoch + 1}/{run.params.epochs}")
