"""Several trained networks that answer as one."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TypeAlias, cast

import torch
from torch import Tensor, nn

from magtiles_seg.errors import ConfigError
from magtiles_seg.model.card import JOINT
from magtiles_seg.model.network import SegmentationNetwork
from magtiles_seg.model.patch_network import PatchNetwork

_LEAST_SHARE = 1e-6
"""Of a logit; a smaller part is lost in float32."""

Member: TypeAlias = SegmentationNetwork | PatchNetwork
"""What an ensemble is made of."""


class Ensemble(nn.Module):
    """The mean of several networks' defect logits, each with its share.

    What one network misses another may find, so that masks and scores of new tiles are better than
    those of any member. The class of a defect is told by the first.

    Attributes:
        members: The networks.
        shares: (M,) float32, each member's part of the logit; their sum is 1.
        architecture: Those of the members, joined by `JOINT`.
        labels: Class names by index, background first; the same for all members.
        stride: Height and width of the input must be multiples of this.
        class_stride: The input's size over that of `class_logits`.
    """

    shares: Tensor

    def __init__(self, members: Sequence[Member], shares: Sequence[float]) -> None:
        """Join networks; their weights are shared with the ensemble.

        Args:
            members: At least two.
            shares: One for each, above 0; they are divided by their sum.

        Raises:
            ConfigError: There is one member alone, a share is missing, not above 0 or too small
                beside the others, or the members tell other classes apart.
        """
        super().__init__()
        if len(members) < 2:
            raise ConfigError(f"an ensemble has at least two members, got {len(members)}")
        parts = parts_of(shares, len(members))
        first = members[0]
        for other in members:
            if other.labels != first.labels:
                raise ConfigError(
                    f"the members have other classes: {', '.join(first.labels)} and "
                    f"{', '.join(other.labels)}"
                )
        self.members = nn.ModuleList(members)
        self.register_buffer("shares", torch.tensor(parts))
        self.architecture = JOINT.join(member.architecture for member in members)
        self.labels = first.labels
        self.stride = max(member.stride for member in members)
        self.class_stride = first.class_stride

    def forward(self, image: Tensor) -> tuple[Tensor, Tensor]:
        """Return the logits of a batch of grey pictures, as a `SegmentationNetwork` does."""
        answers = [member(image) for member in members_of(self)]
        return self.joined([defect for defect, _ in answers]), answers[0][1]

    def joined(self, logits: Sequence[Tensor]) -> Tensor:
        """Return the ensemble's logit of the members' defect logits, all of one shape."""
        joint = self.shares[0] * logits[0]
        for share, logit in zip(self.shares[1:], logits[1:], strict=True):
            joint = joint + share * logit
        return joint

    @property
    def receptive_field_px(self) -> int:
        """Side of the square of input pixels that one output pixel can depend on, in px."""
        return max(member.receptive_field_px for member in members_of(self))


Network: TypeAlias = Member | Ensemble
"""What a checkpoint holds."""


def parts_of(shares: Sequence[float], members: int) -> list[float]:
    """Return each member's part of a logit, of which the sum is 1.

    Args:
        shares: One for each member, above 0.
        members: How many there are.

    Raises:
        ConfigError: A share is missing, not above 0 or too small beside the others.
    """
    if len(shares) != members:
        raise ConfigError(f"expected a share for each of {members}, got {len(shares)}")
    if not all(0 < share < math.inf for share in shares):
        raise ConfigError(f"a member's share must be above 0, got {list(shares)}")
    parts = [share / sum(shares) for share in shares]
    if min(parts) < _LEAST_SHARE:
        raise ConfigError(f"the shares are too far apart, or too large: got {list(shares)}")
    return parts


def members_of(network: Network) -> list[Member]:
    """Return an ensemble's members, and of any other network itself."""
    if isinstance(network, Ensemble):
        return [cast("Member", member) for member in network.members]
    return [network]
