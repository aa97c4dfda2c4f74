"""Distributional attention as a function of a clip's statistics."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

from torch import Tensor

from hdf_modules.functional.frequency import FrequencyWeights, frequency_gate
from hdf_modules.functional.statistics import ClipStatistics, clip_statistics, resample_time
from hdf_modules.functional.temporal import TemporalWeights, temporal_gate
from hdf_modules.layouts import BoundLayout


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
        temporal_weight: w_t, ().
        frequency_weight: w_s, ().
        strength: r, (), or None where it is fixed at 1.
    """

    temporal: TemporalWeights
    frequency: FrequencyWeights
    temporal_weight: Tensor
    frequency_weight: Tensor
    strength: Tensor | None

    def flat(self) -> list[Tensor | None]:
        """All tensors in one list."""
        *branch, readout = self.frequency
        return [*self.temporal, *branch, *self[2:], *readout]

    @classmethod
    def from_flat(cls, flat: Sequence[Any]) -> AttentionWeights:
        """Undo :meth:`flat`."""
        temporal = len(TemporalWeights._fields)
        frequency = temporal + len(FrequencyWeights._fields) - 1
        return cls(
            TemporalWeights(*flat[:temporal]),
            FrequencyWeights(*(*flat[temporal:frequency], tuple(flat[frequency + 3 :]))),
            *flat[frequency : frequency + 3],
        )


class Task(NamedTuple):
    """All that attending to an input takes besides the input.

    Attributes:
        axes: where the input keeps its axes.
        weights: in the dtype of the computation.
        options: what the weights' shapes do not say.
    """

    axes: BoundLayout
    weights: AttentionWeights
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
    axes, weights, options = task
    stats = clip_statistics(axes.clip_view(x), options.bins, weights.temporal_weight.dtype)
    factor = add_parts(*gate_parts(stats, weights, options))
    return x * axes.broadcast(factor).to(x.dtype)
