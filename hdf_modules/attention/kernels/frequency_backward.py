"""Backward of the frequency gate: of a block of positions, of the read-out, of the spectrum."""

from __future__ import annotations

import triton
import triton.language as tl

from hdf_modules.attention.kernels.common import neighbour, product
from hdf_modules.attention.kernels.frequency import (
    EPS,
    SPREAD_RATE,
    entry,
    fitted,
    maps_of,
    offsets,
)


@triton.jit
def readout_grad(position_sums, frequency, w, at, inside):
    """Gradient of the sigmoid's argument at some positions, zero outside."""
    grad = tl.load(position_sums + at, mask=inside, other=0.0)
    f = tl.load(frequency + at, mask=inside, other=0.0)
    grad = grad * f * (1 - f) * 0.5 * tl.load(w.frequency_weight)
    if w.strength is not None:
        grad = grad * tl.load(w.strength)
    return grad


@triton.jit
def positions_backward(
    position_sums,
    frequency,
    spectrum,
    spreads,
    mixed_grad,
    marks,
    w,
    clip,
    block,
    height,
    width,
    blocks,
    SIZE: tl.constexpr,
    SIDE: tl.constexpr,
    MAPS: tl.constexpr,
    POSITIONS: tl.constexpr,
    STEP: tl.constexpr,
):
    """Gradient of d' of a block, and the block's share in those of the maps' weights."""
    N: tl.constexpr = SIZE * SIZE
    COUNT: tl.constexpr = SIDE * SIDE
    size = height * width
    m = tl.arange(0, MAPS)
    position = block * POSITIONS + tl.arange(0, POSITIONS)
    here = position < size
    position_sums += clip * size
    frequency += clip * size
    of_maps = tl.zeros((MAPS, POSITIONS), tl.float32)
    for start in range(0, COUNT, STEP):
        across, down = start + tl.arange(0, STEP)[None, :], start + tl.arange(0, STEP)[:, None]
        at, inside = neighbour(position[None, :], down, height, width, SIDE, -1)
        grad = readout_grad(position_sums, frequency, w, at, inside)
        known = (m[:, None] < N) & (across < COUNT)
        kernel = tl.load(w.frequency_readout + m[:, None] * COUNT + across, mask=known, other=0.0)
        of_maps = tl.dot(kernel, grad, of_maps, input_precision="ieee")

    inside = (m[:, None] < N) & here[None, :]
    at = (clip * N + m[:, None]) * size + position[None, :]
    d = tl.load(spectrum + at, mask=inside, other=0.0)
    deviation = tl.load(spreads + clip * 2 * N + N + m, mask=m < N, other=0.0)
    mixed, rest, tanh, s = fitted(d, w, deviation, N, MAPS)
    marks += (clip * blocks + block) * (3 * N + 4)
    tl.store(marks + N + m, tl.sum(of_maps * tanh, 1), mask=m < N)
    tl.store(marks + 2 * N + m, tl.sum(of_maps, 1), mask=m < N)
    of_tanh = of_maps * entry(w.frequency_scale, m, N, 1.0)[:, None] * (1 - tanh * tanh)
    along = tl.sum(of_tanh * mixed, 0)
    slope = tl.load(w.frequency_slope)
    of_s = -along * slope / ((s + EPS) * (s + EPS))
    of_mixed = of_tanh * (slope / (s + EPS))[None, :] + (of_s / (s * (N - 1)))[None, :] * rest
    tl.store(mixed_grad + at, of_mixed, mask=inside)
    direction = tl.where(d > 0, 1.0, tl.where(d < 0, -1.0, 0.0))
    tl.store(marks + m, tl.sum(of_mixed * direction, 1), mask=m < N)
    tl.store(marks + 3 * N, tl.sum(along / (s + EPS), 0))
    tl.store(marks + 3 * N + 1, tl.sum(tl.sum(of_mixed * d, 1), 0))

    grad = tl.load(position_sums + position, mask=here, other=0.0)
    doubled = grad * 0.5 * (1 + tl.load(frequency + position, mask=here, other=0.0))
    if w.strength is not None:
        strength = tl.load(w.strength)
        tl.store(marks + 3 * N + 3, tl.sum(doubled, 0) * tl.load(w.frequency_weight))
        tl.store(marks + 3 * N + 2, tl.sum(doubled, 0) * strength)
    else:
        tl.store(marks + 3 * N + 2, tl.sum(doubled, 0))


@triton.jit
def readout_backward(
    position_sums,
    frequency,
    spectrum,
    spreads,
    readout_grads,
    w,
    clip,
    block,
    first,
    height,
    width,
    blocks,
    SIZE: tl.constexpr,
    SIDE: tl.constexpr,
    MAPS: tl.constexpr,
    TAPS: tl.constexpr,
    POSITIONS: tl.constexpr,
    STEP: tl.constexpr,
):
    """Share of a block in the gradient of some taps of the read-out; its maps are made again."""
    N: tl.constexpr = SIZE * SIZE
    COUNT: tl.constexpr = SIDE * SIDE
    size = height * width
    m, o = tl.arange(0, MAPS)[:, None], first + tl.arange(0, TAPS)[None, :]
    deviation = tl.load(
        spreads + clip * 2 * N + N + tl.arange(0, MAPS), mask=tl.arange(0, MAPS) < N, other=0.0
    )
    result = tl.zeros((MAPS, TAPS), tl.float32)
    for start in range(block * POSITIONS, block * POSITIONS + POSITIONS, STEP):
        across, down = start + tl.arange(0, STEP)[None, :], start + tl.arange(0, STEP)[:, None]
        inside = (m < N) & (across < size)
        d = tl.load(spectrum + (clip * N + m) * size + across, mask=inside, other=0.0)
        _, _, tanh, _ = fitted(d, w, deviation, N, MAPS)
        at, near = neighbour(down, o, height, width, SIDE, -1)
        grad = readout_grad(position_sums + clip * size, frequency + clip * size, w, at, near)
        result = tl.dot(maps_of(tanh, w, N, MAPS), grad, result, input_precision="ieee")
    out = readout_grads + (clip * blocks + block) * N * COUNT
    tl.store(out + m * COUNT + o, result, mask=(m < N) & (o < COUNT))


