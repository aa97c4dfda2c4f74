"""The two parts of the factor and their gradient, from the statistics of a clip."""

from __future__ import annotations

from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from hdf_modules.functional import fused_frequency, fused_temporal
from hdf_modules.functional.attention import AttentionOptions, AttentionWeights
from hdf_modules.functional.constants import constant
from hdf_modules.functional.statistics import ClipStatistics


class GateParts(NamedTuple):
    """What ``attention.gate_parts`` returns, and what its gradient needs.

    Attributes:
        by_time: part of the factor by frame, (batch, time).
        by_position: part by position, (batch, height, width).
        temporal, frequency: intermediate values of the two branches.
    """

    by_time: Tensor
    by_position: Tensor
    temporal: fused_temporal.Kept
    frequency: fused_frequency.Kept


def gate_parts(
    stats: ClipStatistics,
    weights: AttentionWeights,
    options: AttentionOptions,
    *,
    keep: bool = False,
) -> GateParts:
    """Evaluate both branches; arguments as for ``attention.gate_parts``.

    With ``keep``, intermediate values of the frequency branch are kept for its gradient.
    """
    w, frames, length = weights, stats.mean.shape[1], len(weights.temporal.mixing)
    mean, peak = _resample(stats.mean, length), _resample(stats.peak, length)
    temporal = fused_temporal.temporal_gate(mean, peak, w.temporal, options.consistency)
    frequency = fused_frequency.frequency_gate(
        stats.total, w.frequency, options.dct_size, keep=keep
    )
    gate = _resample(temporal.gate.unsqueeze(-1), frames).squeeze(-1)
    by_time = (gate + 1).mul_(0.5 * w.temporal_weight)
    by_position = (frequency.gate.view_as(stats.total) + 1).mul_(0.5 * w.frequency_weight)
    if w.strength is not None:
        by_time = (by_time - 1).mul_(w.strength).add_(1)
        by_position = by_position.mul_(w.strength)
    return GateParts(by_time, by_position, temporal, frequency)


def gate_parts_backward(
    by_time: Tensor,
    by_position: Tensor,
    parts: GateParts,
    weights: AttentionWeights,
    options: AttentionOptions,
) -> tuple[ClipStatistics, AttentionWeights]:
    """Gradients of both parts with respect to the statistics and to the weights.

    Args:
        by_time: gradient with respect to ``parts.by_time``.
        by_position: gradient with respect to ``parts.by_position``.
        parts: what :func:`gate_parts` returned with ``keep``; good for one use.
        weights: as given to it.
        options: as given to it.
    """
    w, p, frames = weights, parts, by_time.shape[1]
    temporal = _resample(p.temporal.gate.unsqueeze(-1), frames).squeeze(-1) + 1
    frequency = p.frequency.gate.view_as(by_position) + 1
    of_temporal = 0.5 * (by_time * temporal).sum()
    of_frequency = 0.5 * (by_position * frequency).sum()
    strength, rates = None, (0.5 * w.temporal_weight, 0.5 * w.frequency_weight)
    if w.strength is not None:
        strength = (
            w.temporal_weight * of_temporal + w.frequency_weight * of_frequency - by_time.sum()
        )
        of_temporal, of_frequency = w.strength * of_temporal, w.strength * of_frequency
        rates = (w.strength * rates[0], w.strength * rates[1])
    gate = _resample_backward((by_time * rates[0]).unsqueeze(-1), len(w.temporal.mixing))
    mean, peak, for_temporal = fused_temporal.temporal_gate_backward(
        gate.squeeze(-1), p.temporal, w.temporal, options.consistency
    )
    total, for_frequency = fused_frequency.frequency_gate_backward(
        by_position * rates[1], p.frequency, w.frequency, options.dct_size
    )
    mean, peak = _resample_backward(mean, frames), _resample_backward(peak, frames)
    return (
        ClipStatistics(mean, peak, total),
        AttentionWeights(for_temporal, for_frequency, of_temporal, of_frequency, strength),
    )


def resampling_matrix(source: int, target: int, dtype: torch.dtype, device: torch.device) -> Tensor:
    """Matrix (target, source) of ``statistics.resample_time``."""
    unit = torch.eye(source, dtype=dtype, device=device).unsqueeze(0)
    return F.interpolate(unit, size=target, mode="linear", align_corners=False)[0].T.contiguous()


def _resample(values: Tensor, length: int) -> Tensor:
    """Resample (batch, time, bins) along time."""
    if values.shape[1] == length:
        return values
    return constant(resampling_matrix, values.shape[1], length, like=values) @ values


def _resample_backward(grad: Tensor, length: int) -> Tensor:
    """Gradient of :func:`_resample` with respect to values of this length."""
    if grad.shape[1] == length:
        return grad
    return constant(resampling_matrix, length, grad.shape[1], like=grad).mT @ grad
