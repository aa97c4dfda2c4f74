"""Forward and backward of attention as launches of kernels."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from hdf_modules.attention.branches import KERNEL_SIZE
from hdf_modules.attention.functional import constant
from hdf_modules.attention.kernels import frequency, frequency_backward, gates, passes
from hdf_modules.attention.kernels.plan import (
    FEW,
    PART,
    Kept,
    Plan,
    kept_of,
    numbers,
    padded,
    plan_of,
    resampling,
    spectrum_basis,
    widest,
)
from hdf_modules.attention.layout import BoundLayout
from hdf_modules.attention.weights import AttentionOptions, AttentionWeights

READOUT_SIZES = {"SIDE": KERNEL_SIZE, "TAPS": padded(KERNEL_SIZE**2)}
WARPS = {"num_warps": 8}  # with 4, the programs of the gates take more registers than there are
# Told no number, the assembler takes fewer for the sake of more programs at once, and spills.
REGISTERS = {} if torch.version.hip else {"maxnreg": 128}


def start(
    kernel: Any, programs: int, arguments: tuple[Any, ...], constants: dict[str, Any]
) -> None:
    """Launch a kernel."""
    kernel[(programs,)](*arguments, **constants)


def forward(
    x: Tensor, axes: BoundLayout, weights: AttentionWeights, options: AttentionOptions
) -> tuple[Tensor, Kept]:
    """Multiply x by its gate, as `functional.attend` does."""
    w, plan = plain(weights), plan_of(axes.sizes, len(weights.temporal_scale), options)
    b, t, c, h, width = plan.sizes
    size, maps = h * width, options.dct_size**2
    blocks, programs, patches = plan.blocks, b * plan.blocks, plan.patches
    clip, y = axes.clip_view(x), like(x, axes, x)
    product = axes.clip_view(y)
    rows = x.new_empty((2, b, blocks, t, c), dtype=torch.float32)
    spots = x.new_empty((b, blocks, t, c), dtype=torch.int32)
    empty = rows.new_empty
    steps, moments = empty(b, plan.slots), empty(b, patches, 3, maps)
    spectrum, fitted = empty(2, b, maps, size)
    taps = empty(b, KERNEL_SIZE**2, size)
    kept = kept_of(x, plan.sizes, plan.length, options)
    if b == 0:
        return y, kept
    strides = clip.stride()
    start(
        passes.statistics,
        programs,
        (clip, strides, rows[0], rows[1], spots, kept.total, h, width, blocks),
        plan.of_x(clip),
    )
    start(
        gates.gates,
        b + b * patches,
        (
            *(rows[0], rows[1], spots, kept.place, kept.bins, kept.by_time, steps),
            *(*resamplings(plan, steps), kept.total, basis(plan, steps), spectrum, moments, w),
            *(h, width, b, blocks, patches),
        ),
        plan.of_time() | plan.pooling() | plan.of_maps() | WARPS,
    )
    start(
        frequency.readout,
        b * patches,
        (spectrum, moments, kept.spreads, fitted, taps, w, h, width, patches),
        plan.of_maps() | READOUT_SIZES | WARPS,
    )
    start(
        passes.multiply,
        programs,
        (
            *(clip, strides, product, product.stride(), kept.by_time, taps, kept.frequency, w),
            *(h, width, blocks),
        ),
        plan.of_x(clip, product) | {"SIDE": KERNEL_SIZE},
    )
    return y, kept


def plain(weights: AttentionWeights) -> AttentionWeights:
    """Return the weights as the kernels read them: contiguous."""
    found: list[Any] = [None if w is None else w.detach().contiguous() for w in weights]
    return AttentionWeights(*found)


def like(x: Tensor, axes: BoundLayout, source: Tensor) -> Tensor:
    """Return an empty tensor like x, but for the source's tokens beside the grid."""
    result, layout = torch.empty_like(x), axes.layout
    if layout.token_axis is not None:
        length = x.shape[layout.token_axis]
        for first, count in (
            (0, layout.prefix_tokens),
            (length - layout.suffix_tokens, layout.suffix_tokens),
        ):
            if count:
                place = layout.token_axis, first, count
                result.narrow(*place).copy_(source.narrow(*place))
    return result


