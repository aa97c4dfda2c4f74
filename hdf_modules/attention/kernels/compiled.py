"""The kernels of ``native`` as operators of torch, for compiled models.

``torch.ops.hdf_modules.attend`` and ``attend_backward`` take clips as (batch, time, channels,
height, width), so that compilers need not know of layouts.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from hdf_modules.attention.kernels import Call, native
from hdf_modules.attention.layout import Sizes
from hdf_modules.attention.weights import AttentionOptions, Flat


def forward(x: Tensor, call: Call, *, keep: bool) -> tuple[Tensor, list[Tensor]]:
    """Return y, and with ``keep`` what :func:`backward` needs besides x and the call."""
    axes, flat, options = call
    y = axes.result(x, x)
    clip, out = axes.clip_view(x), axes.clip_view(y)
    return y, [torch.ops.hdf_modules.attend(clip, out, flat, _integers(options), keep)]


def backward(
    grad: Tensor, x: Tensor, kept: Sequence[Tensor], call: Call, *, input_needed: bool
) -> list[Tensor | None]:
    """Gradients of x and of the weights, these in the order of ``call.flat``."""
    axes, flat, options = call
    grad_x = axes.result(x, grad) if input_needed else None
    out = None if grad_x is None else axes.clip_view(grad_x)
    by_weight = torch.ops.hdf_modules.attend_backward(
        axes.clip_view(x), axes.clip_view(grad), out, [*kept, *flat], _integers(options)
    )
    return [grad_x, *native.split_gradient(by_weight, flat)]


def attend(clip: Tensor, out: Tensor, flat: Flat, options: Sequence[int], keep: bool) -> Tensor:
    """Write the attended clip into ``out`` and return its statistics.

    Args:
        clip: (batch, time, channels, height, width), any strides.
        out: like the clip, overwritten.
        flat: the weights, in the order of `weights.NAMES`.
        options: K, whether consistency runs along time, n.
        keep: whether the statistics are wanted; else nothing is returned.

    Returns:
        (batch, n): what attention.cpp calls Statistics, for :func:`attend_backward`.
    """
    kept = _fake_attend(clip, out, flat, options, keep)
    call = Call(native.bound(clip), flat, _named(options))
    native.run("hdf_forward", call, (clip, out, None), (kept if keep else None, None))
    return kept


def attend_backward(
    clip: Tensor, grad: Tensor, out: Tensor | None, tensors: Flat, options: Sequence[int]
) -> Tensor:
    """Write the gradient of the clip into ``out``, if given, and return that of the weights.

    Args:
        clip: as for :func:`attend`, like ``options``.
        grad: with respect to the attended clip, like the clip.
        out: like the clip, overwritten.
        tensors: what :func:`attend` returned, then the weights as it takes them.
        options: as above.

    Returns:
        The gradients of all weights that are there, one behind the other.
    """
    kept, *flat = tensors
    by_sample = native.empty_gradient(clip, flat, len(clip))
    call = Call(native.bound(clip), flat, _named(options))
    native.run("hdf_backward", call, (clip, out, grad), (kept, by_sample))
    return by_sample.sum(0)


def _integers(options: AttentionOptions) -> list[int]:
    return [options.bins, int(options.consistency == "time"), options.dct_size]


def _named(options: Sequence[int]) -> AttentionOptions:
    bins, along_time, dct_size = options
    return AttentionOptions(bins, "time" if along_time else "bins", dct_size)


def _fake_attend(
    clip: Tensor, out: Tensor, flat: Flat, options: Sequence[int], keep: bool
) -> Tensor:
    if keep:
        return native.empty_statistics(clip, Sizes(*clip.shape), options[0])
    return clip.new_empty(len(clip), 0, dtype=native.COMPUTED[clip.dtype])


def _fake_attend_backward(
    clip: Tensor, grad: Tensor, out: Tensor | None, tensors: Flat, options: Sequence[int]
) -> Tensor:
    return native.empty_gradient(clip, tensors[1:])


_operators = torch.library.Library("hdf_modules", "DEF")
_operators.define(
    "attend(Tensor clip, Tensor(a!) out, Tensor?[] flat, int[] options, bool keep) -> Tensor"
)
_operators.define(
    "attend_backward(Tensor clip, Tensor grad, Tensor(a!)? out, Tensor?[] tensors, int[] options)"
    " -> Tensor"
)
_operators.impl("attend", attend, "CPU")
_operators.impl("attend_backward", attend_backward, "CPU")
torch.library.register_fake("hdf_modules::attend", _fake_attend, lib=_operators)
torch.library.register_fake("hdf_modules::attend_backward", _fake_attend_backward, lib=_operators)
