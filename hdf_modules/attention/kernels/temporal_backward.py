"""Backward of the temporal gate of one clip, from its bins."""

from __future__ import annotations

import triton
import triton.language as tl

from hdf_modules.attention.kernels.common import end_channel, first_channel, product
from hdf_modules.attention.kernels.temporal import distances, earlier, gate_frames, put, table


@triton.jit
def sums_of_frames(
    row_sums,
    clip,
    blocks,
    FRAMES: tl.constexpr,
    CHANNELS: tl.constexpr,
    ROWS: tl.constexpr,
    MANY: tl.constexpr,
):
    """Sum what every block and channel gives each frame."""
    t = tl.arange(0, ROWS)[:, None]
    summed = tl.zeros((ROWS, MANY), tl.float32)
    for start in range(0, blocks * CHANNELS, MANY):
        each = start + tl.arange(0, MANY)[None, :]
        block, channel = each // CHANNELS, each % CHANNELS
        at = ((clip * blocks + block) * FRAMES + t) * CHANNELS + channel
        inside = (t < FRAMES) & (block < blocks)
        summed += tl.load(row_sums + at, mask=inside, other=0.0)
    return tl.sum(summed, 1)


@triton.jit
def sign(values):
    """-1, 0 or 1."""
    return tl.where(values > 0, 1.0, tl.where(values < 0, -1.0, 0.0))


@triton.jit
def mixture_backward(row_sums, gate_at, grads, back, w, clip, blocks, FRAMES: tl.constexpr,
                     LENGTH: tl.constexpr, CHANNELS: tl.constexpr, ROWS: tl.constexpr,
                     MANY: tl.constexpr, WEIGHTS: tl.constexpr):  # fmt: skip
    """Gradient of the attention's output of each frame; store w_t's and r's share."""
    t = tl.arange(0, ROWS)
    grad = sums_of_frames(row_sums, clip, blocks, FRAMES, CHANNELS, ROWS, MANY)
    gate = tl.load(gate_at + LENGTH + t, mask=t < FRAMES, other=0.0)
    weight = tl.load(w.temporal_weight)
    if w.strength is not None:
        tl.store(grads + WEIGHTS - 1, tl.sum(grad * (0.5 * weight * (1 + gate) - 1), 0))
        grad = grad * tl.load(w.strength)
    else:
        tl.store(grads + WEIGHTS - 1, 0.0)
    tl.store(grads + WEIGHTS - 3, tl.sum(grad * 0.5 * (1 + gate), 0))
    grad = 0.5 * weight * grad
    if back is not None:
        grad = tl.sum(table(back, FRAMES, LENGTH, ROWS, ROWS) * grad[:, None], 0)
    made = tl.load(gate_at + t, mask=t < LENGTH, other=0.0)
    return grad * made * (1 - made)


