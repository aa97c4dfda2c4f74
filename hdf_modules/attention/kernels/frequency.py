"""The frequency gate of a block of positions, `functional.frequency_gate`, up to the read-out."""

from __future__ import annotations

import triton
import triton.language as tl

from hdf_modules.attention.kernels.common import neighbour, product

SPREAD_RATE = tl.constexpr(0.05)  # as in the equations
EPS = tl.constexpr(1e-6)
ROUNDING = tl.constexpr(16 * 2.0**-23)


@triton.jit
def local_spectrum(
    total,
    basis,
    spectrum,
    clip,
    block,
    height,
    width,
    SIZE: tl.constexpr,
    MAPS: tl.constexpr,
    POSITIONS: tl.constexpr,
    STEP: tl.constexpr,
):
    """Store the local spectrum of a block, and return it."""
    N: tl.constexpr = SIZE * SIZE
    size = height * width
    position = block * POSITIONS + tl.arange(0, POSITIONS)
    here = position[None, :] < size
    m = tl.arange(0, MAPS)
    result = tl.zeros((MAPS, POSITIONS), tl.float32)
    for start in range(0, N, STEP):
        across, down = start + tl.arange(0, STEP)[None, :], start + tl.arange(0, STEP)[:, None]
        at, inside = neighbour(position[None, :], down, height, width, SIZE, 1)
        waves = tl.load(
            basis + m[:, None] * N + across, mask=(m[:, None] < N) & (across < N), other=0.0
        )
        values = tl.load(total + clip * size + at, mask=inside, other=0.0)
        result = tl.dot(waves, values, result, input_precision="ieee")
    at = (clip * N + m[:, None]) * size + position[None, :]
    tl.store(spectrum + at, result, mask=(m[:, None] < N) & here)
    return result


@triton.jit
def spectrum_forward(
    total,
    basis,
    spectrum,
    moments,
    clip,
    block,
    height,
    width,
    blocks,
    SIZE: tl.constexpr,
    MAPS: tl.constexpr,
    POSITIONS: tl.constexpr,
    STEP: tl.constexpr,
):
    """Local spectrum of a block; mean, squared deviation and square of each of its maps."""
    N: tl.constexpr = SIZE * SIZE
    result = local_spectrum(total, basis, spectrum, clip, block, height, width, SIZE, MAPS,
                            POSITIONS, STEP)  # fmt: skip
    size = height * width
    m = tl.arange(0, MAPS)
    here = (block * POSITIONS + tl.arange(0, POSITIONS))[None, :] < size
    # Of the block about its own mean: sums of squares alone would cancel.
    count = tl.minimum(size - block * POSITIONS, POSITIONS)
    mean = tl.sum(tl.where(here, result, 0.0), 1) / count
    rest = tl.where(here, result - mean[:, None], 0.0)
    moments += (clip * blocks + block) * 3 * N
    tl.store(moments + m, mean, mask=m < N)
    tl.store(moments + N + m, tl.sum(rest * rest, 1), mask=m < N)
    whole = tl.where(here, result, 0.0)
    tl.store(moments + 2 * N + m, tl.sum(whole * whole, 1), mask=m < N)


@triton.jit
def spread(
    moments,
    clip,
    size,
    blocks,
    N: tl.constexpr,
    MAPS: tl.constexpr,
    POSITIONS: tl.constexpr,
    STEP: tl.constexpr,
):
    """Mean of each map of a clip, and its deviation, zero where that is rounding alone."""
    m = tl.arange(0, MAPS)[None, :]
    summed = tl.zeros((STEP, MAPS), tl.float32)
    for start in range(0, blocks, STEP):
        block = start + tl.arange(0, STEP)[:, None]
        at = moments + (clip * blocks + block) * 3 * N + m
        count = tl.minimum(size - block * POSITIONS, POSITIONS)
        summed += count * tl.load(at, mask=(block < blocks) & (m < N), other=0.0)
    mean = tl.sum(summed, 0) / size
    squares = tl.zeros((STEP, MAPS), tl.float32)
    whole = tl.zeros((STEP, MAPS), tl.float32)
    for start in range(0, blocks, STEP):
        block = start + tl.arange(0, STEP)[:, None]
        at = moments + (clip * blocks + block) * 3 * N + m
        inside = (block < blocks) & (m < N)
        count = tl.minimum(size - block * POSITIONS, POSITIONS)
        off = tl.load(at, mask=inside, other=0.0) - mean[None, :]
        squares += tl.where(inside, count * off * off, 0.0)
        squares += tl.load(at + N, mask=inside, other=0.0)
        whole += tl.load(at + 2 * N, mask=inside, other=0.0)
    deviation = tl.sqrt(tl.sum(squares, 0))
    alone = deviation <= tl.sqrt(tl.sum(whole, 0)) * ROUNDING
    return mean, tl.where(alone, 0.0, deviation)


