"""The launches in which programs of several kinds stand side by side."""

from __future__ import annotations

import triton
import triton.language as tl

from hdf_modules.attention.kernels.frequency import local_spectrum, spectrum_forward
from hdf_modules.attention.kernels.frequency_backward import positions_backward, readout_backward
from hdf_modules.attention.kernels.passes import sums_of_product
from hdf_modules.attention.kernels.temporal import temporal_forward
from hdf_modules.attention.kernels.temporal_backward import temporal_backward


@triton.jit
def gates(
    sums,
    peaks,
    spots,
    place,
    bins,
    by_time,
    steps,
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
    patches,
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
        temporal_forward(sums, peaks, spots, place, bins, by_time, steps, there, back, w,
                         program, height * width, blocks, FRAMES, LENGTH, CHANNELS, BINS,
                         OVER_TIME, ROWS, COLUMNS, WIDTH, BLOCKS, SLOTS, STEP)  # fmt: skip
    else:
        clip, patch = (program - clips) // patches, (program - clips) % patches
        spectrum_forward(total, basis, spectrum, moments, clip, patch, height, width, patches, SIZE,
                         MAPS, POSITIONS, STEP)  # fmt: skip


@triton.jit
def reductions(
    x,
    x_strides,
    grad,
    grad_strides,
    row_sums,
    position_sums,
    total,
    basis,
    spectrum,
    height,
    width,
    clips,
    blocks,
    patches,
    FRAMES: tl.constexpr,
    CHANNELS: tl.constexpr,
    FLAT: tl.constexpr,
    ROWS: tl.constexpr,
    POSITIONS: tl.constexpr,
    SIZE: tl.constexpr,
    MAPS: tl.constexpr,
    PATCH: tl.constexpr,
    STEP: tl.constexpr,
):
    """The sums of x times its gradient; the spectrum again, which forward does not keep."""
    program = tl.program_id(0)
    if program < clips * blocks:
        sums_of_product(x, x_strides, grad, grad_strides, row_sums, position_sums,
                        program // blocks, program % blocks, height, width, blocks, FRAMES,
                        CHANNELS, FLAT, ROWS, POSITIONS)  # fmt: skip
    else:
        rest = program - clips * blocks
        local_spectrum(total, basis, spectrum, rest // patches, rest % patches, height, width, SIZE,
                       MAPS, PATCH, STEP)  # fmt: skip


@triton.jit
def gates_backward(
    row_sums,
    position_sums,
    bins,
    work,
    mean_grad,
    peak_grad,
    grads,
    there,
    back,
    frequency,
    spectrum,
    spreads,
    mixed_grad,
    marks,
    readout_grads,
    w,
    height,
    width,
    clips,
    blocks,
    patches,
    parts,
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
    SIZE: tl.constexpr,
    SIDE: tl.constexpr,
    MAPS: tl.constexpr,
    TAPS: tl.constexpr,
    POSITIONS: tl.constexpr,
    PART: tl.constexpr,
    FEW: tl.constexpr,
    STEP: tl.constexpr,
):
    """Backward of every clip's temporal gate, and of the frequency gate and its read-out."""
    program = tl.program_id(0)
    if program < clips:
        temporal_backward(row_sums, bins, work, mean_grad, peak_grad, grads, there, back, w,
                          program, height * width, blocks, FRAMES, LENGTH, CHANNELS, BINS,
                          OVER_TIME, ROWS, COLUMNS, SLOTS, WORK, WEIGHTS, MANY, STEP)  # fmt: skip
    else:
        rest = program - clips
        if rest < clips * patches:
            positions_backward(position_sums, frequency, spectrum, spreads, mixed_grad, marks, w,
                               rest // patches, rest % patches, height, width, patches, SIZE,
                               SIDE, MAPS, POSITIONS, STEP)  # fmt: skip
        else:
            rest -= clips * patches
            readout_backward(position_sums, frequency, spectrum, spreads, readout_grads, w,
                             rest // FEW // parts, rest // FEW % parts, rest % FEW * (TAPS // FEW),
                             height, width, parts, SIZE, SIDE, MAPS, TAPS // FEW, PART,
                             STEP)  # fmt: skip
