"""The screen: a small network that says which parts of a picture a model must look at."""

from __future__ import annotations

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from magtiles_seg.model.cells import CELL_PX, halved
from magtiles_seg.model.encoders import NanoEncoder
from magtiles_seg.model.network import GREY_CENTRE, GREY_SCALE, reach_down

_PRIOR_LOGIT = -3.0
"""What an untrained screen answers: most cells hold nothing."""

_CHANNELS, _BLOCKS = (16, 32, 64), (0, 1, 1)


class ScreenNetwork(nn.Module):
    """Dense convolutions on a picture at half its size, down to one logit a cell.

    It has no decoder and no stage at full size: on a CPU it costs a hundredth of `lite0`.

    Attributes:
        encoder: Features at strides 4, 8 and 16 of the halved picture.
        head: 1 x 1 convolution to the logit of P(the cell holds something).
    """

    def __init__(self) -> None:
        super().__init__()
        self.encoder = NanoEncoder(_CHANNELS, _BLOCKS)
        self.head = nn.Conv2d(_CHANNELS[-1], 1, 1)
        nn.init.constant_(self.head.bias, _PRIOR_LOGIT)  # type: ignore[arg-type]

    def forward(self, halved: Tensor) -> Tensor:
        """Return the logits of a batch of halved pictures.

        Args:
            halved: (N, 1, H / 2, W / 2) float, grey levels 0..255; H and W multiples of `CELL_PX`.

        Returns:
            (N, 1, H / CELL_PX, W / CELL_PX) float, of P(the cell holds something).
        """
        features = self.encoder((halved - GREY_CENTRE) / GREY_SCALE)
        logit: Tensor = self.head(features[-1])
        return logit

    @property
    def receptive_field_px(self) -> int:
        """Side of the square of picture that one cell's answer can depend on, in px."""
        reach, _ = reach_down(self.modules())
        return 2 * 2 * reach + CELL_PX


class ScreenGraph(nn.Module):
    """A screen from halved grey bytes to probabilities: what is exported."""

    def __init__(self, network: ScreenNetwork) -> None:
        """Wrap a network; its weights are shared."""
        super().__init__()
        self.network = network

    def forward(self, image: Tensor) -> Tensor:
        """Return (N, h / 16, w / 16) float32 in [0, 1] of (N, h, w) uint8."""
        return torch.sigmoid(self.network(image.float().unsqueeze(1)))[:, 0]

    def cells(self, picture: NDArray[np.uint8]) -> NDArray[np.float32]:
        """Return what `infer.screen.Screen.cells` does of a picture (H, W) uint8."""
        with torch.inference_mode():
            found: NDArray[np.float32] = self(torch.from_numpy(halved(picture))[None])[0].numpy()
        return found