@triton.jit
def entry(values, m, N: tl.constexpr, default: tl.constexpr):
    """Load one number for each map, the default where the weight is absent."""
    found = tl.full(m.shape, default, tl.float32)
    if values is not None:
        found = tl.load(values + m, mask=m < N, other=0.0)
    return found


@triton.jit
def offsets(w, m, deviation, N: tl.constexpr):
    """ν·a + λ_w·b·deviation of each map."""
    offset = entry(w.frequency_noise, m, N, 0.0) * entry(w.frequency_noise_scale, m, N, 1.0)
    return offset + entry(w.frequency_spread_scale, m, N, 0.0) * SPREAD_RATE * deviation


@triton.jit
def fitted(d, w, deviation, N: tl.constexpr, MAPS: tl.constexpr):
    """d' of the spectrum of some positions, tanh of it scaled, and the scale's s + ε and s."""
    m = tl.arange(0, MAPS)
    perturbed_weight = tl.load(w.frequency_perturbed_weight)
    clean = 0.5 * (tl.load(w.frequency_clean_weight) + perturbed_weight)
    added = 0.5 * perturbed_weight * offsets(w, m, deviation, N)
    direction = tl.where(d > 0, 1.0, tl.where(d < 0, -1.0, 0.0))
    mixed = clean * d + direction * added[:, None]  # zero beyond N, where d is
    rest = tl.where(m[:, None] < N, mixed - tl.sum(mixed, 0)[None, :] / N, 0.0)
    s = tl.sqrt(tl.sum(rest * rest, 0) / (N - 1) + EPS)
    slope = tl.load(w.frequency_slope) / (s + EPS)
    return mixed, rest, 2 * tl.sigmoid(2 * slope[None, :] * mixed) - 1, s


@triton.jit
def maps_of(tanh, w, N: tl.constexpr, MAPS: tl.constexpr):
    """u = γ_f tanh + β_f, zero beyond the maps."""
    m = tl.arange(0, MAPS)
    scale, shift = entry(w.frequency_scale, m, N, 1.0), entry(w.frequency_shift, m, N, 0.0)
    return scale[:, None] * tanh + shift[:, None]


@triton.jit
def readout(
    spectrum,
    moments,
    spreads,
    maps,
    taps,
    w,
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
    """Perturb and fit the spectrum of a block; what every tap of the read-out makes of it."""
    N: tl.constexpr = SIZE * SIZE
    clip, block = tl.program_id(0) // blocks, tl.program_id(0) % blocks
    size = height * width
    m, o = tl.arange(0, MAPS), tl.arange(0, TAPS)
    position = block * POSITIONS + tl.arange(0, POSITIONS)
    here = position[None, :] < size
    mean, deviation = spread(moments, clip, size, blocks, N, MAPS, POSITIONS, STEP)
    if block == 0:
        tl.store(spreads + clip * 2 * N + m, mean, mask=m < N)
        tl.store(spreads + clip * 2 * N + N + m, deviation, mask=m < N)
    inside = (m[:, None] < N) & here
    at = (clip * N + m[:, None]) * size + position[None, :]
    d = tl.load(spectrum + at, mask=inside, other=0.0)
    _, _, tanh, _ = fitted(d, w, deviation, N, MAPS)
    tl.store(maps + at, maps_of(tanh, w, N, MAPS), mask=inside)
    tl.debug_barrier()
    COUNT: tl.constexpr = SIDE * SIDE
    here_maps = maps + clip * N * size + block * POSITIONS
    columns = size - block * POSITIONS
    result = product(w.frequency_readout, 1, COUNT, here_maps, size, 1, COUNT, N, columns, TAPS,
                     POSITIONS, STEP)  # fmt: skip
    at = (clip * COUNT + o[:, None]) * size + position[None, :]
    tl.store(taps + at, result, mask=(o[:, None] < COUNT) & here)
