"""What is ignored changes neither the weights nor a figure."""

from __future__ import annotations

from pathlib import Path

import cv2
import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from magtiles_seg.dataset.augment import NO_AUGMENTATION, View, training_view
from magtiles_seg.dataset.samples import find_samples, load_mask
from magtiles_seg.errors import DataError
from magtiles_seg.evaluate.protocols import get_protocol
from magtiles_seg.evaluate.scoring import Recorder
from magtiles_seg.files import write_json
from magtiles_seg.labels import IGNORED
from magtiles_seg.model.losses import IGNORED_CLASS, IGNORED_PIXEL, segmentation_loss
from magtiles_seg.result import Decision, Segmentation
from magtiles_seg.train.data import stack, training_pictures
from magtiles_seg.train.patches import _shares
from magtiles_seg.train.torch_dataset import SampleDataset
from magtiles_seg.train.views import stack_views

LABELS = ("background", "dent", "scratch")


def target() -> NDArray[np.uint8]:
    """Return 32 x 32 classes: a dent, and beside it a square of which nobody knows."""
    classes = np.zeros((32, 32), np.uint8)
    classes[4:12, 4:12] = 1
    classes[8:24, 16:32] = IGNORED
    return classes


def put(root: Path, mask: NDArray[np.uint8], labels: tuple[str, ...] = LABELS) -> Path:
    for folder, pixels in (("images", np.full_like(mask, 90)), ("masks", mask)):
        (root / folder).mkdir(parents=True)
        cv2.imwrite(str(root / folder / "a.png"), pixels)
    write_json(root / "dataset.json", {"labels": list(labels), "ignore": IGNORED})
    return root


def test_data_set_that_says_so_may_hold_ignored_pixels(tmp_path: Path) -> None:
    root = put(tmp_path, target())
    (sample,) = find_samples(root, labels=LABELS)
    assert sample.label == "dent"
    assert load_mask(sample).sum() == 64
    with pytest.raises(DataError, match=r"of the labels .*; set data_load.labels"):
        find_samples(root, labels=("background", "other", "scratch"))
    (root / "dataset.json").unlink()
    with pytest.raises(DataError, match="255=ignore"):
        find_samples(root, labels=LABELS)


@pytest.mark.parametrize("labels", [LABELS, LABELS[:2]])
def test_mask_of_ignored_pixels_alone_is_of_a_sound_picture(
    labels: tuple[str, ...], tmp_path: Path
) -> None:
    root = put(tmp_path, np.where(target() == IGNORED, IGNORED, 0).astype(np.uint8), labels)
    (sample,) = find_samples(root, labels=labels)
    assert sample.label == "free"
    assert not load_mask(sample).any()


def test_ignored_pixels_get_their_own_target_on_cpu_and_gpu_alike(tmp_path: Path) -> None:
    samples = find_samples(put(tmp_path, target()), labels=LABELS)
    (picture,) = training_pictures(samples, get_protocol("native"), LABELS)
    view = training_view(picture, 32, np.random.default_rng(0), NO_AUGMENTATION)
    batch = stack([view], class_stride=4)
    assert (batch.target[0, 0] == IGNORED_PIXEL).numpy().sum() == (view.classes == IGNORED).sum()
    assert batch.target.max() == 1
    assert set(batch.class_target.flatten().tolist()) == {IGNORED_CLASS, 0}
    parts = (torch.from_numpy(part.astype(np.float32))[None] for part in
             (view.image, view.mask, view.classes))  # fmt: skip
    on_device = stack_views(*parts, class_stride=4)
    assert torch.equal(on_device.target, batch.target)
    assert torch.equal(on_device.class_target, batch.class_target)


def test_loss_has_no_gradient_where_pixels_are_ignored() -> None:
    logit = torch.zeros(1, 1, 8, 8, requires_grad=True)
    wanted = torch.zeros(1, 1, 8, 8)
    wanted[..., :2], wanted[..., 4:] = 1, IGNORED_PIXEL
    none = torch.full((1, 2, 2), IGNORED_CLASS)
    segmentation_loss(
        logit, torch.zeros(1, 2, 2, 2), wanted, none, dice_weight=1, class_weight=0.3
    ).backward()  # type: ignore[no-untyped-call]
    assert logit.grad is not None
    assert not logit.grad[..., 4:].any()
    assert logit.grad[..., :4].all()


def test_patches_of_ignored_pixels_are_not_sound() -> None:
    view = View(np.zeros((32, 32), np.uint8), np.zeros((32, 32), np.uint8), target())
    _, known = _shares(view, (32, 32))
    assert known.reshape(4, 4)[1:3, 2:].tolist() == [[0, 0], [0, 0]]
    assert known.sum() == 12


@pytest.mark.parametrize("there", [0.1, 0.9])
def test_figures_are_the_same_whatever_is_found_in_ignored_pixels(there: float) -> None:
    truth = target()
    probability = np.where(truth == 1, 0.8, np.where(truth == IGNORED, there, 0.1))
    answer = Segmentation.from_prediction(
        np.zeros((32, 32), np.uint8),
        probability.astype(np.float32),
        np.ones((32, 32), np.uint8),
        decision=Decision(),
        labels=LABELS,
    )
    recorder = Recorder(LABELS)
    sample = type("Filed", (), {"label": "dent", "id": "a", "group": 0, "suspect": False,
                                "label_issue": False})()  # fmt: skip
    recorder.add(sample, answer, truth, empty=False)
    records = recorder.records()
    assert records.counts.tolist() == [[64, 0, 0, 32 * 32 - 64 - 256]]
    assert records.confusion.sum() == records.histogram.sum() == 32 * 32 - 256
    assert records.score[0] < 0.9


def test_torch_data_set_gives_picture_and_classes(tmp_path: Path) -> None:
    found = SampleDataset(find_samples(put(tmp_path, target()), labels=LABELS), labels=LABELS)
    image, mask = found[0]
    assert (len(found), image.dtype, tuple(image.shape)) == (1, torch.uint8, (1, 32, 32))
    assert mask.numpy().tolist() == target().tolist()
    loader = torch.utils.data.DataLoader(found, batch_size=1)
    assert [tuple(part.shape) for part in next(iter(loader))] == [(1, 1, 32, 32), (1, 32, 32)]
    turned = SampleDataset(found.samples, labels=LABELS, transform=lambda i, m: (i.flip(2), m))
    assert torch.equal(turned[0][0], image.flip(2))
