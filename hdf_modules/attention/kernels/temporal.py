"""The temporal gate of one clip, `functional.temporal_gate`, and its backward.

One program computes it all. What one step gives the next passes through memory, where matrix
products and shifted reads find it; backward takes the steps again, from the bins on.
"""

from __future__ import annotations

import triton
import triton.language as tl

from hdf_modules.attention.kernels.common import end_channel, first_channel, product


@triton.jit
def table(values, rows, columns, ROWS: tl.constexpr, COLUMNS: tl.constexpr):
    """Load a contiguous matrix, zero outside."""
    m, n = tl.arange(0, ROWS)[:, None], tl.arange(0, COLUMNS)[None, :]
    return tl.load(values + m * columns + n, mask=(m < rows) & (n < columns), other=0.0)


@triton.jit
def put(values, matrix, rows, columns, ROWS: tl.constexpr, COLUMNS: tl.constexpr):
    """Store a contiguous matrix."""
    m, n = tl.arange(0, ROWS)[:, None], tl.arange(0, COLUMNS)[None, :]
    tl.store(values + m * columns + n, matrix, mask=(m < rows) & (n < columns))


@triton.jit
def pool(
    sums,
    peaks,
    spots,
    place,
    clip,
    size,
    blocks,
    FRAMES: tl.constexpr,
    CHANNELS: tl.constexpr,
    BINS: tl.constexpr,
    ROWS: tl.constexpr,
    COLUMNS: tl.constexpr,
    WIDTH: tl.constexpr,
    BLOCKS: tl.constexpr,
):
    """Mean and maximum of the bins of every frame; the place of the maximum is stored."""
    t, k = tl.arange(0, ROWS)[:, None], tl.arange(0, COLUMNS)[None, :]
    first, end = first_channel(k, CHANNELS, BINS), end_channel(k, CHANNELS, BINS)
    known = (t < FRAMES) & (k < BINS)
    many = tl.arange(0, BLOCKS)[:, None, None]
    total = tl.zeros((ROWS, COLUMNS), tl.float32)
    top = tl.full((ROWS, COLUMNS), float("-inf"), tl.float32)
    spot = tl.zeros((ROWS, COLUMNS), tl.int32)
    for j in range(WIDTH):
        channel = first + j
        inside = known & (channel < end)
        for start in range(0, blocks, BLOCKS):
            at = (clip * blocks + start) * (FRAMES * CHANNELS) + t * CHANNELS + channel
            each = at[None, :, :] + many * (FRAMES * CHANNELS)
            mask = inside[None, :, :] & (start + many < blocks)
            total += tl.sum(tl.load(sums + each, mask=mask, other=0.0), 0)
            found = tl.load(peaks + each, mask=mask, other=float("-inf"))
            highest, block = tl.max(found, 0, return_indices=True)
            better = highest > top  # of equal ones the first stays
            top = tl.where(better, highest, top)
            there = tl.load(spots + at + block * (FRAMES * CHANNELS), mask=better, other=0)
            spot = tl.where(better, channel * size + there, spot)
    tl.store(place + (clip * FRAMES + t) * BINS + k, spot, mask=known)
    return tl.where(known, total / ((end - first) * size), 0.0), tl.where(known, top, 0.0)


@triton.jit
def earlier(mean, LENGTH: tl.constexpr, BINS: tl.constexpr, ROWS: tl.constexpr,
            COLUMNS: tl.constexpr, OVER_TIME: tl.constexpr, AHEAD: tl.constexpr):  # fmt: skip
    """Load the entry before each one on the axis of consistency, or AHEAD the one behind it.

    Returns it and whether there is one.
    """
    t, k = tl.arange(0, ROWS)[:, None], tl.arange(0, COLUMNS)[None, :]
    if OVER_TIME:
        row, column = t - 1 + 2 * AHEAD, k
    else:
        row, column = t, k - 1 + 2 * AHEAD
    exists = (row >= 0) & (row < LENGTH) & (column >= 0) & (column < BINS)
    exists = exists & (t < LENGTH) & (k < BINS)
    return tl.load(mean + row * BINS + column, mask=exists, other=0.0), exists


@triton.jit
def bias(values, BINS: tl.constexpr, COLUMNS: tl.constexpr):
    """Load a bias, zero where it is absent."""
    k = tl.arange(0, COLUMNS)
    found = tl.zeros((COLUMNS,), tl.float32)
    if values is not None:
        found = tl.load(values + k, mask=k < BINS, other=0.0)
    return found


@triton.jit
def distances(mean, LENGTH: tl.constexpr, BINS: tl.constexpr, ROWS: tl.constexpr,
              COLUMNS: tl.constexpr):  # fmt: skip
    """Centre each frame's bins; also return the length of what is left."""
    t, k = tl.arange(0, ROWS)[:, None], tl.arange(0, COLUMNS)[None, :]
    centred = mean - tl.sum(mean, 1)[:, None] / BINS
    centred = tl.where((t < LENGTH) & (k < BINS), centred, 0.0)
    return centred, tl.sqrt(tl.sum(centred * centred, 1))[:, None]


