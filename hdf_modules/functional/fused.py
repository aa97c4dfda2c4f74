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
from hdf_modules.functional.constants import constant
from hdf_modules.functional.statistics import ClipStatistics, channel_bins
from hdf_modules.layouts import BoundLayout


def is_available() -> bool:
    """Whether an opaque autograd function can run here: not where operations are traced."""
    return not (
        torch.compiler.is_compiling()
        or torch._C._is_tracing()
        or torch._C._are_functorch_transforms_active()
    )


def attend(
    x: Tensor, axes: BoundLayout, weights: AttentionWeights, options: AttentionOptions
) -> Tensor:
    """Multiply x by its gate; arguments as for :func:`hdf_modules.functional.attention.attend`."""
    return _Attend.apply(x, axes, options, *weights.flat())


class _Attend(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, x: Tensor, axes: BoundLayout, options: AttentionOptions, *flat: Tensor | None
    ) -> Tensor:
        weights = AttentionWeights.from_flat(flat)
        dtype = weights.temporal_weight.dtype
        stats, peak_channel = _statistics(axes.clip_view(x), options.bins, dtype)
        factor = plain.add_parts(*plain.gate_parts(stats, weights, options))
        ctx.axes, ctx.options = axes, options
        ctx.save_for_backward(x, peak_channel, *stats, *flat)
        return x * axes.broadcast(factor).to(x.dtype)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        needed = [ctx.needs_input_grad[0], *ctx.needs_input_grad[3:]]
        with torch.autocast(grad.device.type, enabled=False):
            if torch.is_grad_enabled():
                grads = _differentiable_backward(ctx, grad, needed)
            else:
                grads = _backward(ctx, grad, needed)
        return grads[0], None, None, *grads[1:]


def _statistics(clip: Tensor, bins: int, dtype: torch.dtype) -> tuple[ClipStatistics, Tensor]:
    """Statistics of the clip, and the channel of each bin's maximum."""
    frames, channels = clip.shape[1:3]
    mean = clip.mean((-2, -1), dtype=dtype)
    peak = clip.amax((-2, -1)).to(dtype)
    total = clip.sum((1, 2), dtype=dtype) / frames
    members, share = constant(channel_bins, channels, bins, like=mean)
    peak, member = peak[..., members].max(-1)
    channel = members.expand(*peak.shape, -1).gather(-1, member.unsqueeze(-1)).squeeze(-1)
    return ClipStatistics(mean @ share, peak, total), channel


def _differentiable_backward(ctx: Any, grad: Tensor, needed: list[bool]) -> list[Any]:
    """Gradients by differentiating the plain path, which can be differentiated again."""
    x, _, _, _, _, *flat = ctx.saved_tensors
    y = plain.attend(x, ctx.axes, AttentionWeights.from_flat(flat), ctx.options)
    return _gradients((y,), [x, *flat], needed, (grad,), create_graph=True)


def _gradients(
    outputs: tuple[Tensor, ...],
    inputs: list[Any],
    needed: list[bool],
    upstream: tuple[Tensor, ...],
    create_graph: bool = False,
) -> list[Any]:
    """Like ``torch.autograd.grad``, with None for the inputs that need none."""
    wanted = [tensor for tensor, need in zip(inputs, needed, strict=True) if need]
    found = iter(
        torch.autograd.grad(
            outputs, wanted, upstream, create_graph=create_graph, materialize_grads=True
        )
    )
    return [next(found) if need else None for need in needed]


def _backward(ctx: Any, grad: Tensor, needed: list[bool]) -> list[Any]:
    """Gradients from the saved statistics; the input's is written in one pass."""
    x, peak_channel, *small = ctx.saved_tensors
    wanted = [needed[0]] * 3 + needed[1:]
    leaves: list[Any] = [
        tensor if tensor is None else tensor.detach().requires_grad_(need)
        for tensor, need in zip(small, wanted, strict=True)
    ]
    stats, weights = ClipStatistics(*leaves[:3]), AttentionWeights.from_flat(leaves[3:])
    with torch.enable_grad():
        parts = plain.gate_parts(stats, weights, ctx.options)
    axes, clip = ctx.axes, ctx.axes.clip_view(x)
    upstream = _gradient_of_parts(clip, axes.clip_view(grad), parts[0].dtype)
    found = _gradients(parts, leaves, wanted, upstream)
    if not needed[0]:
        return [None, *found[3:]]
    factor = axes.broadcast(plain.add_parts(*(part.detach() for part in parts)))
    grad_x = torch.mul(grad, factor.to(grad.dtype), out=torch.empty_like(x))
    _add_statistics_gradient(
        axes.clip_view(grad_x), clip, ClipStatistics(*found[:3]), peak_channel, ctx.options.bins
    )
    return [grad_x, *found[3:]]


def _gradient_of_parts(clip: Tensor, grad: Tensor, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    """Sums of grad·clip over all but (batch, time), and over all but (batch, height, width)."""
    batch, frames, _, height, width = clip.shape
    by_time = clip.new_empty(batch, frames, dtype=dtype)
    by_position = clip.new_empty(batch, height, width, dtype=dtype)
    for b in range(batch):  # one sample at a time stays in the cache
        both = (grad[b] * clip[b]).sum(1, dtype=dtype)
        torch.sum(both, (1, 2), out=by_time[b])
        torch.sum(both, 0, out=by_position[b])
    return by_time, by_position


def _add_statistics_gradient(
    grad_x: Tensor, clip: Tensor, grads: ClipStatistics, peak_channel: Tensor, bins: int
) -> None:
    """Add the gradient that reaches the clip through its statistics, in place."""
    mean, peak, total = grads
    frames, channels, height, width = clip.shape[1:]
    _, share = constant(channel_bins, channels, bins, like=mean)
    by_channel = (mean @ share.mT / (height * width)).to(clip.dtype)[..., None, None]
    by_position = (total / frames).to(clip.dtype)[:, None, None]
    for b in range(clip.shape[0]):
        grad_x[b] += by_channel[b] + by_position[b]
    index = _positions_of_peaks(clip, peak_channel)
    grad_x.index_put_(index, peak.to(clip.dtype), accumulate=True)


def _positions_of_peaks(clip: Tensor, channel: Tensor) -> tuple[Tensor, ...]:
    """Index (batch, time, channel, height, width) of the first maximum of each bin."""
    batch, frames = clip.shape[:2]
    b = torch.arange(batch, device=clip.device)[:, None, None]
    t = torch.arange(frames, device=clip.device)[:, None]
    maps = clip[b, t, channel]
    row = maps.amax(-1).argmax(-1)
    column = maps.gather(-2, row[..., None, None].expand(*row.shape, 1, maps.shape[-1]))
    return b, t, channel, row, column.squeeze(-2).argmax(-1)
