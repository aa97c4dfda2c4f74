"""Distributional attention in operations of torch, with the passes over the clip written out.

Where the plain path makes a full-size tensor for every use of the input, backward writes the
gradient of the input in one pass. The gates, small beside the clip, are differentiated by autograd.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from hdf_modules.attention import functional as plain
from hdf_modules.attention.functional import AttentionWeights, Task
from hdf_modules.attention.kernels.fused_clip import input_gradient, statistics, sums_of_product
from hdf_modules.attention.statistics import ClipStatistics


def forward(x: Tensor, task: Task, *, keep: bool) -> tuple[Tensor, list[Tensor]]:
    """Return y, and with ``keep`` what :func:`backward` needs besides x and the task."""
    axes, flat, options = task
    weights = AttentionWeights.from_flat(flat)
    dtype = weights.temporal_weight.dtype
    with plain.without_autocast(x):
        stats, channel = statistics(axes.clip_view(x), options.bins, dtype)
        factor = plain.add_parts(*plain.gate_parts(stats, weights, options))
    return x * axes.broadcast(factor.to(x.dtype)), [channel, *stats] if keep else []


def backward(
    grad: Tensor, x: Tensor, kept: Sequence[Tensor], task: Task, *, input_needed: bool
) -> list[Tensor | None]:
    """Gradients of x and of the weights, these in the order of ``task.flat``."""
    channel, *stats = (tensor.detach() for tensor in kept)
    flat = [None if w is None else w.detach() for w in task.flat]
    leaves = [*stats, *(w for w in flat if w is not None)]
    with torch.enable_grad():
        for leaf in leaves:
            leaf.requires_grad_()
        weights = AttentionWeights.from_flat(flat)
        parts = plain.gate_parts(ClipStatistics(*stats), weights, task.options)
    clip, upstream = task.axes.clip_view(x), task.axes.clip_view(grad)
    sums = sums_of_product(clip, upstream, stats[0].dtype)
    found = torch.autograd.grad(parts, leaves, sums, materialize_grads=True)
    by_weight = iter(found[len(stats) :])
    grads = [None if w is None else next(by_weight) for w in flat]
    if not input_needed:
        return [None, *grads]
    grad_x = task.axes.result(x, grad)
    factor = plain.add_parts(*(part.detach() for part in parts)).to(x.dtype).unsqueeze(2)
    by_stats, out = ClipStatistics(*found[: len(stats)]), task.axes.clip_view(grad_x)
    input_gradient(upstream, factor, clip, by_stats, channel=channel, out=out)
    return [grad_x, *grads]