def basis(plan: Plan, like: Tensor) -> Tensor:
    """Return the waves of the spectrum."""
    return constant(spectrum_basis, plan.options.dct_size, like=like)


def resamplings(plan: Plan, like: Tensor) -> tuple[Tensor | None, Tensor | None]:
    """Return what resamples the clip's frames to the weights', and back, where they differ."""
    frames, length = plan.sizes.t, plan.length
    if frames == length:
        return None, None
    there = constant(resampling, frames, length, like=like)
    return there, constant(resampling, length, frames, like=like)


def backward(
    grad: Tensor,
    x: Tensor,
    axes: BoundLayout,
    weights: AttentionWeights,
    options: AttentionOptions,
    kept: Kept,
    *,
    of_x: bool = True,
) -> tuple[Tensor | None, Tensor, Tensor]:
    """Return the gradients of x (None unless asked for) and of the weights, see `shaped`."""
    w, plan = plain(weights), plan_of(axes.sizes, len(weights.temporal_scale), options)
    b, t, c, h, width = plan.sizes
    size, maps, k, length = h * width, options.dct_size**2, options.bins, plan.length
    blocks, programs, count = plan.blocks, b * plan.blocks, sum(numbers(length, options))
    patches, parts = plan.patches, -(-size // PART)
    clip, above = axes.clip_view(x), axes.clip_view(grad)
    empty = kept.by_time.new_empty
    row_sums, position_sums = empty(b, blocks, t, c), empty(b, size)
    work = empty(b, plan.slots + length**2 + 6 * length * k)
    of_bins, grads = empty(2, b, t, k), empty(b, count)
    spectrum, of_maps, taps = empty(3, b, maps, size)
    marks, of_readout = empty(b, patches, 3 * maps + 4), empty(b * parts, maps, KERNEL_SIZE**2)
    if b == 0:
        return (torch.empty_like(x) if of_x else None), grads.sum(0), of_readout.sum(0)
    start(
        gates.reductions,
        programs + b * patches,
        (
            *(clip, clip.stride(), above, above.stride(), row_sums, position_sums),
            *(kept.total, basis(plan, work), spectrum, h, width, b, blocks, patches),
        ),
        plan.of_maps() | plan.of_x(clip, above) | {"PATCH": plan.patch},
    )
    start(
        gates.gates_backward,
        b * (1 + patches + FEW * parts),
        (
            *(row_sums, position_sums, kept.bins, work, of_bins[0], of_bins[1], grads),
            *(*resamplings(plan, work), kept.frequency, spectrum, kept.spreads, of_maps),
            *(marks, of_readout, w, h, width, b, blocks, patches, parts),
        ),
        plan.of_time()
        | plan.of_maps()
        | READOUT_SIZES
        | WARPS
        | REGISTERS
        | {"WORK": work.shape[1], "WEIGHTS": count, "MANY": plan.many(), "PART": PART, "FEW": FEW},
    )
    start(
        frequency_backward.spectrum_backward,
        b * patches,
        (
            *(marks, spectrum, kept.spreads, of_maps, basis(plan, work), taps, grads, w),
            *(h, width, patches),
        ),
        plan.of_maps() | WARPS | {"WEIGHTS": count},
    )
    result = None
    if of_x:
        result = like(x, axes, grad)
        out = axes.clip_view(result)
        start(
            passes.gradient,
            programs,
            (
                *(above, above.stride(), out, out.stride(), kept.by_time, kept.frequency),
                *(of_bins[0], of_bins[1], kept.place, taps, w, h, width, blocks),
            ),
            plan.of_x(above, out) | {"BINS": k, "SIDE": options.dct_size, "OVERLAP": widest(k, c)},
        )
    return result, grads.sum(0), of_readout.sum(0)
