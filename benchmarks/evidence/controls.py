"""Modules that the ablation compares with, or takes apart, distributional attention."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from hdf_modules import DistributionalAttention


class SqueezeExcitation(nn.Module):
    """Squeeze-and-excitation (Hu et al., CVPR 2018) with as many parameters as the attention.

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

    def forward(self, x: Tensor) -> Tensor:
        weights = torch.sigmoid(self.excite(torch.relu(self.squeeze(x.mean((2, 3, 4))))))
        return x * weights[:, :, None, None, None]


class OneBranch(DistributionalAttention):
    """Attention with one branch held at the middle of its range.

    Args:
        only: ``"temporal"`` or ``"frequency"``, the branch that acts.
        args, options: of the attention.
    """

    def __init__(self, *args: Any, only: str, **options: Any) -> None:
        super().__init__(*args, **options)
        self.only = only

    def gates(self, x: Tensor, **sizes: Any) -> tuple[Tensor, Tensor]:
        temporal, frequency = super().gates(x, **sizes)
        if self.only == "temporal":
            return temporal, torch.full_like(frequency, 0.5)
        return torch.full_like(temporal, 0.5), frequency


def build_attention(*args: Any, only: str | None = None, **options: Any) -> nn.Module:
    """Attention of both branches or one."""
    if only is None:
        return DistributionalAttention(*args, **options)
    return OneBranch(*args, only=only, **options)
