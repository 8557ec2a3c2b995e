"""The training loop.

Killed at any moment and started again with the same arguments, it goes on from the last whole
epoch and ends in the same weights: every random draw is a function of seed, epoch and step, and
the state of an epoch is written whole or not at all.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Protocol as TypingProtocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel

from magtiles_seg.config import TrainParams
from magtiles_seg.dataset.augment import Augmentation, View
from magtiles_seg.dataset.grafts import Grafts
from magtiles_seg.dataset.samples import Sample, load_image
from magtiles_seg.dataset.tiles import EMPTY_MASKS
from magtiles_seg.errors import DataError
from magtiles_seg.evaluate.protocols import get_protocol
from magtiles_seg.labels import LABELS
from magtiles_seg.model.checkpoint import load_checkpoint, save_checkpoint
from magtiles_seg.model.losses import segmentation_loss
from magtiles_seg.model.network import SegmentationNetwork, build_network
from magtiles_seg.model.warmstart import start_from
from magtiles_seg.train.batches import Batch, BatchPlan, epoch_batches
from magtiles_seg.train.devices import Devices
from magtiles_seg.train.pictures import training_pictures
from magtiles_seg.train.sampling import BalancedSampler
from magtiles_seg.train.schedule import one_cycle
from magtiles_seg.train.state import RunState, identity, load_state, save_state, start_path
from magtiles_seg.train.validation import Validation, validate
from magtiles_seg.train.weights import moving_average, weight_groups

CHECKPOINT, STATE = "model.safetensors", "state.safetensors"
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


Progress = Callable[[Iterable[Batch], int, str], Iterable[Batch]]
"""Wraps the batches of an epoch, given their number and a title, to show how far it is."""


def train(
    training: Sequence[Sample],
    validation: Sequence[Sample],
    params: TrainParams,
    out_dir: Path,
    *,
    labels: tuple[str, ...] = LABELS,
    progress: Progress | None = None,
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
        progress: Shows each epoch's batches.
        logger: Gets each epoch's figures.

    Returns:
        `out_dir/model.safetensors`: averaged weights of the epoch that scored best on `validation`,
        or of the last one (`params.keep`).

    Raises:
        DataError: A picture is damaged, a part is empty, or `out_dir` holds a run with other
        parameters.
        ConfigError: The parameters have no sense together.
    """
    if params.threads:
        torch.set_num_threads(params.threads)
    run = _Run.start(training, validation, params, out_dir, labels)
    while not run.finished():
        losses = [run.step(batch) for batch in _shown(run.batches(), run, progress)]
        found = run.end_epoch(float(np.mean(losses)))
        if logger:
            _log(logger, found, run.state)
    return out_dir / CHECKPOINT