@triton.jit
def attention_backward(grad, steps, work, grads, w, LENGTH: tl.constexpr, BINS: tl.constexpr,
                       ROWS: tl.constexpr, COLUMNS: tl.constexpr, STEP: tl.constexpr):  # fmt: skip
    """Gradient of the tokens; store those of the linear maps."""
    L: tl.constexpr = LENGTH
    K: tl.constexpr = BINS
    k = tl.arange(0, COLUMNS)
    t = tl.arange(0, ROWS)
    tokens_at, query_at, key_at = steps + L * K, steps + 2 * L * K, steps + 3 * L * K
    attention_at = steps + 4 * L * K
    scores_grad, query_grad, key_grad = work, work + L * L, work + L * L + L * K
    weights = table(attention_at, L, L, ROWS, ROWS)
    value = tl.load(attention_at + L * L + t, mask=t < L, other=0.0)
    out = tl.sum(weights * value[None, :], 1)
    of_scores = weights * grad[:, None] * (value[None, :] - out[:, None])
    put(scores_grad, of_scores / tl.sqrt(K * 1.0), L, L, ROWS, ROWS)
    of_value = tl.sum(weights * grad[:, None], 0)
    tl.debug_barrier()
    of_query = product(scores_grad, L, 1, key_at, K, 1, L, L, K, ROWS, COLUMNS, STEP)
    put(query_grad, of_query, L, K, ROWS, COLUMNS)
    of_key = product(scores_grad, 1, L, query_at, K, 1, L, L, K, ROWS, COLUMNS, STEP)
    put(key_grad, of_key, L, K, ROWS, COLUMNS)
    tl.debug_barrier()

    grads += 2 + 2 * L * K + L * L
    of_weight = product(query_grad, 1, K, tokens_at, K, 1, K, L, K, COLUMNS, COLUMNS, STEP)
    put(grads, of_weight, K, K, COLUMNS, COLUMNS)
    tl.store(grads + K * K + k, tl.sum(of_query, 0), mask=k < K)
    grads += K * K + K
    of_weight = product(key_grad, 1, K, tokens_at, K, 1, K, L, K, COLUMNS, COLUMNS, STEP)
    put(grads, of_weight, K, K, COLUMNS, COLUMNS)
    tl.store(grads + K * K + k, tl.sum(of_key, 0), mask=k < K)
    grads += K * K + K
    # The value's mean over the bins is what counts: each of its rows gets the same.
    tokens = table(tokens_at, L, K, ROWS, COLUMNS)
    of_row = tl.sum(tokens * of_value[:, None], 0) / K
    put(grads, tl.broadcast_to(of_row[None, :], (COLUMNS, COLUMNS)), K, K, COLUMNS, COLUMNS)
    tl.store(grads + K * K + k, tl.sum(of_value, 0) / K + 0.0 * k, mask=k < K)

    value_weight = tl.sum(table(w.temporal_value, K, K, COLUMNS, COLUMNS), 0) / K
    of_tokens = of_value[:, None] * value_weight[None, :]
    of_tokens += product(query_grad, K, 1, w.temporal_query, K, 1, L, K, K, ROWS, COLUMNS, STEP)
    of_tokens += product(key_grad, K, 1, w.temporal_key, K, 1, L, K, K, ROWS, COLUMNS, STEP)
    return of_tokens


@triton.jit
def importance_backward(grad, bins, work, grads, w, LENGTH: tl.constexpr, BINS: tl.constexpr,
                        OVER_TIME: tl.constexpr, ROWS: tl.constexpr,
                        COLUMNS: tl.constexpr):  # fmt: skip
    """Gradients of mean and maximum from that of the sigmoid's argument."""
    L: tl.constexpr = LENGTH
    K: tl.constexpr = BINS
    mean, peak = table(bins, L, K, ROWS, COLUMNS), table(bins + L * K, L, K, ROWS, COLUMNS)
    mean_weight, peak_weight = tl.load(w.temporal_mean_weight), tl.load(w.temporal_peak_weight)
    scale = table(w.temporal_scale, L, K, ROWS, COLUMNS)
    distance_scale = table(w.temporal_distance_scale, L, K, ROWS, COLUMNS)
    centred, distance = distances(mean, L, K, ROWS, COLUMNS)
    put(grads + 2, grad * (mean_weight * mean + peak_weight * peak), L, K, ROWS, COLUMNS)
    put(grads + 2 + L * K, grad * distance, L, K, ROWS, COLUMNS)
    of_pooled = grad * scale
    tl.store(grads, tl.sum(tl.sum(of_pooled * mean, 1), 0))
    tl.store(grads + 1, tl.sum(tl.sum(of_pooled * peak, 1), 0))

    of_distance = tl.sum(grad * distance_scale, 1)[:, None]
    of_centred = of_distance * centred / tl.where(distance > 0, distance, 1.0)
    of_mean, _ = distances(of_centred, L, K, ROWS, COLUMNS)
    of_mean += mean_weight * of_pooled
    # The change |A_t − A_{t−1}|, which is subtracted, is of each entry and of the one before it.
    before, exists = earlier(bins, L, K, ROWS, COLUMNS, OVER_TIME, 0)
    of_mean -= tl.where(exists, sign(mean - before) * grad, 0.0)
    behind, exists = earlier(bins, L, K, ROWS, COLUMNS, OVER_TIME, 1)
    of_behind, exists = earlier(work, L, K, ROWS, COLUMNS, OVER_TIME, 1)
    of_mean += tl.where(exists, sign(behind - mean) * of_behind, 0.0)
    return of_mean, peak_weight * of_pooled


