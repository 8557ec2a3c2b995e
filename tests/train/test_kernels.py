from __future__ import annotations

import subprocess
import sys

import pytest
import torch
from torch import Tensor, nn

from magtiles_seg.model.losses import segmentation_loss
from magtiles_seg.model.network import build_network
from magtiles_seg.train.kernels import DepthwiseConv2d, Doubling, kept_memory, use_fast_gradients


def _gradients(layer: nn.Module, x: Tensor, dtype: torch.dtype) -> list[Tensor]:
    """Return answer, gradient of the input and gradient of the weights, as float."""
    x = x.clone().to(memory_format=torch.channels_last).requires_grad_()
    layer.zero_grad()
    with torch.autocast("cpu", dtype, enabled=dtype != torch.float32):
        answer = layer(x)
    torch.manual_seed(1)
    answer.backward(torch.randn(answer.shape).to(answer.dtype))
    (weight,) = layer.parameters()
    assert x.grad is not None
    assert weight.grad is not None
    return [answer.detach().float(), x.grad.float(), weight.grad.float()]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("size_hw", [(14, 12), (13, 7)])
@pytest.mark.parametrize("stride", [1, 2])
@pytest.mark.parametrize("kernel", [3, 5])
def test_depthwise_has_the_gradients_of_torch(
    kernel: int, stride: int, size_hw: tuple[int, int], dtype: torch.dtype
) -> None:
    torch.manual_seed(0)
    plain = nn.Conv2d(24, 24, kernel, stride, kernel // 2, groups=24, bias=False)
    fast = nn.Sequential(nn.Conv2d(24, 24, kernel, stride, kernel // 2, groups=24, bias=False))
    fast[0].load_state_dict(plain.state_dict())
    use_fast_gradients(fast)
    assert isinstance(fast[0], DepthwiseConv2d)
    x = torch.randn(3, 24, *size_hw)
    exact = _gradients(plain, x, torch.float32)
    tolerance = 1e-5 if dtype == torch.float32 else 2e-2
    for ours, theirs in zip(_gradients(fast, x, dtype), exact, strict=True):
        assert (ours - theirs).abs().max() <= tolerance * theirs.abs().max()


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_doubling_has_the_gradients_of_torch(dtype: torch.dtype) -> None:
    torch.manual_seed(0)
    plain = nn.Upsample(scale_factor=2, mode="nearest")
    fast = nn.Sequential(nn.Upsample(scale_factor=2, mode="nearest"))
    use_fast_gradients(fast)
    assert isinstance(fast[0], Doubling)
    image, gradient = torch.randn(2, 5, 4, 3, dtype=dtype), torch.randn(2, 5, 8, 6, dtype=dtype)
    found = []
    for layer in (plain, fast):
        x = image.clone().to(memory_format=torch.channels_last).requires_grad_()
        answer = layer(x)
        answer.backward(gradient)
        found.append((answer, x.grad))
    for ours, theirs in zip(*found, strict=True):
        assert torch.equal(ours, theirs) if dtype == torch.float32 else torch.allclose(ours, theirs)


def test_use_fast_gradients_leaves_what_a_network_learns_and_answers() -> None:
    torch.manual_seed(0)
    plain = build_network("small").to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    fast = build_network("small").to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    fast.load_state_dict(plain.state_dict())
    use_fast_gradients(fast)
    assert sum(isinstance(module, DepthwiseConv2d) for module in fast.modules()) == 11
    assert any(isinstance(module, Doubling) for module in fast.modules())
    image = torch.rand(2, 1, 128, 128) * 255
    target, class_target = (
        (torch.rand(2, 1, 128, 128) > 0.8).float(),
        torch.randint(-1, 5, (2, 32, 32)),
    )
    for network in (plain, fast):
        defect, classes = network(image)
        loss = segmentation_loss(
            defect, classes, target, class_target, dice_weight=1, class_weight=0.3
        )
        loss.backward()  # type: ignore[no-untyped-call]
    for ours, theirs in zip(fast.parameters(), plain.parameters(), strict=True):
        assert ours.grad is not None
        assert theirs.grad is not None
        assert torch.allclose(ours.grad, theirs.grad, atol=1e-4 * float(theirs.grad.abs().max()))
    with torch.no_grad():
        assert torch.equal(fast.eval()(image)[0], plain.eval()(image)[0])


def test_use_fast_gradients_leaves_other_convolutions_alone() -> None:
    others = nn.Sequential(
        nn.Conv2d(8, 8, 3, padding=1, bias=False),
        nn.Conv2d(8, 16, 3, padding=1, groups=8, bias=False),
        nn.Conv2d(8, 8, 3, padding=1, groups=8),
        nn.Conv2d(8, 8, 3, groups=8, bias=False),
        nn.Conv2d(8, 8, (3, 5), padding=(1, 2), groups=8, bias=False),
    )
    use_fast_gradients(others)
    assert all(type(module) is nn.Conv2d for module in others)


_FAULTS = """
import resource, sys, torch
from contextlib import nullcontext
from magtiles_seg.train.kernels import kept_memory
def faults():
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt
with kept_memory() if sys.argv[1] == "kept" else nullcontext():
    for _ in range(20):
        torch.ones(10_000_000)
    before = faults()
    for _ in range(5):
        torch.ones(10_000_000)
    print(faults() - before)
"""


@pytest.mark.skipif(sys.platform != "linux", reason="glibc's allocator")
def test_kept_memory_is_not_fetched_from_the_system_again() -> None:
    def faults(word: str) -> int:
        command = [sys.executable, "-c", _FAULTS, word]
        done = subprocess.run(command, check=True, capture_output=True, text=True, timeout=120)
        return int(done.stdout)

    if faults("usual") < 50:
        pytest.skip("the C library keeps memory by itself")
    assert faults("kept") < faults("usual") / 5


def test_kept_memory_ends_with_its_context() -> None:
    with pytest.raises(KeyError), kept_memory():
        raise KeyError
    assert torch.ones(10_000_000).sum() == 10_000_000
