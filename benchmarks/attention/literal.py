"""Distributional attention as the paper's code orders its operations: the yardstick, not for use.

Every step makes the tensor that the released code makes: the DCT filters are repeated over the
channels, the gates over the whole input, and both gated inputs exist at full size. Written from the
method's description; its parameters have the library's names, so that a state dict moves across.
"""

from __future__ import annotations

import math
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn


def dct_filters(size: int = 7) -> Tensor:
    """All size² two-dimensional filters, (size², 1, size, size)."""
    index = torch.arange(size, dtype=torch.float64)
    wave = torch.cos(math.pi / size * index[:, None] * (index + 0.5)) * math.sqrt(2 / size)
    wave[0] /= math.sqrt(2)
    return torch.einsum("ui,vj->vuij", wave, wave).reshape(size * size, 1, size, size)


class LiteralTemporal(nn.Module):
    """The temporal branch, (batch, time, channels, height, width) to (batch, time)."""

    def __init__(self, num_frames: int) -> None:
        super().__init__()
        self.mean_weight = nn.Parameter(torch.tensor(0.5))
        self.peak_weight = nn.Parameter(torch.tensor(0.5))
        self.scale = nn.Parameter(torch.ones(num_frames, num_frames))
        self.distance_scale = nn.Parameter(torch.zeros(num_frames, num_frames))
        self.mixing = nn.Linear(num_frames, num_frames, bias=False)
        self.query = nn.Linear(num_frames, num_frames)
        self.key = nn.Linear(num_frames, num_frames)
        self.value = nn.Linear(num_frames, num_frames)

    def forward(self, x: Tensor) -> Tensor:
        bins = self.scale.shape[1]
        mean = F.adaptive_avg_pool1d(x.mean((-2, -1)), bins)
        peak = F.adaptive_max_pool1d(x.amax((-2, -1)), bins)
        distance = (mean - mean.mean(-1, keepdim=True)).norm(dim=-1, keepdim=True)
        gap = torch.zeros_like(mean)
        gap[..., 1:] = (mean[..., 1:] - mean[..., :-1]).abs()
        pooled = self.mean_weight * mean + self.peak_weight * peak
        importance = torch.sigmoid(self.scale * pooled + self.distance_scale * distance - gap)
        tokens = self.mixing(importance.transpose(1, 2)).transpose(1, 2)
        query, key, value = self.query(tokens), self.key(tokens), self.value(tokens)
        attention = torch.softmax(query @ key.transpose(1, 2) / math.sqrt(bins), dim=-1)
        return torch.sigmoid((attention @ value).mean(-1))


class LiteralFrequency(nn.Module):
    """The frequency branch, (batch, time, channels, height, width) to (batch, height, width)."""

    filters: Tensor

    def __init__(self, channels: int, size: int = 7) -> None:
        super().__init__()
        maps = size * size
        self.register_buffer(
            "filters", dct_filters(size).float().repeat(1, channels, 1, 1), persistent=False
        )
        self.clean_weight = nn.Parameter(torch.tensor(0.5))
        self.perturbed_weight = nn.Parameter(torch.tensor(0.5))
        self.noise = nn.Parameter(0.1 * torch.randn(maps))
        self.noise_scale = nn.Parameter(torch.ones(maps))
        self.spread_scale = nn.Parameter(torch.zeros(maps))
        self.slope = nn.Parameter(torch.tensor(0.5))
        self.scale = nn.Parameter(torch.ones(maps))
        self.shift = nn.Parameter(torch.zeros(maps))
        self.readout = nn.ParameterList([nn.Parameter(torch.empty(1, maps, 7, 7))])
        nn.init.kaiming_uniform_(self.readout[0], a=math.sqrt(5))

    def forward(self, x: Tensor) -> Tensor:
        d = F.conv2d(x.mean(1), self.filters, padding=self.filters.shape[-1] // 2)
        noise, scale, spread = (
            p[None, :, None, None] for p in (self.noise, self.noise_scale, self.spread_scale)
        )
        centred = d - d.mean((-2, -1), keepdim=True)
        deviation = centred.norm(dim=(-2, -1), keepdim=True)
        adverse = d + d.sign() * (noise * scale + 0.05 * spread * deviation)
        mixed = (self.clean_weight * d + self.perturbed_weight * adverse) / 2
        std = torch.sqrt(mixed.var(1, keepdim=True) + 1e-6)
        fitted = torch.tanh(self.slope / (std + 1e-6) * mixed)
        fitted = fitted * self.scale[:, None, None] + self.shift[:, None, None]
        return torch.sigmoid(F.conv2d(fitted, self.readout[0], padding=3)).squeeze(1)


class LiteralAttention(nn.Module):
    """The whole module on (batch, time, channels, height, width), T = num_frames only."""

    def __init__(self, channels: int, num_frames: int = 16, **_: Any) -> None:
        super().__init__()
        self.temporal = LiteralTemporal(num_frames)
        self.frequency = LiteralFrequency(channels)
        self.temporal_weight = nn.Parameter(torch.tensor(0.8))
        self.frequency_weight = nn.Parameter(torch.tensor(0.3))

    def forward(self, x: Tensor) -> Tensor:
        _, frames, channels, height, width = x.shape
        by_time = self.temporal(x)[:, :, None, None, None].repeat(1, 1, channels, height, width)
        by_position = self.frequency(x)[:, None, None].repeat(1, frames, channels, 1, 1)
        x_t = x + x * by_time
        x_s = x + x * by_position
        return (self.temporal_weight * x_t + self.frequency_weight * x_s) / 2
