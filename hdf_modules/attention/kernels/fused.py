"""Distributional attention in operations of torch, with the passes over the clip written out.

Where the plain path makes a full-size tensor for every use of the input, backward writes the
gradient of the input in one pass. The gates, small beside the clip, are differentiated by autograd.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from hdf_modules.attention import functional
from hdf_modules.attention.constants import channel_bins
from hdf_modules.attention.functional import ClipStatistics, constant
from hdf_modules.attention.kernels import Call
from hdf_modules.attention.weights import AttentionWeights

_BLOCK = 2**20  # elements of a product that is summed at once: a few megabytes, which caches hold


def forward(x: Tensor, call: Call, *, keep: bool) -> tuple[Tensor, list[Tensor]]:
    """Return y, and with ``keep`` what :func:`backward` needs besides x and the call."""
    axes, flat, options = call
    weights = AttentionWeights.from_flat(flat)
    with functional.without_autocast(x):
        dtype = weights.temporal_weight.dtype
        stats, channel = statistics(axes.clip_view(x), options.bins, dtype)
        by_time, by_position = functional.gate_parts(stats, weights, options)
        factor = by_time[:, :, None, None] + by_position[:, None]
    return x * axes.layout.broadcast(factor.to(x.dtype)), [channel, *stats] if keep else []


def backward(
    grad: Tensor, x: Tensor, kept: Sequence[Tensor], call: Call, *, input_needed: bool
) -> list[Tensor | None]:
    """Gradients of x and of the weights, these in the order of ``call.flat``."""
    axes, flat, options = call
    channel, *stats = (tensor.detach() for tensor in kept)
    flat = [None if w is None else w.detach() for w in flat]
    leaves = [*stats, *(w for w in flat if w is not None)]
    with torch.enable_grad():
        for leaf in leaves:
            leaf.requires_grad_()
        weights = AttentionWeights.from_flat(flat)
        parts = functional.gate_parts(ClipStatistics(*stats), weights, options)
    clip, upstream = axes.clip_view(x), axes.clip_view(grad)
    sums = sums_of_product(clip, upstream, stats[0].dtype)
    found = torch.autograd.grad(parts, leaves, sums, materialize_grads=True)
    by_weight = iter(found[len(stats) :])
    grads = [None if w is None else next(by_weight) for w in flat]
    if not input_needed:
        return [None, *grads]
    grad_x = axes.result(x, grad)
    by_time, by_position = (part.detach() for part in parts)
    factor = (by_time[:, :, None, None] + by_position[:, None]).to(x.dtype).unsqueeze(2)
    by_stats, out = ClipStatistics(*found[: len(stats)]), axes.clip_view(grad_x)
    input_gradient(upstream, factor, clip, by_stats, channel=channel, out=out)
    return [grad_x, *grads]


def statistics(clip: Tensor, bins: int, dtype: torch.dtype) -> tuple[ClipStatistics, Tensor]:
    """Statistics as ``functional.clip_statistics`` has them, and the channel of each maximum.

    Args:
        clip: (batch, time, channels, height, width).
        bins: number K of channel bins.
        dtype: accumulate in this dtype, and return it.

    Returns:
        The statistics, and channel indices (batch, time, bins).
    """
    frames, channels = clip.shape[1:3]
    mean = clip.mean((-2, -1), dtype=dtype)
    peaks = _maxima(clip).to(dtype)
    total = clip.sum((1, 2), dtype=dtype).div_(frames)
    members, share = constant(channel_bins, channels, bins, like=mean)
    of_bin = peaks.unflatten(-1, members.shape) if channels % bins == 0 else peaks[..., members]
    peak, member = of_bin.max(-1)
    return ClipStatistics(mean @ share, peak, total), members[:, 0] + member


def _maxima(clip: Tensor) -> Tensor:
    """Maximum over the positions, (batch, time, channels)."""
    if clip.stride(2) != 1:
        return clip.amax((-2, -1))
    lines = clip.permute(0, 1, 3, 4, 2)  # channels last: whole lines at a time, or it is slow
    return lines.amax(2).amax(2)


def sums_of_product(clip: Tensor, grad: Tensor, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    """Sums of grad·clip over all but (batch, time), and over all but (batch, height, width)."""
    batch, frames, channels, height, width = clip.shape
    by_frame = clip.new_empty(batch, frames, height, width, dtype=dtype)
    for part in _blocks(clip, channels):
        torch.sum(grad[part] * clip[part], 2, dtype=dtype, out=by_frame[part])
    return by_frame.sum((2, 3)), by_frame.sum(1)


def input_gradient(
    grad: Tensor,
    factor: Tensor,
    clip: Tensor,
    stats: ClipStatistics,
    *,
    channel: Tensor,
    out: Tensor,
) -> None:
    """Write grad·factor plus the gradient that reaches the clip through its statistics.

    Args:
        grad: with respect to the output, like the clip.
        factor: of the output, broadcasting against the clip.
        clip: (batch, time, channels, height, width).
        stats: gradients with respect to the statistics.
        channel: channel of each maximum, (batch, time, bins).
        out: view of the result, like the clip.
    """
    frames, channels, height, width = clip.shape[1:]
    _, share = constant(channel_bins, channels, stats.mean.shape[-1], like=stats.mean)
    by_channel = (stats.mean @ share.mT).div_(height * width).to(clip.dtype)
    by_position = (stats.total / frames).to(clip.dtype)
    torch.add(by_channel[..., None, None], by_position[:, None, None], out=out)
    out.addcmul_(grad, factor)
    parts = _blocks(clip, channel.shape[-1])
    position = torch.cat([_first_maximum(_maps(clip[part], channel[part])) for part in parts])
    offset = position // width * out.stride(3) + position % width * out.stride(4)
    offset += _offset_of_maps(out, channel)
    _memory(out).index_add_(0, offset.flatten(), stats.peak.to(clip.dtype).flatten())


def _first_maximum(maps: Tensor) -> Tensor:
    """Index of the first maximum of each map (…, positions); the maps are consumed.

    Counting down to the maximum is several times faster than ``argmax`` on a processor.
    """
    if maps.dtype not in (torch.float32, torch.float64):
        maps = maps.float()  # has to count all positions exactly
    size = maps.shape[-1]
    countdown = torch.arange(size, 0, -1, dtype=maps.dtype, device=maps.device)
    reached = maps.ge_(maps.amax(-1, keepdim=True)).mul_(countdown)
    return (size - reached.amax(-1).long()).clamp_(max=size - 1)  # beyond the end where all is NaN


def _maps(clip: Tensor, channel: Tensor) -> Tensor:
    """Copy the maps of these channels: (batch, time, bins, height·width)."""
    width, size = clip.shape[4], clip.shape[3] * clip.shape[4]
    if clip.stride()[3:] == (width, 1) and all(step % size == 0 for step in clip.stride()[:3]):
        row = _offset_of_maps(clip, channel).div_(size, rounding_mode="floor")
        return _memory(clip).view(-1, size).index_select(0, row.flatten()).view(*row.shape, size)
    picked = clip.flatten(3).mT.gather(-1, channel.unsqueeze(2).expand(-1, -1, size, -1))
    return picked.mT.contiguous()


def _offset_of_maps(clip: Tensor, channel: Tensor) -> Tensor:
    """Where in memory the map of each (batch, time, channel) begins."""
    batch, frames = channel.shape[:2]
    b = torch.arange(batch, device=clip.device)[:, None, None] * clip.stride(0)
    t = torch.arange(frames, device=clip.device)[:, None] * clip.stride(1)
    return channel * clip.stride(2) + (b + t)


def _memory(clip: Tensor) -> Tensor:
    """Flat view of the memory from the clip's first element to its last."""
    steps = zip(clip.shape, clip.stride(), strict=True)
    return clip.as_strided((1 + sum((size - 1) * step for size, step in steps),), (1,))


def _blocks(clip: Tensor, maps: int) -> list[slice]:
    """Parts of the batch with so few elements, at this many maps a frame, that caches hold them."""
    batch, frames, _, height, width = clip.shape
    step = (
        max(1, _BLOCK // (frames * maps * height * width)) if clip.device.type == "cpu" else batch
    )
    return [slice(start, start + step) for start in range(0, batch, step)]
