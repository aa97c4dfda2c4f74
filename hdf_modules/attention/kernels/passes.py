"""The passes over x: statistics and product of forward, reductions and gradient of backward.

A program owns a block of positions of one clip and goes through all frames and channels, the rows:
what is summed over rows is then complete, and what is summed over positions is one partial sum.
"""

from __future__ import annotations

import triton
import triton.language as tl

from hdf_modules.attention.kernels.common import end_channel, first_channel, gathered, place_of


@triton.jit
def statistics(
    x,
    x_strides,
    sums,
    peaks,
    spots,
    total,
    height,
    width,
    blocks,
    FRAMES: tl.constexpr,
    CHANNELS: tl.constexpr,
    FLAT: tl.constexpr,
    ROWS: tl.constexpr,
    POSITIONS: tl.constexpr,
):
    """Sum, maximum and its first position over a block, for every row; sum over rows / frames."""
    clip, block = tl.program_id(0) // blocks, tl.program_id(0) % blocks
    position = block * POSITIONS + tl.arange(0, POSITIONS)
    here = position < height * width
    x += clip * x_strides[0]
    of_position = place_of(position, x_strides[3], x_strides[4], width, FLAT)
    summed = tl.zeros((ROWS, POSITIONS), tl.float32)
    for start in range(0, FRAMES * CHANNELS, ROWS):
        row = start + tl.arange(0, ROWS)
        there = row < FRAMES * CHANNELS
        of_row = row // CHANNELS * x_strides[1] + row % CHANNELS * x_strides[2]
        inside = there[:, None] & here[None, :]
        tile = tl.load(x + of_row[:, None] + of_position[None, :], mask=inside, other=0.0)
        values = tile.to(tl.float32)
        summed += values
        reachable = tl.where(inside, values, float("-inf"))
        peak, spot = tl.max(reachable, 1, return_indices=True)
        at = tl.program_id(0) * (FRAMES * CHANNELS) + row
        tl.store(sums + at, tl.sum(values, 1), mask=there)
        tl.store(peaks + at, peak, mask=there)
        tl.store(spots + at, block * POSITIONS + spot, mask=there)
    whole = tl.sum(summed, 0) / FRAMES
    tl.store(total + clip * (height * width) + position, whole, mask=here)


@triton.jit
def by_position(w, frequency):
    """Part of the factor by position, of f."""
    part = 0.5 * tl.load(w.frequency_weight) * (1 + frequency)
    if w.strength is not None:
        part = part * tl.load(w.strength)
    return part


@triton.jit
def multiply(
    x,
    x_strides,
    y,
    y_strides,
    by_time,
    taps,
    frequency,
    w,
    height,
    width,
    blocks,
    FRAMES: tl.constexpr,
    CHANNELS: tl.constexpr,
    FLAT: tl.constexpr,
    ROWS: tl.constexpr,
    POSITIONS: tl.constexpr,
    SIDE: tl.constexpr,
):
    """f of a block from the taps of the read-out, and x times its factor."""
    clip, block = tl.program_id(0) // blocks, tl.program_id(0) % blocks
    position = block * POSITIONS + tl.arange(0, POSITIONS)
    here = position < height * width
    taps += clip * SIDE * SIDE * height * width
    f = tl.sigmoid(gathered(taps, position, height, width, SIDE, 1, POSITIONS, 16))
    tl.store(frequency + clip * (height * width) + position, f, mask=here)
    part = by_position(w, f)
    x += clip * x_strides[0]
    y += clip * y_strides[0]
    of_x = place_of(position, x_strides[3], x_strides[4], width, FLAT)
    of_y = place_of(position, y_strides[3], y_strides[4], width, FLAT)
    for start in range(0, FRAMES * CHANNELS, ROWS):
        row = start + tl.arange(0, ROWS)
        t, c = row // CHANNELS, row % CHANNELS
        there = row < FRAMES * CHANNELS
        inside = there[:, None] & here[None, :]
        of_frame = tl.load(by_time + clip * FRAMES + t, mask=there, other=0.0)
        x_at = (t * x_strides[1] + c * x_strides[2])[:, None] + of_x[None, :]
        y_at = (t * y_strides[1] + c * y_strides[2])[:, None] + of_y[None, :]
        values = tl.load(x + x_at, mask=inside, other=0.0).to(tl.float32)
        values = values * (of_frame[:, None] + part[None, :])
        tl.store(y + y_at, values.to(y.dtype.element_ty), mask=inside)