class _Run:
    """Everything that one run holds while it lasts."""

    def __init__(
        self, network: SegmentationNetwork, params: TrainParams, out_dir: Path, state: RunState
    ) -> None:
        self.params, self.out_dir, self.state = params, out_dir, state
        self.network = network.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
        self.devices = Devices(params)
        self.average = AveragedModel(
            network, avg_fn=moving_average(params.ema_decay), use_buffers=True
        )
        self.optimizer = torch.optim.AdamW(weight_groups(network, params), lr=params.learning_rate)
        self.steps = max(1, params.pictures_per_epoch // params.batch_size)
        self.bf16 = params.precision == "bf16" or (params.precision == "auto" and _has_fast_bf16())
        self.protocol = get_protocol(params.protocol)
        self.pictures: list[View] = []
        self.validation: Sequence[Sample] = ()
        self.plan = BatchPlan(
            params.seed,
            params.batch_size,
            params.crop_px,
            network.kind_stride,
            Augmentation(),
            params.graft_fraction,
            self.devices.places,
        )
        self.model = self.devices.set_up(self.network)
        self.teacher = _teacher(params)
        self.grafts: Grafts | None = None

    @classmethod
    def start(
        cls,
        training: Sequence[Sample],
        validation: Sequence[Sample],
        params: TrainParams,
        out_dir: Path,
        labels: tuple[str, ...],
    ) -> _Run:
        """Return a run with fresh weights, or with those of the state that `out_dir` holds."""
        if not validation:
            raise DataError("no pictures to validate on: the split's validation part is empty")
        torch.manual_seed(params.seed)
        pretrained = params.pretrained and params.start is None
        network = build_network(params.architecture, labels=labels, pretrained=pretrained)
        if params.start is not None and not (out_dir / STATE).is_file():
            few = training[:: max(1, len(training) // _WARM_START_PICTURES)]
            start_from(network, start_path(params.start), [load_image(sample) for sample in few])
        run = cls(
            network, params, out_dir, RunState(identity(training, validation, params, labels))
        )
        if (out_dir / STATE).is_file():
            run.state = load_state(
                out_dir / STATE, run.state.identity, run.network, run.average, run.optimizer
            )
        trusted = [
            sample for sample in training if not sample.suspect and sample.id not in EMPTY_MASKS
        ]
        run.sampler = BalancedSampler(trusted, free_fraction=params.free_fraction)
        run.validation = validation
        if not run.finished():
            run.pictures = training_pictures(trusted, run.protocol, labels)
            run.grafts = Grafts(run.pictures, labels) if params.graft_fraction else None
        return run

    sampler: BalancedSampler

    def finished(self) -> bool:
        """Return whether all epochs are done, or too many of them brought nothing better."""
        stale = self.state.epoch - 1 - self.state.best_epoch
        return self.state.epoch >= self.params.epochs or 0 < self.params.patience <= stale

    def is_coarse(self) -> bool:
        """Return whether the current epoch shows everything at half its size."""
        return self.state.epoch < int(self.params.coarse_fraction * self.params.epochs)

    def batches(self) -> Iterator[Batch]:
        """Yield the batches of the current epoch."""
        return epoch_batches(
            self.pictures,
            self.sampler,
            self.plan.coarse(self.network.stride) if self.is_coarse() else self.plan,
            epoch=self.state.epoch,
            steps=self.steps,
            grafts=self.grafts,
        )

    def step(self, batch: Batch) -> float:
        """Fit the weights to one batch and return its loss."""
        done = int(self.average.n_averaged)
        rate = one_cycle(done / (self.steps * self.params.epochs)) * self.params.learning_rate
        for group in self.optimizer.param_groups:
            group["lr"] = rate * group["rate_share"]
        self.network.train()
        self.optimizer.zero_grad(set_to_none=True)
        loss = self.devices.backward(batch, self._loss)
        torch.nn.utils.clip_grad_norm_(self.network.parameters(), _MAX_GRADIENT_NORM)
        self.optimizer.step()
        self.average.update_parameters(self.network)
        return loss

    def _loss(self, batch: Batch) -> Tensor:
        with torch.autocast("cpu", torch.bfloat16, enabled=self.bf16):
            answer = self.model(batch.image.to(memory_format=torch.channels_last))
            target = batch.target
            if self.teacher is not None:
                taught = torch.sigmoid(self.teacher(batch.image)[0].detach())
                target = torch.lerp(target, taught.float(), self.params.teacher_weight)
        whole = self.devices.gather(*answer, target, batch.kind)
        return segmentation_loss(
            *whole, dice_weight=self.params.dice_weight, kind_weight=self.params.kind_weight
        )

    def end_epoch(self, loss: float) -> Validation:
        """Score the averaged weights, keep them if they are the best, and write the state.

        After a coarse epoch they are kept as they are.
        """
        averaged: SegmentationNetwork = self.average.module  # type: ignore[assignment]
        coarse = self.is_coarse()
        found = Validation({}, {})
        if not coarse:
            found = self.devices.of_first(
                lambda: validate(averaged, self.validation, self.protocol, bf16=self.bf16)
            )
        figures = found.figures
        score = figures.get("score", self.state.best_score)
        if coarse or self.params.keep == "last" or score > self.state.best_score:
            self.state.best_score, self.state.best_epoch = score, self.state.epoch
            meta = {
                "training": self.state.identity,
                "epoch": self.state.epoch,
                "validation": figures,
            }
            if self.devices.rank == 0:
                save_checkpoint(self.out_dir / CHECKPOINT, averaged, meta)
        self.state.history.append({"loss": loss, **figures})
        self.state.epoch += 1
        if self.devices.rank == 0:
            state = self.out_dir / STATE
            save_state(state, self.state, self.network, self.average, self.optimizer)
        return found


def _teacher(params: TrainParams) -> nn.Module | None:
    """Return the network whose probabilities are taught, its weights fixed."""
    if params.teacher is None:
        return None
    network, _ = load_checkpoint(Path(params.teacher))
    return network.eval().requires_grad_(False).to(memory_format=torch.channels_last)  # type: ignore[call-overload,no-any-return]


def _has_fast_bf16() -> bool:
    """Return whether this processor multiplies bfloat16 in hardware."""
    return torch.cpu._is_avx512_bf16_supported() or torch.cpu._is_amx_tile_supported()


def _log(logger: Logger, found: Validation, state: RunState) -> None:
    """Log an epoch's figures, and the pictures of the best one so far."""
    for name, value in state.history[-1].items():
        logger.log_metric(name, value)
    if state.best_epoch == state.epoch - 1:
        for name, picture in found.triptychs.items():
            logger.log_image(f"{name}.png", picture)
    logger.next_step()


def _shown(batches: Iterable[Batch], run: _Run, progress: Progress | None) -> Iterable[Batch]:
    if progress is None:
        return batches
    return progress(batches, run.steps, f"epoch {run.state.epoch + 1}/{run.params.epochs}")