@triton.jit
def total_of(marks, clip, blocks, MARKS: tl.constexpr, STEP: tl.constexpr, N: tl.constexpr,
             MAPS: tl.constexpr):  # fmt: skip
    """Sum N of the numbers of the blocks of a clip."""
    m = tl.arange(0, MAPS)[None, :]
    summed = tl.zeros((STEP, MAPS), tl.float32)
    for start in range(0, blocks, STEP):
        block = start + tl.arange(0, STEP)[:, None]
        at = marks + (clip * blocks + block) * MARKS + m
        summed += tl.load(at, mask=(block < blocks) & (m < N), other=0.0)
    return tl.sum(summed, 0)


@triton.jit
def weights_backward(marks, of_size, deviation, grads, w, clip, blocks, N: tl.constexpr,
                     MAPS: tl.constexpr, WEIGHTS: tl.constexpr, STEP: tl.constexpr):  # fmt: skip
    """Gradients of the weights of the maps of one clip, from its blocks'."""
    m = tl.arange(0, MAPS)
    M: tl.constexpr = 3 * N + 4
    half = 0.5 * tl.load(w.frequency_perturbed_weight)
    grads += clip * WEIGHTS + WEIGHTS - 5 * N - 6
    few = total_of(marks + 3 * N, clip, blocks, M, STEP, 4, 16)
    which = tl.arange(0, 16)
    of_clean = 0.5 * tl.sum(tl.where(which == 1, few, 0.0), 0)
    of_perturbed = of_clean + tl.sum(of_size * 0.5 * offsets(w, m, deviation, N), 0)
    tl.store(grads, of_clean)
    tl.store(grads + 1, of_perturbed)
    grads += 2
    noise, noise_scale = (
        entry(w.frequency_noise, m, N, 0.0),
        entry(w.frequency_noise_scale, m, N, 1.0),
    )
    tl.store(grads + m, half * of_size * noise_scale, mask=m < N)
    tl.store(grads + N + m, half * of_size * noise, mask=m < N)
    tl.store(grads + 2 * N + m, half * of_size * deviation * SPREAD_RATE, mask=m < N)
    grads += 3 * N
    tl.store(grads, tl.sum(tl.where(which == 0, few, 0.0), 0))
    scale = total_of(marks + N, clip, blocks, M, STEP, N, MAPS)
    tl.store(grads + 1 + m, scale, mask=m < N)
    shift = total_of(marks + 2 * N, clip, blocks, M, STEP, N, MAPS)
    tl.store(grads + 1 + N + m, shift, mask=m < N)
    grads += 1 + 2 * N
    tl.store(grads + 1, tl.sum(tl.where(which == 2, few, 0.0), 0))
    if w.strength is not None:  # the frames' share is there already
        more = tl.sum(tl.where(which == 3, few, 0.0), 0)
        tl.store(grads + 2, tl.load(grads + 2) + more)


@triton.jit
def spectrum_backward(
    marks,
    spectrum,
    spreads,
    mixed_grad,
    basis,
    taps,
    grads,
    w,
    height,
    width,
    blocks,
    WEIGHTS: tl.constexpr,
    SIZE: tl.constexpr,
    MAPS: tl.constexpr,
    POSITIONS: tl.constexpr,
    STEP: tl.constexpr,
):
    """What the gradient of a block's spectrum gives each tap of its window; weights' gradients."""
    N: tl.constexpr = SIZE * SIZE
    clip, block = tl.program_id(0) // blocks, tl.program_id(0) % blocks
    size = height * width
    m = tl.arange(0, MAPS)
    position = block * POSITIONS + tl.arange(0, POSITIONS)
    inside = (m[:, None] < N) & (position[None, :] < size)
    of_size = total_of(marks, clip, blocks, 3 * N + 4, STEP, N, MAPS)
    mean = tl.load(spreads + clip * 2 * N + m, mask=m < N, other=0.0)
    deviation = tl.load(spreads + clip * 2 * N + N + m, mask=m < N, other=0.0)
    if block == 0:
        weights_backward(marks, of_size, deviation, grads, w, clip, blocks, N, MAPS, WEIGHTS, STEP)
    half = 0.5 * tl.load(w.frequency_perturbed_weight)
    clean = 0.5 * tl.load(w.frequency_clean_weight) + half
    of_deviation = half * of_size * entry(w.frequency_spread_scale, m, N, 0.0) * SPREAD_RATE
    alone = deviation == 0
    along = tl.where(alone, 0.0, of_deviation / tl.where(alone, 1.0, deviation))
    at = (clip * N + m[:, None]) * size + position[None, :]
    d = tl.load(spectrum + at, mask=inside, other=0.0)
    of_mixed = tl.load(mixed_grad + at, mask=inside, other=0.0)
    tl.store(mixed_grad + at, clean * of_mixed + along[:, None] * (d - mean[:, None]), mask=inside)
    tl.debug_barrier()
    first = block * POSITIONS
    here = mixed_grad + clip * N * size + first
    result = product(basis, 1, N, here, size, 1, N, N, size - first, MAPS, POSITIONS, STEP)
    out = (clip * N + m[:, None]) * size + position[None, :]
    tl.store(taps + out, result, mask=inside)
