"""Distributional attention as a function of a clip's statistics."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Any, NamedTuple

import torch
from torch import Tensor

from hdf_modules.attention.frequency import FrequencyWeights, frequency_gate
from hdf_modules.attention.layout import BoundLayout
from hdf_modules.attention.statistics import ClipStatistics, clip_statistics, resample_time
from hdf_modules.attention.temporal import TemporalWeights, temporal_gate

Flat = Sequence[Any]  # 24 tensors, None for those that are absent


class AttentionOptions(NamedTuple):
    """What the weights' shapes do not say.

    Attributes:
        bins: K, number of channel bins.
        consistency: axis of the consistency term, ``"time"`` or ``"bins"``.
        dct_size: n, side of the local spectrum.
    """

    bins: int
    consistency: str
    dct_size: int


class AttentionWeights(NamedTuple):
    """All learned weights, in the dtype of the computation.

    Attributes:
        temporal: of the temporal branch.
        frequency: of the frequency branch.
        temporal_weight: w_t, one number.
        frequency_weight: w_s, one number.
        strength: r, one number, or None where it is fixed at 1.
    """

    temporal: TemporalWeights
    frequency: FrequencyWeights
    temporal_weight: Tensor
    frequency_weight: Tensor
    strength: Tensor | None

    @classmethod
    def from_flat(cls, flat: Flat) -> AttentionWeights:
        """Arrange tensors that come in the order of the fields, two for ``readout``."""
        readout = tuple(kernel for kernel in flat[19:21] if kernel is not None)
        frequency = *flat[11:19], readout
        return cls(TemporalWeights(*flat[:11]), FrequencyWeights(*frequency), *flat[21:])


class Task(NamedTuple):
    """All that attending to an input takes besides the input.

    Attributes:
        axes: where the input keeps its axes.
        flat: the weights in the dtype of the computation, as `AttentionWeights.from_flat` wants
            them.
        options: what the weights' shapes do not say.
    """

    axes: BoundLayout
    flat: Flat
    options: AttentionOptions


def gates(
    stats: ClipStatistics, weights: AttentionWeights, options: AttentionOptions
) -> tuple[Tensor, Tensor]:
    """Compute g, (batch, time), and f, (batch, height, width), for clips of any length."""
    frames, length = stats.mean.shape[1], weights.temporal.mixing.shape[0]
    mean, peak = resample_time(stats.mean, length), resample_time(stats.peak, length)
    temporal = temporal_gate(mean, peak, weights.temporal, options.consistency)
    frequency = frequency_gate(stats.total, weights.frequency, options.dct_size)
    return resample_time(temporal.unsqueeze(-1), frames).squeeze(-1), frequency


def gate_parts(
    stats: ClipStatistics, weights: AttentionWeights, options: AttentionOptions
) -> tuple[Tensor, Tensor]:
    """Split the factor 1 + r(G − 1) into a part by frame and a part by position, which add up.

    G = ½ ( w_t (1 + g) + w_s (1 + f) ).

    Returns:
        (batch, time) and (batch, height, width).
    """
    temporal, frequency = gates(stats, weights, options)
    by_time = 0.5 * weights.temporal_weight * (1 + temporal)
    by_position = 0.5 * weights.frequency_weight * (1 + frequency)
    if weights.strength is None:
        return by_time, by_position
    return 1 + weights.strength * (by_time - 1), weights.strength * by_position


def add_parts(by_time: Tensor, by_position: Tensor) -> Tensor:
    """Return the factor of every frame and position, (batch, time, height, width)."""
    return by_time[:, :, None, None] + by_position[:, None]


def attend(x: Tensor, task: Task) -> Tensor:
    """Multiply x by its gate: the plain path, ordinary differentiable operations."""
    axes, flat, options = task
    weights = AttentionWeights.from_flat(flat)
    with without_autocast(x):
        stats = clip_statistics(axes.clip_view(x), options.bins, weights.temporal_weight.dtype)
        factor = add_parts(*gate_parts(stats, weights, options))
        return x * axes.broadcast(factor).to(x.dtype)


def without_autocast(x: Tensor) -> AbstractContextManager[Any]:
    """Context in which tensors like x keep their dtype; nothing where autocast is off anyway."""
    device_type = x.device.type
    if device_type != "meta" and torch.is_autocast_enabled(device_type):  # meta: not known to it
        return torch.autocast(device_type, enabled=False)
    return nullcontext()
