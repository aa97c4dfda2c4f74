"""The temporal branch with its gradient written out: the fast path beside ``temporal``."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from hdf_modules.functional.temporal import TemporalWeights


class Kept(NamedTuple):
    """Intermediate values of :func:`temporal_gate`, T frames and K bins.

    Attributes:
        mean, peak: A and M, (batch, T, K).
        pooled: α_p A + β_p M, (batch, T, K).
        centred: A − mean_K A.
        distance: Wd, (batch, T, 1).
        change: A minus the previous frame's or bin's A.
        importance: I.
        tokens: F, (batch·T, K).
        query, key: (batch, T, K).
        value: mean over K of V, (batch, T).
        attention: softmax of the scores, (batch, T, T).
        gate: g, (batch, T).
    """

    mean: Tensor
    peak: Tensor
    pooled: Tensor
    centred: Tensor
    distance: Tensor
    change: Tensor
    importance: Tensor
    tokens: Tensor
    query: Tensor
    key: Tensor
    value: Tensor
    attention: Tensor
    gate: Tensor


def temporal_gate(mean: Tensor, peak: Tensor, weights: TemporalWeights, consistency: str) -> Kept:
    """Compute g and what its gradient needs; arguments as for ``temporal.temporal_gate``."""
    w, (batch, frames, bins) = weights, mean.shape
    pooled = torch.addcmul(mean * w.mean_weight, peak, w.peak_weight)
    centred = mean - mean.mean(-1, keepdim=True)
    distance = torch.linalg.vector_norm(centred, dim=-1, keepdim=True)
    change = mean.diff(dim=_axis(consistency))
    importance = torch.addcmul(w.scale * pooled, w.distance_scale, distance)
    _later(importance, consistency).sub_(change.abs())
    importance.sigmoid_()
    tokens = torch.bmm(w.mixing.expand(batch, -1, -1), importance).view(-1, bins)
    query = torch.addmm(w.query_bias, tokens, w.query.mT).view(batch, frames, bins)
    key = torch.addmm(w.key_bias, tokens, w.key.mT).view(batch, frames, bins)
    value = torch.mv(tokens, w.value.mean(0)).add_(w.value_bias.mean()).view(batch, frames)
    attention = torch.softmax(torch.bmm(query, key.mT).mul_(bins**-0.5), -1)
    gate = torch.bmm(attention, value.unsqueeze(-1)).squeeze(-1).sigmoid_()
    return Kept(
        mean,
        peak,
        pooled,
        centred,
        distance,
        change,
        importance,
        tokens,
        query,
        key,
        value,
        attention,
        gate,
    )


def temporal_gate_backward(
    grad: Tensor, kept: Kept, weights: TemporalWeights, consistency: str
) -> tuple[Tensor, Tensor, TemporalWeights]:
    """Gradients of g, (batch, T), with respect to A, M and the weights."""
    k = kept
    tokens, by_attention = _attention_backward(grad, k, weights)
    batch = len(grad)
    importance = torch.bmm(weights.mixing.mT.expand(batch, -1, -1), tokens)
    mixing = torch.bmm(tokens, k.importance.mT).sum(0)
    logit = torch.ops.aten.sigmoid_backward(importance, k.importance)
    pooled = logit * weights.scale
    by_distance = (logit * weights.distance_scale).sum(-1, keepdim=True) / k.distance
    by_distance.masked_fill_(k.distance == 0, 0)
    by_centred = k.centred * by_distance
    grad_mean = pooled * weights.mean_weight + by_centred - by_centred.mean(-1, keepdim=True)
    by_change = _later(logit, consistency) * k.change.sign()
    _later(grad_mean, consistency).sub_(by_change)
    _earlier(grad_mean, consistency).add_(by_change)
    return (
        grad_mean,
        pooled * weights.peak_weight,
        TemporalWeights(
            (pooled * k.mean).sum(),
            (pooled * k.peak).sum(),
            (logit * k.pooled).sum(0),
            (logit * k.distance).sum(0),
            mixing,
            *by_attention,
        ),
    )


def _attention_backward(
    grad: Tensor, kept: Kept, weights: TemporalWeights
) -> tuple[Tensor, tuple[Tensor, ...]]:
    """Gradients with respect to the tokens and to Q, K, V and their biases, in that order."""
    k, w, (batch, frames, bins) = kept, weights, kept.query.shape
    upstream = torch.ops.aten.sigmoid_backward(grad, k.gate).unsqueeze(-1)
    scores = torch.ops.aten._softmax_backward_data(
        upstream * k.value.unsqueeze(1), k.attention, -1, grad.dtype
    ).mul_(bins**-0.5)
    query = torch.bmm(scores, k.key).view(-1, bins)
    key = torch.bmm(scores.mT, k.query).view(-1, bins)
    value = torch.bmm(k.attention.mT, upstream).view(-1)
    tokens = torch.addmm(query @ w.query, key, w.key).addr_(value, w.value.mean(0))
    by_value = (torch.mv(k.tokens.mT, value) / bins).expand(bins, bins)
    by_value_bias = (value.sum() / bins).expand(bins)
    by_query, by_key = query.mT @ k.tokens, key.mT @ k.tokens
    biases = query.sum(0), key.sum(0)
    grads = (by_query, biases[0], by_key, biases[1], by_value, by_value_bias)
    return tokens.view(batch, frames, bins), grads


def _axis(consistency: str) -> int:
    return 1 if consistency == "time" else 2


def _later(values: Tensor, consistency: str) -> Tensor:
    """View of all frames or bins but the first."""
    return values.narrow(_axis(consistency), 1, values.shape[_axis(consistency)] - 1)


def _earlier(values: Tensor, consistency: str) -> Tensor:
    """View of all frames or bins but the last."""
    return values.narrow(_axis(consistency), 0, values.shape[_axis(consistency)] - 1)
