"""Modules that the ablation compares with, or takes apart, distributional attention."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from hdf_modules import DistributionalAttention
from hdf_modules.attention.branches import TemporalBranch


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


class ContentBranch(TemporalBranch):
    """The temporal branch, and ways in which a clip might get into its gate.

    Args:
        *args: of the temporal branch.
        ways: some of ``"identity"`` (L starts as the identity: token t is frame t),
            ``"normalised"`` (statistics have mean 0 and deviation 1 along time) and ``"own"``
            (what a frame's mean statistic differs by from the clip's is read by a linear map and
            added before the last sigmoid).
    """

    def __init__(self, *args: Any, ways: Sequence[str]) -> None:
        super().__init__(*args)
        self.ways = ways
        self.own = nn.Linear(self.scale.shape[1], 1) if "own" in ways else None
        if "identity" in ways:
            nn.init.eye_(self.mixing.weight)

    def forward(self, mean: Tensor, peak: Tensor) -> Tensor:
        """Return g, (batch, time)."""
        if "normalised" in self.ways:
            mean, peak = _normalised(mean), _normalised(peak)
        gate = super().forward(mean, peak)
        if self.own is None:
            return gate
        rest = mean - mean.mean(1, keepdim=True)
        return torch.sigmoid(torch.logit(gate, 1e-6) + self.own(rest).squeeze(-1))


def _normalised(values: Tensor) -> Tensor:
    """Mean 0 and deviation 1 along time, of each bin."""
    rest = values - values.mean(1, keepdim=True)
    return rest / (rest.square().mean(1, keepdim=True) + 1e-6).sqrt()


def build_attention(
    *args: Any, only: str | None = None, content: Sequence[str] = (), **options: Any
) -> nn.Module:
    """Attention of both branches, or with one held at the middle of its range.

    A branch whose last linear map is zero says sigmoid(0) = ½ whatever comes in; frozen, it keeps
    saying so. What acts is drawn and computed as if both did.

    Args:
        *args: of the attention.
        only: ``"temporal"`` or ``"frequency"``, the branch that acts; None for both.
        content: ways of `ContentBranch`, which then is the temporal branch.
        **options: of the attention.
    """
    attention = DistributionalAttention(*args, **options)
    if content:
        sizes = attention.num_frames, attention.bins, attention.temporal.consistency
        attention.temporal = ContentBranch(*sizes, ways=content)
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