@triton.jit
def gate_frames(bins, steps, back, w, FRAMES: tl.constexpr, LENGTH: tl.constexpr,
                BINS: tl.constexpr, OVER_TIME: tl.constexpr, ROWS: tl.constexpr,
                COLUMNS: tl.constexpr, STEP: tl.constexpr):  # fmt: skip
    """Gate each frame of one clip from the mean and the maximum of its bins.

    What passes between the steps stays in the scratch: importance, tokens, query, key, attention,
    value, and the gate before and behind the resampling.
    """
    L: tl.constexpr = LENGTH
    K: tl.constexpr = BINS
    importance_at, tokens_at, query_at = steps, steps + L * K, steps + 2 * L * K
    key_at, attention_at = steps + 3 * L * K, steps + 4 * L * K
    gate_at = attention_at + L * L + L
    mean = table(bins, L, K, ROWS, COLUMNS)
    peak = table(bins + L * K, L, K, ROWS, COLUMNS)
    before, exists = earlier(bins, L, K, ROWS, COLUMNS, OVER_TIME, 0)
    change = tl.where(exists, tl.abs(mean - before), 0.0)
    _, distance = distances(mean, L, K, ROWS, COLUMNS)
    pooled = tl.load(w.temporal_mean_weight) * mean + tl.load(w.temporal_peak_weight) * peak
    scale = table(w.temporal_scale, L, K, ROWS, COLUMNS)
    distance_scale = table(w.temporal_distance_scale, L, K, ROWS, COLUMNS)
    importance = tl.sigmoid(scale * pooled + distance_scale * distance - change)
    put(importance_at, importance, L, K, ROWS, COLUMNS)
    tl.debug_barrier()

    tokens = product(w.temporal_mixing, L, 1, importance_at, K, 1, L, L, K, ROWS, COLUMNS, STEP)
    put(tokens_at, tokens, L, K, ROWS, COLUMNS)
    tl.debug_barrier()
    query = product(tokens_at, K, 1, w.temporal_query, 1, K, L, K, K, ROWS, COLUMNS, STEP)
    put(query_at, query + bias(w.temporal_query_bias, K, COLUMNS)[None, :], L, K, ROWS, COLUMNS)
    key = product(tokens_at, K, 1, w.temporal_key, 1, K, L, K, K, ROWS, COLUMNS, STEP)
    put(key_at, key + bias(w.temporal_key_bias, K, COLUMNS)[None, :], L, K, ROWS, COLUMNS)
    value_weight = tl.sum(table(w.temporal_value, K, K, COLUMNS, COLUMNS), 0) / K
    value = tl.sum(tokens * value_weight[None, :], 1)
    value += tl.sum(bias(w.temporal_value_bias, K, COLUMNS), 0) / K
    tl.debug_barrier()

    t, s = tl.arange(0, ROWS), tl.arange(0, ROWS)[None, :]
    scores = product(query_at, K, 1, key_at, 1, K, L, K, L, ROWS, ROWS, STEP)
    scores = tl.where(s < L, scores / tl.sqrt(K * 1.0), float("-inf"))
    weights = tl.exp(scores - tl.max(scores, 1)[:, None])
    weights = weights / tl.sum(weights, 1)[:, None]
    put(attention_at, weights, L, L, ROWS, ROWS)
    tl.store(attention_at + L * L + t, value, mask=t < L)
    gate = tl.sigmoid(tl.sum(weights * value[None, :], 1))
    tl.store(gate_at + t, gate, mask=t < L)
    if back is not None:
        gate = tl.sum(table(back, FRAMES, L, ROWS, ROWS) * gate[None, :], 1)
    tl.store(gate_at + L + t, gate, mask=t < FRAMES)
    return gate


@triton.jit
def temporal_forward(
    sums,
    peaks,
    spots,
    place,
    bins,
    by_time,
    steps,
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
    WIDTH: tl.constexpr,
    BLOCKS: tl.constexpr,
    SLOTS: tl.constexpr,
    STEP: tl.constexpr,
):
    """Pool the bins, gate the frames, and store the part of the factor by frame."""
    L: tl.constexpr = LENGTH
    K: tl.constexpr = BINS
    bins += clip * 2 * L * K
    steps += clip * SLOTS
    mean, peak = pool(sums, peaks, spots, place, clip, size, blocks, FRAMES, CHANNELS, K, ROWS,
                      COLUMNS, WIDTH, BLOCKS)  # fmt: skip
    if there is not None:  # made for another number of frames: resampled to it
        raw = steps + 4 * L * K + L * L + 2 * L + FRAMES
        put(raw, mean, FRAMES, K, ROWS, COLUMNS)
        put(raw + FRAMES * K, peak, FRAMES, K, ROWS, COLUMNS)
        tl.debug_barrier()
        mean = product(there, FRAMES, 1, raw, K, 1, L, FRAMES, K, ROWS, COLUMNS, STEP)
        raw += FRAMES * K
        peak = product(there, FRAMES, 1, raw, K, 1, L, FRAMES, K, ROWS, COLUMNS, STEP)
    put(bins, mean, L, K, ROWS, COLUMNS)
    put(bins + L * K, peak, L, K, ROWS, COLUMNS)
    tl.debug_barrier()
    gate = gate_frames(bins, steps, back, w, FRAMES, L, K, OVER_TIME, ROWS, COLUMNS, STEP)
    part = 0.5 * tl.load(w.temporal_weight) * (1 + gate)
    if w.strength is not None:
        part = 1 + tl.load(w.strength) * (part - 1)
    t = tl.arange(0, ROWS)
    tl.store(by_time + clip * FRAMES + t, part, mask=t < FRAMES)
