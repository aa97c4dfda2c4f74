"""What several kernels do: matrix products from memory, neighbours of a position, bins."""

from __future__ import annotations

import triton
import triton.language as tl


@triton.jit
def product(
    left,
    left_row,
    left_column,
    right,
    right_row,
    right_column,
    rows,
    inner,
    columns,
    ROWS: tl.constexpr,
    COLUMNS: tl.constexpr,
    STEP: tl.constexpr,
):
    """Multiply two matrices that lie in memory, given by their strides.

    Read in slices, the factors never fill the registers, and either may be a transpose.
    """
    m, n = tl.arange(0, ROWS)[:, None], tl.arange(0, COLUMNS)[None, :]
    result = tl.zeros((ROWS, COLUMNS), tl.float32)
    for start in range(0, inner, STEP):
        down, across = start + tl.arange(0, STEP)[:, None], start + tl.arange(0, STEP)[None, :]
        a_at, a_in = m * left_row + across * left_column, (m < rows) & (across < inner)
        b_at, b_in = down * right_row + n * right_column, (down < inner) & (n < columns)
        a = tl.load(left + a_at, mask=a_in, other=0.0)
        b = tl.load(right + b_at, mask=b_in, other=0.0)
        result = tl.dot(a, b, result, input_precision="ieee")
    return result


@triton.jit
def neighbour(position, tap, height, width, SIDE: tl.constexpr, SIGN: tl.constexpr):
    """Index of the neighbour that a tap of a SIDE×SIDE window reads, and whether the map has it.

    SIGN -1 mirrors the window, as the transpose of a convolution does.
    """
    row = position // width + SIGN * (tap // SIDE - SIDE // 2)
    column = position % width + SIGN * (tap % SIDE - SIDE // 2)
    inside = (row >= 0) & (row < height) & (column >= 0) & (column < width)
    inside = inside & (position < height * width) & (tap < SIDE * SIDE)
    return row * width + column, inside


@triton.jit
def gathered(
    taps,
    position,
    height,
    width,
    SIDE: tl.constexpr,
    SIGN: tl.constexpr,
    POSITIONS: tl.constexpr,
    STEP: tl.constexpr,
):
    """Sum over the taps of what each one, a map in memory, gives a position."""
    result = tl.zeros((STEP, POSITIONS), tl.float32)
    for start in range(0, SIDE * SIDE, STEP):
        tap = start + tl.arange(0, STEP)[:, None]
        at, inside = neighbour(position[None, :], tap, height, width, SIDE, SIGN)
        result += tl.load(taps + tap * (height * width) + at, mask=inside, other=0.0)
    return tl.sum(result, 0)


@triton.jit
def place_of(position, stride_row, stride_column, width, FLAT: tl.constexpr):
    """Where a position lies in memory; FLAT: its rows follow one another."""
    if FLAT:
        place = position * stride_column
    else:
        place = (position // width) * stride_row + (position % width) * stride_column
    return place


@triton.jit
def first_channel(bin_, CHANNELS: tl.constexpr, BINS: tl.constexpr):
    """First channel of a bin."""
    return bin_ * CHANNELS // BINS


@triton.jit
def end_channel(bin_, CHANNELS: tl.constexpr, BINS: tl.constexpr):
    """Channel behind the last one of a bin."""
    return ((bin_ + 1) * CHANNELS + BINS - 1) // BINS
