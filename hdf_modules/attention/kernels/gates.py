"""The launches in which programs of several kinds stand side by side."""

from __future__ import annotations

import triton
import triton.language as tl

from hdf_modules.attention.kernels.frequency import spectrum_forward
from hdf_modules.attention.kernels.temporal import temporal_forward


@triton.jit
def gates(
    sums,
    peaks,
    spots,
    place,
    kept,
    by_time,
    there,
    back,
    total,
    basis,
    spectrum,
    moments,
    w,
    height,
    width,
    clips,
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
    SIZE: tl.constexpr,
    MAPS: tl.constexpr,
    POSITIONS: tl.constexpr,
    STEP: tl.constexpr,
):
    """The temporal gate of every clip, and the spectrum of every block of positions."""
    program = tl.program_id(0)
    if program < clips:
        temporal_forward(sums, peaks, spots, place, kept, by_time, there, back, w, program,
                         height * width, blocks, FRAMES, LENGTH, CHANNELS, BINS, OVER_TIME, ROWS,
                         COLUMNS, WIDTH, BLOCKS, SLOTS, STEP)  # fmt: skip
    else:
        clip, block = (program - clips) // blocks, (program - clips) % blocks
        spectrum_forward(total, basis, spectrum, moments, clip, block, height, width, blocks, SIZE,
                         MAPS, POSITIONS, STEP)  # fmt: skip