@triton.jit
def sums_of_product(
    x,
    x_strides,
    grad,
    grad_strides,
    row_sums,
    position_sums,
    clip,
    block,
    height,
    width,
    blocks,
    FRAMES: tl.constexpr,
    CHANNELS: tl.constexpr,
    FLAT: tl.constexpr,
    ROWS: tl.constexpr,
    POSITIONS: tl.constexpr,
):
    """Sums of x times its gradient: over a block for every row, over rows for every position."""
    position = block * POSITIONS + tl.arange(0, POSITIONS)
    here = position < height * width
    x += clip * x_strides[0]
    grad += clip * grad_strides[0]
    of_x = place_of(position, x_strides[3], x_strides[4], width, FLAT)
    of_grad = place_of(position, grad_strides[3], grad_strides[4], width, FLAT)
    summed = tl.zeros((ROWS, POSITIONS), tl.float32)
    for start in range(0, FRAMES * CHANNELS, ROWS):
        row = start + tl.arange(0, ROWS)
        t, c = row // CHANNELS, row % CHANNELS
        there = row < FRAMES * CHANNELS
        inside = there[:, None] & here[None, :]
        x_at = (t * x_strides[1] + c * x_strides[2])[:, None] + of_x[None, :]
        grad_at = (t * grad_strides[1] + c * grad_strides[2])[:, None] + of_grad[None, :]
        values = tl.load(x + x_at, mask=inside, other=0.0).to(tl.float32)
        values = values * tl.load(grad + grad_at, mask=inside, other=0.0).to(tl.float32)
        summed += values
        at = (clip * blocks + block) * (FRAMES * CHANNELS) + row
        tl.store(row_sums + at, tl.sum(values, 1), mask=there)
    tl.store(position_sums + clip * (height * width) + position, tl.sum(summed, 0), mask=here)


@triton.jit
def gradient(
    grad,
    grad_strides,
    out,
    out_strides,
    by_time,
    frequency,
    mean_grad,
    peak_grad,
    place,
    taps,
    w,
    height,
    width,
    blocks,
    FRAMES: tl.constexpr,
    CHANNELS: tl.constexpr,
    BINS: tl.constexpr,
    FLAT: tl.constexpr,
    ROWS: tl.constexpr,
    POSITIONS: tl.constexpr,
    SIDE: tl.constexpr,
    OVERLAP: tl.constexpr,
):
    """Gradient of x: of the product, the channel sums, the bins' means and their maxima."""
    clip, block = tl.program_id(0) // blocks, tl.program_id(0) % blocks
    position = block * POSITIONS + tl.arange(0, POSITIONS)
    here = position < height * width
    taps += clip * SIDE * SIDE * height * width
    of_total = gathered(taps, position, height, width, SIDE, -1, POSITIONS, 16) / FRAMES
    f = tl.load(frequency + clip * (height * width) + position, mask=here, other=0.0)
    part = by_position(w, f)
    grad += clip * grad_strides[0]
    out += clip * out_strides[0]
    of_grad = place_of(position, grad_strides[3], grad_strides[4], width, FLAT)
    of_out = place_of(position, out_strides[3], out_strides[4], width, FLAT)
    for start in range(0, FRAMES * CHANNELS, ROWS):
        row = start + tl.arange(0, ROWS)
        t, c = row // CHANNELS, row % CHANNELS
        there = row < FRAMES * CHANNELS
        inside = there[:, None] & here[None, :]
        of_frame = tl.load(by_time + clip * FRAMES + t, mask=there, other=0.0)
        grad_at = (t * grad_strides[1] + c * grad_strides[2])[:, None] + of_grad[None, :]
        values = tl.load(grad + grad_at, mask=inside, other=0.0).to(tl.float32)
        values = values * (of_frame[:, None] + part[None, :]) + of_total[None, :]
        spot = c[:, None] * (height * width) + position[None, :]
        # The bins that a channel is in, by the rule of the channels that are in a bin.
        first, end = first_channel(c, BINS, CHANNELS), end_channel(c, BINS, CHANNELS)
        for j in range(OVERLAP):
            at = (clip * FRAMES + t) * BINS + first + j
            valid = there & (first + j < end)
            values += tl.load(mean_grad + at, mask=valid, other=0.0)[:, None]
            highest = tl.load(place + at, mask=valid, other=-1)
            of_peak = tl.load(peak_grad + at, mask=valid, other=0.0)
            values += tl.where(highest[:, None] == spot, of_peak[:, None], 0.0)
        out_at = (t * out_strides[1] + c * out_strides[2])[:, None] + of_out[None, :]
        tl.store(out + out_at, values.to(out.dtype.element_ty), mask=inside)
