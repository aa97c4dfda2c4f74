"""The three statistics of a clip that the attention is computed from."""

from __future__ import annotations

from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from hdf_modules.attention.constants import constant


class ClipStatistics(NamedTuple):
    """What distributional attention reads from a clip (batch, time, channels, height, width).

    Attributes:
        mean: average over positions and over the channels of each bin, (batch, time, bins).
        peak: maximum over positions and over the channels of each bin, (batch, time, bins).
        total: sum over channels of the average over time, (batch, height, width).
    """

    mean: Tensor
    peak: Tensor
    total: Tensor


def clip_statistics(clip: Tensor, bins: int, dtype: torch.dtype) -> ClipStatistics:
    """Pool a clip over positions, over time, and over channel bins.

    Bin i of K covers the channels ⌊iC/K⌋ … ⌈(i+1)C/K⌉−1, as adaptive pooling does; bins overlap
    where K does not divide C. Among equal maxima the first one receives the gradient.

    Args:
        clip: (batch, time, channels, height, width).
        bins: number K of channel bins.
        dtype: accumulate in this dtype, and return it.

    Example:
        >>> stats = clip_statistics(torch.ones(2, 3, 4, 5, 6), bins=2, dtype=torch.float32)
        >>> stats.mean.shape, stats.total[0, 0, 0].item()
        (torch.Size([2, 3, 2]), 4.0)
    """
    frames, channels = clip.shape[1:3]
    mean = clip.mean((-2, -1), dtype=dtype)
    peak = clip.flatten(-2).max(-1).values.to(dtype)
    total = clip.sum((1, 2), dtype=dtype) / frames
    members, share = constant(channel_bins, channels, bins, like=mean)
    return ClipStatistics(mean @ share, peak[..., members].max(-1).values, total)


def channel_bins(
    channels: int, bins: int, dtype: torch.dtype, device: torch.device
) -> tuple[Tensor, Tensor]:
    """Return the channels of each bin, and the matrix that averages over them.

    Returns:
        Indices (bins, width), where a bin narrower than the widest repeats its last channel, and
        weights (channels, bins), columns of which sum to one.
    """
    index, channel = torch.arange(bins, device=device), torch.arange(channels, device=device)
    first = index * channels // bins
    end = ((index + 1) * channels + bins - 1) // bins
    width = max(-(-(i + 1) * channels // bins) - i * channels // bins for i in range(bins))
    members = (first[:, None] + torch.arange(width, device=device)).minimum(end[:, None] - 1)
    inside = (channel[:, None] >= first) & (channel[:, None] < end)
    return members, inside.to(dtype) / (end - first).to(dtype)


def resample_time(values: Tensor, length: int) -> Tensor:
    """Resample (batch, time, bins) linearly along time, ``align_corners=False``."""
    if values.shape[1] == length:
        return values
    return F.interpolate(values.mT, size=length, mode="linear", align_corners=False).mT


def resampling_matrix(source: int, target: int, dtype: torch.dtype, device: torch.device) -> Tensor:
    """Matrix (target, source) of :func:`resample_time`."""
    unit = torch.eye(source, dtype=dtype, device=device).unsqueeze(0)
    return F.interpolate(unit, size=target, mode="linear", align_corners=False)[0].T.contiguous()
