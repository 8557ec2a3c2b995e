"""The yardstick of the benchmark: a 41 M-parameter U-Net over ResNet-34, with random weights.

It has the shape of the network that public examples train on this data: two convolutions between
the halves, sub-pixel upsampling, and the picture itself joined at the end. Its speed does not
depend on its weights.

Sources: https://arxiv.org/abs/1505.04597 (U-Net) · https://arxiv.org/abs/1512.03385 (ResNet) ·
https://arxiv.org/abs/1609.05158 (sub-pixel convolution).
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

SIDE_PX = 224
"""Height and width of the pictures that the reference takes."""

_DEPTHS, _WIDTHS = (3, 4, 6, 3), (64, 128, 256, 512)


class ReferenceNetwork(nn.Module):
    """(N, 3, H, W) float in, logits (N, 2, H, W) out; H and W multiples of 32."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = _convolve(3, 64, kernel=7, stride=2)
        self.pool = nn.MaxPool2d(3, 2, 1)
        before = (64, *_WIDTHS[:-1])
        self.stages = nn.ModuleList(
            nn.Sequential(
                _Residual(entry, width, 1 if width == 64 else 2),
                *(_Residual(width, width) for _ in range(depth - 1)),
            )
            for entry, width, depth in zip(before, _WIDTHS, _DEPTHS, strict=True)
        )
        self.middle = nn.Sequential(_convolve(512, 1024), _convolve(1024, 512))
        self.ups = nn.ModuleList(
            _Up(below, skip, out)
            for below, skip, out in (
                (512, 256, 512),
                (512, 128, 384),
                (384, 64, 256),
                (256, 64, 96),
            )
        )
        self.last_up = _double(96, 96)
        self.head = nn.Sequential(_Residual(99, 99), nn.Conv2d(99, 2, 1))

    def forward(self, image: Tensor) -> Tensor:
        """Return the logits."""
        skips = [self.stem(image)]
        x = self.pool(skips[0])
        for stage in self.stages:
            x = stage(x)
            skips.append(x)
        x = self.middle(x)
        for up, skip in zip(self.ups, reversed(skips[:-1]), strict=True):
            x = up(x, skip)
        logits: Tensor = self.head(torch.cat([self.last_up(x), image], 1))
        return logits


class _Residual(nn.Module):
    def __init__(self, entry: int, width: int, stride: int = 1) -> None:
        super().__init__()
        self.body = nn.Sequential(
            _convolve(entry, width, stride=stride),
            nn.Conv2d(width, width, 3, 1, 1, bias=False),
            nn.BatchNorm2d(width),
        )
        self.short = (
            nn.Identity()
            if entry == width
            else nn.Sequential(
                nn.Conv2d(entry, width, 1, stride, bias=False), nn.BatchNorm2d(width)
            )
        )

    def forward(self, x: Tensor) -> Tensor:
        return nn.functional.relu(self.body(x) + self.short(x))


class _Up(nn.Module):
    def __init__(self, below: int, skip: int, out: int) -> None:
        super().__init__()
        joined = below // 2 + skip
        self.twice = _double(below, below // 2)
        self.norm = nn.BatchNorm2d(skip)
        self.body = nn.Sequential(_convolve(joined, out), _convolve(out, out))

    def forward(self, x: Tensor, skip: Tensor) -> Tensor:
        joined = torch.cat([self.twice(x), self.norm(skip)], 1)
        answer: Tensor = self.body(nn.functional.relu(joined))
        return answer


def _convolve(entry: int, width: int, *, kernel: int = 3, stride: int = 1) -> nn.Sequential:
    return nn.Sequential(
        nn.Conv2d(entry, width, kernel, stride, kernel // 2, bias=False),
        nn.BatchNorm2d(width),
        nn.ReLU(inplace=True),
    )


def _double(entry: int, width: int) -> nn.Sequential:
    return nn.Sequential(nn.Conv2d(entry, 4 * width, 1), nn.ReLU(inplace=True), nn.PixelShuffle(2))