@triton.jit
def temporal_backward(
    row_sums,
    bins,
    work,
    mean_grad,
    peak_grad,
    grads,
    there,
    back,
    w,
    clip,
    size,
    blocks,
    FRAMES: tl.constexpr,
    LENGTH: tl.constexpr,
    CHANNELS: tl.constexpr,
    BINS: tl.constexpr,
    OVER_TIME: tl.constexpr,
    ROWS: tl.constexpr,
    COLUMNS: tl.constexpr,
    SLOTS: tl.constexpr,
    WORK: tl.constexpr,
    WEIGHTS: tl.constexpr,
    MANY: tl.constexpr,
    STEP: tl.constexpr,
):
    """Store the gradients of the branch's weights, and of each element of a bin's mean."""
    L: tl.constexpr = LENGTH
    K: tl.constexpr = BINS
    bins += clip * 2 * L * K
    steps = work + clip * WORK
    work = steps + SLOTS
    grads += clip * WEIGHTS
    gate_frames(bins, steps, back, w, FRAMES, L, K, OVER_TIME, ROWS, COLUMNS, STEP)
    tl.debug_barrier()
    gate_at = steps + 4 * L * K + L * L + L
    grad = mixture_backward(row_sums, gate_at, grads, back, w, clip, blocks, FRAMES, L, CHANNELS,
                            ROWS, MANY, WEIGHTS)  # fmt: skip
    of_tokens = attention_backward(grad, steps, work, grads, w, L, K, ROWS, COLUMNS, STEP)
    work += L * L + 2 * L * K
    put(work, of_tokens, L, K, ROWS, COLUMNS)
    tl.debug_barrier()

    of_mixing = product(work, K, 1, steps, 1, K, L, K, L, ROWS, ROWS, STEP)
    put(grads + 2 + 2 * L * K, of_mixing, L, L, ROWS, ROWS)
    of_importance = product(w.temporal_mixing, 1, L, work, K, 1, L, L, K, ROWS, COLUMNS, STEP)
    importance = table(steps, L, K, ROWS, COLUMNS)
    of_argument = of_importance * importance * (1 - importance)
    work += L * K
    put(work, of_argument, L, K, ROWS, COLUMNS)
    tl.debug_barrier()

    of_mean, of_peak = importance_backward(of_argument, bins, work, grads, w, L, K, OVER_TIME, ROWS,
                                           COLUMNS)  # fmt: skip
    if there is not None:
        work += L * K
        put(work, of_mean, L, K, ROWS, COLUMNS)
        put(work + L * K, of_peak, L, K, ROWS, COLUMNS)
        tl.debug_barrier()
        of_mean = product(there, 1, FRAMES, work, K, 1, FRAMES, L, K, ROWS, COLUMNS, STEP)
        work += L * K
        of_peak = product(there, 1, FRAMES, work, K, 1, FRAMES, L, K, ROWS, COLUMNS, STEP)
    k = tl.arange(0, COLUMNS)[None, :]
    members = end_channel(k, CHANNELS, K) - first_channel(k, CHANNELS, K)
    put(mean_grad + clip * FRAMES * K, of_mean / (members * size), FRAMES, K, ROWS, COLUMNS)
    put(peak_grad + clip * FRAMES * K, of_peak, FRAMES, K, ROWS, COLUMNS)
