"""The temporal branch: which frames matter, from the distribution of the channel statistics."""

from __future__ import annotations

from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor


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


def distribution_distance(mean: Tensor) -> Tensor:
    """Distance of each frame's bins from their average: Wd = ‖A − mean_K A‖₂, (batch, time, 1)."""
    centred = mean - mean.mean(-1, keepdim=True)
    return torch.linalg.vector_norm(centred, dim=-1, keepdim=True)


def consistency_gap(mean: Tensor, axis: str) -> Tensor:
    """Absolute change from the previous frame or bin, zero at the first.

    Args:
        mean: A, (batch, time, bins).
        axis: ``"time"`` (temporal consistency, the paper's meaning) or ``"bins"`` (the released
            code's axis).
    """
    first = (0, 0, 1, 0) if axis == "time" else (1, 0)
    return F.pad(mean.diff(dim=1 if axis == "time" else 2).abs(), first)


def temporal_gate(mean: Tensor, peak: Tensor, weights: TemporalWeights, consistency: str) -> Tensor:
    """Compute g, the gate of each frame.

    Temporal branch of distributional attention (Cui et al. 2025, arXiv:2507.15765, Fig. 2)::

        I = σ( γ ⊙ (α_p A + β_p M) + δ ⊙ Wd − D )
        F = L I                                   over time
        g = σ( mean_K [ softmax(QKᵀ/√K) V ] )     attention over the frames of F

    The mean over K is taken on V before the attention instead of after it: the same numbers.

    Args:
        mean: A, mean statistic, (batch, T, K).
        peak: M, maximum statistic, (batch, T, K).
        weights: the learned weights.
        consistency: axis of D, see :func:`consistency_gap`.

    Returns:
        g in (0, 1), (batch, T).
    """
    w = weights
    pooled = w.mean_weight * mean + w.peak_weight * peak
    importance = torch.sigmoid(
        w.scale * pooled
        + w.distance_scale * distribution_distance(mean)
        - consistency_gap(mean, consistency)
    )
    tokens = w.mixing @ importance
    query = F.linear(tokens, w.query, w.query_bias)
    key = F.linear(tokens, w.key, w.key_bias)
    value = tokens @ w.value.mean(0) + w.value_bias.mean()
    attention = torch.softmax(query @ key.mT / mean.shape[-1] ** 0.5, dim=-1)
    return torch.sigmoid((attention @ value.unsqueeze(-1)).squeeze(-1))
