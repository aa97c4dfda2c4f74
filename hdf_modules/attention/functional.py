"""Distributional attention as equations: statistics of a clip, its two gates, their product.

Cui et al. 2025 (arXiv:2507.15765), Figure 2. This alone defines the result.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from functools import partial
from typing import Any, NamedTuple, TypeVar

import torch
import torch.nn.functional as F
from torch import Tensor

from hdf_modules.attention.constants import MOST, channel_bins, dct_basis, may_keep
from hdf_modules.attention.exporting import exporting
from hdf_modules.attention.layout import BoundLayout
from hdf_modules.attention.weights import (
    AttentionOptions,
    AttentionWeights,
    FrequencyWeights,
    MixtureWeights,
    TemporalWeights,
)

SPREAD_RATE = 0.05  # λ_w, the share of a frequency's spread in its perturbation
EPS = 1e-6  # in the standard deviation over the frequencies, and beside it
Built = TypeVar("Built")
_store: dict[Any, Any] = {}


def attend(
    x: Tensor, axes: BoundLayout, weights: AttentionWeights, options: AttentionOptions
) -> Tensor:
    """Multiply x by its gate."""
    w = weights
    flat: list[Any] = [*w]  # torch 2.6 does not compile slices of named tuples
    mixing = partial(F.linear, weight=w.temporal_mixing)
    query = partial(F.linear, weight=w.temporal_query, bias=w.temporal_query_bias)
    key = partial(F.linear, weight=w.temporal_key, bias=w.temporal_key_bias)
    value = partial(F.linear, weight=w.temporal_value, bias=w.temporal_value_bias)
    kernels = [k for k in (w.frequency_readout, w.frequency_second_readout) if k is not None]
    maps = (mixing, query, key, value)
    of_time = TemporalWeights(*[*flat[:4], *maps])
    of_frequency = FrequencyWeights(*[*flat[11:19], partial(readout, kernels=kernels)])
    stats = clip_statistics(axes.clip_view(x), options.bins, w.temporal_weight.dtype)
    temporal = temporal_gate(stats.mean, stats.peak, of_time, options.consistency)
    frequency = frequency_gate(stats.total, of_frequency, options.dct_size)
    return multiplied(x, axes, *gate_parts(temporal, frequency, MixtureWeights(*flat[21:])))


def multiplied(x: Tensor, axes: BoundLayout, by_time: Tensor, by_position: Tensor) -> Tensor:
    """Multiply x by the sum of a part by frame and a part by position."""
    factor = by_time[:, :, None, None] + by_position[:, None]
    return x * axes.layout.broadcast(factor).to(x.dtype)


def gate_parts(
    temporal: Tensor, frequency: Tensor, weights: MixtureWeights
) -> tuple[Tensor, Tensor]:
    """Split the factor 1 + r(G − 1) into a part by frame and a part by position, which add up.

    G = ½ ( w_t (1 + g) + w_s (1 + f) ); g and the first part are (batch, time), f and the second
    (batch, height, width).
    """
    by_time = 0.5 * weights.temporal * (1 + temporal)
    by_position = 0.5 * weights.frequency * (1 + frequency)
    if weights.strength is None:
        return by_time, by_position
    return 1 + weights.strength * (by_time - 1), weights.strength * by_position


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
    return ClipStatistics(torch.tensordot(mean, share, 1), peak[..., members].max(-1).values, total)


def resample_time(values: Tensor, length: int) -> Tensor:
    """Resample (batch, time, bins) linearly along time, ``align_corners=False``."""
    return F.interpolate(values.mT, size=length, mode="linear", align_corners=False).mT


def temporal_gate(mean: Tensor, peak: Tensor, weights: TemporalWeights, consistency: str) -> Tensor:
    """Compute g, the gate of each frame.

    The weights are made for T frames; a clip of another length is resampled to it, and its gate
    back.

    Temporal branch::

        Wd = ‖A − mean_K A‖₂          distance of each frame's bins from their average
        D = |A_t − A_{t−1}|           change from the previous frame, zero at the first
        I = σ( γ ⊙ (α_p A + β_p M) + δ ⊙ Wd − D )
        F = L I                                   over time
        g = σ( mean_K [ softmax(QKᵀ/√K) V ] )     attention over the frames of F

    The mean over K is taken on V before the attention instead of after it: the same numbers.

    Args:
        mean: A, mean statistic, (batch, time, K).
        peak: M, maximum statistic, (batch, time, K).
        weights: the learned weights.
        consistency: axis of D, ``"time"`` (temporal consistency, the paper's meaning) or
            ``"bins"`` (the released code's axis).

    Returns:
        g in (0, 1), (batch, time).

    Example:
        >>> one, table, same = torch.tensor(0.5), torch.zeros(8, 4), torch.nn.Identity()
        >>> weights = TemporalWeights(one, one, table, table, same, same, same, same)
        >>> temporal_gate(torch.rand(2, 8, 4), torch.rand(2, 8, 4), weights, "time").shape
        torch.Size([2, 8])
    """
    w, frames, length = weights, mean.shape[1], weights.scale.shape[0]
    exported = torch.compiler.is_compiling() and exporting()  # it serves clips of any length
    resampled = exported or frames != length
    if resampled:
        mean, peak = resample_time(mean, length), resample_time(peak, length)
    pooled = w.mean_weight * mean + w.peak_weight * peak
    centred = mean - mean.mean(-1, keepdim=True)
    distance = torch.linalg.vector_norm(centred, dim=-1, keepdim=True)
    axis, first = (1, (0, 0, 1, 0)) if consistency == "time" else (2, (1, 0))
    change = F.pad(mean.diff(dim=axis).abs(), first)
    importance = torch.sigmoid(w.scale * pooled + w.distance_scale * distance - change)
    # Contiguous, or frozen weights would give other last bits than those that are trained.
    tokens = w.mixing(importance.mT.contiguous()).mT.contiguous()
    scores = w.query(tokens) @ w.key(tokens).mT / mean.shape[-1] ** 0.5
    value = w.value(tokens).mean(-1, keepdim=True)
    gate = torch.sigmoid(torch.softmax(scores, dim=-1) @ value)
    return (resample_time(gate, frames) if resampled else gate).squeeze(-1)


def frequency_gate(total: Tensor, weights: FrequencyWeights, size: int) -> Tensor:
    """Compute f, the gate of each position.

    Frequency branch: local spectrum → perturbation → dynamic tanh → read-out convolution → sigmoid.
    The released code repeats the DCT filters over the channels; here the spectrum is that of the
    channel sum, which is the same numbers.

    Args:
        total: m, sum over channels of the average over time, (batch, height, width).
        weights: the learned weights.
        size: n, side of the DCT's neighbourhood.

    Returns:
        f in (0, 1), (batch, height, width).

    Example:
        >>> one, each, mean = torch.tensor(1.0), torch.ones(9), lambda maps: maps.mean(1)
        >>> weights = FrequencyWeights(one, one, None, None, None, one, each, each, mean)
        >>> frequency_gate(torch.rand(2, 14, 14), weights, size=3).shape
        torch.Size([2, 14, 14])
    """
    maps = dynamic_tanh(perturbed(local_spectrum(total, size), weights), weights)
    return torch.sigmoid(weights.readout(maps).squeeze(1))


def local_spectrum(image: Tensor, size: int) -> Tensor:
    """DCT-II coefficients of the n×n neighbourhood of every position, zero-padded.

    Separable: along the rows, then along the columns, each a product with the n×n basis.

    Args:
        image: (batch, height, width).
        size: n, odd.

    Returns:
        (batch, n², height, width); frequency v·n + u has u along the height and v along the width.
    """
    height, width = image.shape[-2:]
    basis = constant(dct_basis, size, like=image)
    image = F.pad(image, (size // 2,) * 4)
    rows = torch.stack([image[:, i : i + height] for i in range(size)], 1)
    # The batched product: a matrix times a batch would copy the maps to fold them.
    basis = basis.expand(image.shape[0], -1, -1)
    rows = torch.bmm(basis, rows.flatten(2)).unflatten(-1, (height, -1))
    columns = torch.stack([rows[..., j : j + width] for j in range(size)], 1)
    return torch.bmm(basis, columns.flatten(2)).view(-1, size * size, height, width)


def perturbed(spectrum: Tensor, weights: FrequencyWeights) -> Tensor:
    """Mix the clean and the perturbed spectrum: d' = ½(α_d d + β_d adv).

    adv = d + sign(d) ⊙ (ν·a + λ_w·b·‖d − mean_hw d‖₂), the norm over the positions.
    """
    w = weights
    clean = 0.5 * (w.clean_weight + w.perturbed_weight)
    if w.noise is None or w.spread_scale is None:
        return clean * spectrum
    level = spectrum.mean((-2, -1), keepdim=True)
    deviation = torch.linalg.vector_norm(spectrum - level, dim=(-2, -1))
    # A map no larger than half a window has one value at the lowest frequency everywhere: it
    # deviates from its mean by rounding alone, which has no direction.
    whole = torch.linalg.vector_norm(spectrum.detach(), dim=(-2, -1))
    rounding = 16 * torch.finfo(spectrum.dtype).eps * whole
    deviation = deviation.masked_fill(deviation <= rounding, 0)
    offset = w.noise if w.noise_scale is None else w.noise * w.noise_scale
    size = 0.5 * w.perturbed_weight * (offset + SPREAD_RATE * w.spread_scale * deviation)
    return clean * spectrum + spectrum.sign() * size[..., None, None]


def dynamic_tanh(spectrum: Tensor, weights: FrequencyWeights) -> Tensor:
    """Adaptive dynamic tanh: tanh(κ/(s+ε) d) ⊙ γ_f + β_f.

    s = √(var + ε), the unbiased variance over the frequencies of a position. Written as
    tanh(z) = 2σ(2z) − 1, because a CPU's sigmoid is several times faster.
    """
    w = weights
    flat = spectrum.flatten(2)
    rest = flat - flat.mean(1, keepdim=True)
    variance = rest.square().sum(1, keepdim=True) / (flat.shape[1] - 1)
    slope = 2 * w.slope / (torch.sqrt(variance + EPS) + EPS)
    fitted = torch.sigmoid(slope * flat) * (2 * w.scale[:, None]) + (w.shift - w.scale)[:, None]
    return fitted.view_as(spectrum)


def readout(maps: Tensor, kernels: Iterable[Tensor]) -> Tensor:
    """Convolve the maps to one, with a ReLU before every convolution but the first."""
    first, *second = kernels
    maps = convolve(maps, first)
    for kernel in second:
        maps = convolve(torch.relu(maps), kernel)
    return maps


def convolve(maps: Tensor, kernel: Tensor) -> Tensor:
    """Zero-padded ("same") convolution of (batch, in, height, width) with (out, in, k, k), k odd.

    One matrix product gives every tap's contribution, which is then shifted into place: CPU
    convolutions are slow with one output channel.
    """
    out, _, size, _ = kernel.shape
    height, width = maps.shape[-2:]
    matrix = kernel.permute(0, 2, 3, 1).reshape(out * size * size, -1)
    taps = torch.bmm(matrix.expand(maps.shape[0], -1, -1), maps.flatten(2))
    taps = F.pad(taps.unflatten(-1, (height, width)), (size // 2,) * 4)
    taps = taps.unflatten(1, (out, size, size))
    rows = taps[:, :, 0, :, :height]
    for i in range(1, size):
        rows = rows + taps[:, :, i, :, i : i + height]
    result = rows[:, :, 0, :, :width]
    for j in range(1, size):
        result = result + rows[:, :, j, :, j : j + width]
    return result


def constant(build: Callable[..., Built], *sizes: int, like: Tensor) -> Built:
    """Return ``build(*sizes, dtype, device)`` in the dtype and on the device of ``like``.

    Kept between calls, except where it must not outlive the call: where tensors are traced or
    faked, within `nothing_kept`, and while a CUDA graph is captured.
    """
    if torch.compiler.is_compiling() or type(like) not in (Tensor, torch.nn.Parameter):
        return build(*sizes, like.dtype, like.device)
    key = (build, sizes, like.dtype, like.device)
    if key in _store:
        return _store[key]
    with torch.inference_mode(False):  # an inference tensor could never be used in training
        made = build(*sizes, like.dtype, like.device)
    capturing = like.is_cuda and torch.cuda.is_current_stream_capturing()
    if may_keep.get() and not capturing and len(_store) < MOST:
        _store[key] = made  # and never forgotten: a captured graph may read it
    return made
