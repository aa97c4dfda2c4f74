"""Modules that the ablation compares with, or takes apart, distributional attention."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from hdf_modules import DistributionalAttention


class SqueezeExcitation(nn.Module):
    """Squeeze-and-excitation (Hu et al., CVPR 2018) with as many parameters as the attention.

    Twice a sigmoid of zero: like the attention it starts as the identity.

    Args:
        channels: C of the input (batch, channels, time, height, width).
        num_frames: T of the attention whose size it matches.
        options: of the attention.
    """

    def __init__(self, channels: int, num_frames: int, **options: Any) -> None:
        super().__init__()
        matched = DistributionalAttention(channels, num_frames, **options, device="meta")
        count = sum(p.numel() for p in matched.parameters())
        hidden = max(1, round((count - channels) / (2 * channels + 1)))
        self.squeeze, self.excite = nn.Linear(channels, hidden), nn.Linear(hidden, channels)
        nn.init.zeros_(self.excite.weight)
        nn.init.zeros_(self.excite.bias)

    def forward(self, x: Tensor) -> Tensor:
        weights = 2 * torch.sigmoid(self.excite(torch.relu(self.squeeze(x.mean((2, 3, 4))))))
        return x * weights[:, :, None, None, None]


class FrameGain(nn.Module):
    """One learned gain a frame, whatever the clip shows: twice a sigmoid, the identity at first.

    Args:
        channels: ignored; as many for every width.
        num_frames: T of the input (batch, channels, time, height, width).
    """

    def __init__(self, channels: int, num_frames: int, **_: Any) -> None:
        super().__init__()
        self.gain = nn.Parameter(torch.zeros(num_frames))

    def forward(self, x: Tensor) -> Tensor:
        return x * (2 * torch.sigmoid(self.gain))[:, None, None]


def build_attention(*args: Any, only: str | None = None, **options: Any) -> nn.Module:
    """Attention of both branches, or with one held at the middle of its range.

    A branch whose last linear map is zero says sigmoid(0) = ½ whatever comes in; frozen, it keeps
    saying so. What acts is drawn and computed as if both did.

    Args:
        *args: of the attention.
        only: ``"temporal"`` or ``"frequency"``, the branch that acts; None for both.
        **options: of the attention.
    """
    attention = DistributionalAttention(*args, **options)
    if only is None:
        return attention
    temporal, frequency = attention.temporal, attention.frequency
    if only == "temporal":
        frequency.requires_grad_(False)
        nn.init.zeros_(frequency.readout[-1])
    else:
        temporal.requires_grad_(False)
        nn.init.zeros_(temporal.value.weight)
        nn.init.zeros_(temporal.value.bias)
    return attention
