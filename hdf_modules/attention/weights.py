"""The learned weights of distributional attention by name; their order is that of the fields."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

from torch import Tensor

Flat = Sequence[Any]
"""Tensors in the order of `NAMES`, None for those that are absent."""


class TemporalWeights(NamedTuple):
    """Learned weights of the temporal branch, for T frames and K channel bins.

    Attributes:
        mean_weight: α_p, weight of the mean statistic, one number.
        peak_weight: β_p, weight of the maximum statistic, one number.
        scale: γ, (T, K).
        distance_scale: δ, (T, K).
        mixing: L, the linear map over time, (T, T).
        query, query_bias: Q, (K, K) and (K).
        key, key_bias: K, (K, K) and (K).
        value, value_bias: V, (K, K) and (K).
    """

    mean_weight: Tensor
    peak_weight: Tensor
    scale: Tensor
    distance_scale: Tensor
    mixing: Tensor
    query: Tensor
    query_bias: Tensor
    key: Tensor
    key_bias: Tensor
    value: Tensor
    value_bias: Tensor


class FrequencyWeights(NamedTuple):
    """Learned weights of the frequency branch, for n×n frequencies.

    Attributes:
        clean_weight: α_d, weight of the clean spectrum, one number.
        perturbed_weight: β_d, weight of the perturbed spectrum, one number.
        noise: ν, perturbation per frequency, (n²), or None without perturbation.
        noise_scale: a, its factor, (n²), or None for 1.
        spread_scale: b, perturbation per λ_w of spread, (n²), or None without perturbation.
        slope: κ, one number.
        scale: γ_f, (n²).
        shift: β_f, (n²).
        readout: kernels of the read-out convolutions, one or two.
    """

    clean_weight: Tensor
    perturbed_weight: Tensor
    noise: Tensor | None
    noise_scale: Tensor | None
    spread_scale: Tensor | None
    slope: Tensor
    scale: Tensor
    shift: Tensor
    readout: tuple[Tensor, ...]


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

    def flat(self) -> list[Tensor | None]:
        """Return the tensors one after the other, as `NAMES` has them; None for absent ones."""
        first, second = (*self.frequency.readout, None)[:2]
        return [*self.temporal, *self.frequency[:-1], first, second, *self[2:]]

    @classmethod
    def from_flat(cls, flat: Flat) -> AttentionWeights:
        """Undo `flat`."""
        readout = tuple(flat[19:20] if flat[20] is None else flat[19:21])
        frequency = *flat[11:19], readout
        return cls(TemporalWeights(*flat[:11]), FrequencyWeights(*frequency), *flat[21:])


NAMES = (
    *(f"temporal.{name}" for name in TemporalWeights._fields),
    *(f"frequency.{name}" for name in FrequencyWeights._fields[:-1]),
    "frequency.readout.0",
    "frequency.readout.1",
    *AttentionWeights._fields[2:],
)
"""The one order of all weights: kernels compare it with their own before they take pointers."""


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
