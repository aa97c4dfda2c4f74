"""The learned weights of distributional attention by name, as the equations take them."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

from torch import Tensor

Map = Callable[[Tensor], Tensor]


class TemporalWeights(NamedTuple):
    """Learned weights of the temporal branch, for T frames and K channel bins.

    Attributes:
        mean_weight: α_p, weight of the mean statistic, one number.
        peak_weight: β_p, weight of the maximum statistic, one number.
        scale: γ, (T, K).
        distance_scale: δ, (T, K).
        mixing: L, a linear map of the last axis, T to T.
        query: Q, a linear map of the last axis, K to K.
        key: K, likewise.
        value: V, likewise.

    Example:
        >>> import torch
        >>> number, table, linear = torch.tensor(1.0), torch.ones(16, 8), torch.nn.Linear(8, 8)
        >>> mixing = torch.nn.Linear(16, 16)
        >>> weights = TemporalWeights(number, number, table, table, mixing, *[linear] * 3)
        >>> weights.scale.shape  # 16 frames, 8 bins
        torch.Size([16, 8])
    """

    mean_weight: Tensor
    peak_weight: Tensor
    scale: Tensor
    distance_scale: Tensor
    mixing: Map
    query: Map
    key: Map
    value: Map


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
        readout: the read-out convolution, (batch, n², height, width) to one map.

    Example:
        >>> import torch
        >>> number, each = torch.tensor(1.0), torch.ones(49)  # 7×7 frequencies
        >>> readout = torch.nn.Conv2d(49, 1, 1, bias=False)
        >>> clean = [number, number, None, None, None]  # without perturbation
        >>> FrequencyWeights(*clean, number, each, each, readout).noise is None
        True
    """

    clean_weight: Tensor
    perturbed_weight: Tensor
    noise: Tensor | None
    noise_scale: Tensor | None
    spread_scale: Tensor | None
    slope: Tensor
    scale: Tensor
    shift: Tensor
    readout: Map


class MixtureWeights(NamedTuple):
    """What the two gates are mixed with.

    Attributes:
        temporal: w_t, one number.
        frequency: w_s, one number.
        strength: r, one number, or None where it is fixed at 1.
    """

    temporal: Tensor
    frequency: Tensor
    strength: Tensor | None


class AttentionWeights(NamedTuple):
    """All of them as tensors, None for those that are absent, in the one order that there is.

    The names are those of the equations' weights, ``temporal_`` and ``frequency_`` before them.
    """

    temporal_mean_weight: Tensor
    temporal_peak_weight: Tensor
    temporal_scale: Tensor
    temporal_distance_scale: Tensor
    temporal_mixing: Tensor
    temporal_query: Tensor
    temporal_query_bias: Tensor | None
    temporal_key: Tensor
    temporal_key_bias: Tensor | None
    temporal_value: Tensor
    temporal_value_bias: Tensor | None
    frequency_clean_weight: Tensor
    frequency_perturbed_weight: Tensor
    frequency_noise: Tensor | None
    frequency_noise_scale: Tensor | None
    frequency_spread_scale: Tensor | None
    frequency_slope: Tensor
    frequency_scale: Tensor
    frequency_shift: Tensor
    frequency_readout: Tensor
    frequency_second_readout: Tensor | None
    temporal_weight: Tensor
    frequency_weight: Tensor
    strength: Tensor | None


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
