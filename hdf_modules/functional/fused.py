"""Distributional attention as one autograd function: the fast path beside ``attention.attend``.

The same numbers, with less memory traffic. Forward keeps, besides the input, only the statistics
(a few thousand numbers); backward recomputes the two gates from them and writes the gradient of the
input in one pass, where the plain path makes a full-size tensor for every use of the input.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from hdf_modules.functional import attention as plain
from hdf_modules.functional.attention import AttentionOptions, AttentionWeights
from hdf_modules.functional.fused_clip import (
    input_gradient,
    statistics,
    sums_of_product,
)
from hdf_modules.functional.fused_gates import gate_parts, gate_parts_backward
from hdf_modules.functional.statistics import ClipStatistics
from hdf_modules.layouts import BoundLayout


def is_available(x: Tensor) -> bool:
    """Whether an opaque autograd function can run here: not where operations are traced."""
    return x.numel() > 0 and not (
        torch.compiler.is_compiling()
        or torch._C._is_tracing()
        or torch._C._are_functorch_transforms_active()
    )


def attend(
    x: Tensor, axes: BoundLayout, weights: AttentionWeights, options: AttentionOptions
) -> Tensor:
    """Multiply x by its gate; arguments as for :func:`hdf_modules.functional.attention.attend`."""
    if torch.is_grad_enabled():
        return _Attend.apply(x, axes, options, *weights.flat())
    return _forward(x, axes, weights, options, locate=False)[0]


class _Attend(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, x: Tensor, axes: BoundLayout, options: AttentionOptions, *flat: Tensor | None
    ) -> Tensor:
        weights = AttentionWeights.from_flat(flat)
        y, stats, channel = _forward(x, axes, weights, options, locate=True)
        ctx.axes, ctx.options = axes, options
        ctx.save_for_backward(x, channel, *stats, *flat)
        return y

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        needed = [ctx.needs_input_grad[0], *ctx.needs_input_grad[3:]]
        with torch.autocast(grad.device.type, enabled=False):
            if torch.is_grad_enabled():
                grads = _differentiable_backward(ctx, grad, needed)
            else:
                grads = _backward(ctx, grad, needed[0])
        return grads[0], None, None, *grads[1:]


def _differentiable_backward(ctx: Any, grad: Tensor, needed: list[bool]) -> list[Any]:
    """Gradients by differentiating the plain path, which can be differentiated again."""
    x, _, _, _, _, *flat = ctx.saved_tensors
    y = plain.attend(x, ctx.axes, AttentionWeights.from_flat(flat), ctx.options)
    wanted = [tensor for tensor, need in zip((x, *flat), needed, strict=True) if need]
    found = iter(torch.autograd.grad(y, wanted, grad, create_graph=True, materialize_grads=True))
    return [next(found) if need else None for need in needed]


def _forward(
    x: Tensor,
    axes: BoundLayout,
    weights: AttentionWeights,
    options: AttentionOptions,
    *,
    locate: bool,
) -> tuple[Tensor, ClipStatistics, Tensor | None]:
    """Return y, the statistics, and where wanted the channel of each bin's maximum."""
    dtype = weights.temporal_weight.dtype
    stats, channel = statistics(axes.clip_view(x), options.bins, dtype, locate=locate)
    parts = gate_parts(stats, weights, options)
    factor = plain.add_parts(parts.by_time, parts.by_position)
    return x * axes.broadcast(factor.to(x.dtype)), stats, channel


def _backward(ctx: Any, grad: Tensor, input_needed: bool) -> list[Any]:
    """Gradients from the saved statistics; the input's is written in one pass."""
    x, channel, mean, peak, total, *flat = ctx.saved_tensors
    stats, weights = ClipStatistics(mean, peak, total), AttentionWeights.from_flat(flat)
    clip, upstream = ctx.axes.clip_view(x), ctx.axes.clip_view(grad)
    parts = gate_parts(stats, weights, ctx.options, keep=True)
    factor = plain.add_parts(parts.by_time, parts.by_position).to(x.dtype).unsqueeze(2)
    sums = sums_of_product(clip, upstream, mean.dtype)
    grads, by_weight = gate_parts_backward(*sums, parts, weights, ctx.options)
    if not input_needed:
        return [None, *by_weight.flat()]
    grad_x = torch.empty_like(x)
    if ctx.axes.has_extra_tokens:
        grad_x.copy_(grad)  # the tokens beside the grid pass through
    input_gradient(upstream, factor, clip, grads, channel=channel, out=ctx.axes.clip_view(grad_x))
    return [grad_x, *by_weight.flat()]
