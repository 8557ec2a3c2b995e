from __future__ import annotations

import numpy as np
import pytest
import torch

from magtiles_seg.config import TrainParams
from magtiles_seg.dataset.samples import Sample, find_samples
from magtiles_seg.dataset.synthetic import write_dataset
from magtiles_seg.evaluate.protocols import get_protocol, prepare
from magtiles_seg.infer.backends.eager import InferenceGraph
from magtiles_seg.labels import LABELS
from magtiles_seg.model.network import SegmentationNetwork, build_network
from magtiles_seg.train.devices import Devices
from magtiles_seg.train.validation import ValidationPart, folded


@pytest.fixture(scope="module")
def samples(tmp_path_factory: pytest.TempPathFactory) -> tuple[Sample, ...]:
    return find_samples(write_dataset(tmp_path_factory.mktemp("tiles"), tiles=8, seed=2))[::2]


@pytest.fixture(scope="module")
def network() -> SegmentationNetwork:
    """A network whose batch norms are not those of a fresh one."""
    torch.manual_seed(3)
    network = build_network("nano")
    torch.nn.init.normal_(network.defect_head.weight, std=0.3)
    for _ in range(20):
        network(torch.rand(4, 1, 64, 64) * 255)
    return network.eval()


def test_folded_network_answers_alike_and_leaves_the_other_alone(
    network: SegmentationNetwork,
) -> None:
    before = {name: tensor.clone() for name, tensor in network.state_dict().items()}
    image = torch.rand(2, 1, 64, 96) * 255
    copy = folded(network)
    assert not any(isinstance(module, torch.nn.BatchNorm2d) for module in copy.modules())
    with torch.no_grad():
        for ours, theirs in zip(copy(image), network(image), strict=True):
            assert torch.allclose(ours, theirs, atol=1e-4)
    assert all(torch.equal(before[name], tensor) for name, tensor in network.state_dict().items())


def test_validation_part_in_batches_answers_as_picture_by_picture(
    samples: tuple[Sample, ...], network: SegmentationNetwork
) -> None:
    protocol = get_protocol("T")
    part = ValidationPart(samples, protocol, labels=LABELS, stride=network.stride)
    devices = Devices(TrainParams(device="cpu", precision="fp32"))
    answers = dict(part._answers(network, devices))
    assert sorted(answers) == list(range(len(samples)))
    graph = InferenceGraph(network)
    for index, sample in enumerate(samples):
        image, _ = prepare(sample, protocol)
        with torch.inference_mode():
            probability, classes = graph(torch.from_numpy(image)[None])
        assert np.allclose(answers[index].probability, probability[0].numpy(), atol=1e-4)
        sure = probability[0].numpy() > 0.51
        same = answers[index].classes == classes[0].numpy()
        assert not sure.any() or same[sure].mean() > 0.99


def test_validation_part_gives_a_triptych_of_each_class(
    samples: tuple[Sample, ...], network: SegmentationNetwork
) -> None:
    part = ValidationPart(samples, get_protocol("T"), labels=LABELS, stride=network.stride)
    found = part.score(network, Devices(TrainParams(device="cpu", precision="fp32")))
    assert len(found.triptychs) == len({sample.label for sample in samples})
    for name, drawn in found.triptychs.items():
        sample = next(sample for sample in samples if sample.id == name)
        image, _ = prepare(sample, get_protocol("T"))
        assert np.array_equal(drawn[:, : image.shape[1]], np.stack([image] * 3, axis=2))
    figures = [value for name, value in found.figures.items() if name != "score"]
    assert found.figures["score"] == pytest.approx(np.mean(figures))
