"""Distributional attention by the compiled kernels in ``hdf_modules/native``: for processors.

They are built with the package where there is a C++ compiler that knows OpenMP. They take pointers
and know nothing of torch, so one build serves every version of it. Compiled models call them as
operators, ``torch.ops.hdf_modules.attend`` and ``attend_backward``.
"""

from __future__ import annotations

import ctypes
from collections.abc import Sequence
from pathlib import Path
from typing import TypeVar

import torch
from torch import Tensor
from torch._utils import _unflatten_dense_tensors  # as DDP uses it: one call for all views

from hdf_modules.functional.attention import AttentionOptions, AttentionWeights, Task
from hdf_modules.functional.constants import constant
from hdf_modules.functional.frequency import dct_basis
from hdf_modules.functional.statistics import resampling_matrix

FOLDER = Path(__file__).parents[1] / "native"
# The builds that a processor can run, best first, by torch's names for what it can do.
BUILDS = {"AVX512": ("avx512", "avx2", "baseline"), "AVX2": ("avx2", "baseline")}
_STORED = {torch.float32: 0, torch.float64: 1, torch.bfloat16: 2}  # as attention.cpp numbers them
_COMPUTED = {torch.float32: torch.float32, torch.float64: torch.float64}
_COMPUTED[torch.bfloat16] = torch.float32
_MOST_WEIGHTS = 24  # as in attention.cpp, like the numbers of values here
_SIZES, _POINTERS = ctypes.c_int64 * 24, ctypes.c_void_p * (8 + _MOST_WEIGHTS)

T = TypeVar("T")
Flat = Sequence[Tensor | None]
Options = Sequence[int]  # K, whether consistency runs along time, n


def load() -> ctypes.CDLL | None:
    """The best build for this processor, or None where there is none."""
    for name in BUILDS.get(torch.backends.cpu.get_cpu_capability(), ("baseline",)):
        for path in sorted(FOLDER.glob(f"{name}.*")):
            try:
                return ctypes.CDLL(str(path))
            except OSError:  # built elsewhere, or without its OpenMP
                continue
    return None


library = load()


def is_available(x: Tensor, weights: AttentionWeights) -> bool:
    """Whether the kernels can be used for this input."""
    return (
        type(x) is Tensor
        and x.device.type == "cpu"
        and _COMPUTED.get(x.dtype) == weights.temporal_weight.dtype
        and x.numel() < 2**31
        and library is not None
    )


def forward(x: Tensor, task: Task, *, keep: bool) -> tuple[Tensor, list[Tensor]]:
    """Return y, and with ``keep`` what :func:`backward` needs besides x and the task."""
    axes, weights, options = task
    y = torch.empty_like(x)
    if axes.has_extra_tokens:
        y.copy_(x)  # the tokens beside the grid pass through
    run = torch.ops.hdf_modules.attend if torch.compiler.is_compiling() else attend
    clip, out = axes.clip_view(x), axes.clip_view(y)
    return y, [run(clip, out, weights.flat(), _integers(options), keep)]


def backward(
    grad: Tensor, x: Tensor, kept: Sequence[Tensor], task: Task, *, input_needed: bool
) -> list[Tensor | None]:
    """Gradients of x and of the weights, these in the order of ``AttentionWeights.flat``."""
    axes, flat = task.axes, task.weights.flat()
    grad_x = torch.empty_like(x) if input_needed else None
    if grad_x is not None and axes.has_extra_tokens:
        grad_x.copy_(grad)
    out = None if grad_x is None else axes.clip_view(grad_x)
    clips = axes.clip_view(x), axes.clip_view(grad), out
    compiling = torch.compiler.is_compiling()
    run = torch.ops.hdf_modules.attend_backward if compiling else attend_backward
    by_weight = run(*clips, [*kept, *flat], _integers(task.options))
    parts = iter(_unflatten_dense_tensors(by_weight, [w for w in flat if w is not None]))
    return [grad_x, *(None if w is None else next(parts) for w in flat)]


def attend(clip: Tensor, out: Tensor, flat: Flat, options: Options, keep: bool) -> Tensor:
    """Write the attended clip into ``out`` and return its statistics.

    Args:
        clip: (batch, time, channels, height, width), any strides.
        out: like the clip, overwritten.
        flat: the weights, as ``AttentionWeights.flat`` orders them.
        options: K, whether consistency runs along time, n.
        keep: whether the statistics are wanted; else nothing is returned.

    Returns:
        (batch, n): what attention.cpp calls Statistics, for :func:`attend_backward`.
    """
    x = _addressable(clip)
    y = out if _alike(out, x) else torch.empty_like(x)
    kept = _empty_statistics(clip, options, keep)
    _call("hdf_forward", [x, y, None], [kept, None], flat, options)
    if y is not out:
        out.copy_(y)
    return kept


def attend_backward(
    clip: Tensor, grad: Tensor, out: Tensor | None, tensors: Flat, options: Options
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
    x = _addressable(clip)
    upstream = grad if _alike(grad, x) else torch.empty_like(x).copy_(grad)
    y = out if out is None or _alike(out, x) else torch.empty_like(x)
    by_weight = _empty_gradient(clip, flat, len(clip))
    _call("hdf_backward", [x, y, upstream], [kept, by_weight], flat, options)
    if out is not None and y is not None and y is not out:
        out.copy_(y)
    return by_weight.sum(0)


def _empty_gradient(clip: Tensor, flat: Flat, *sizes: int) -> Tensor:
    count = sum(w.numel() for w in flat if w is not None)
    return clip.new_empty(*sizes, count, dtype=_COMPUTED[clip.dtype])


def _integers(options: AttentionOptions) -> list[int]:
    return [options.bins, int(options.consistency == "time"), options.dct_size]


def _empty_statistics(clip: Tensor, options: Options, keep: bool) -> Tensor:
    batch, frames, _, height, width = clip.shape
    count = 3 * frames * options[0] + height * width if keep else 0
    return clip.new_empty(batch, count, dtype=_COMPUTED[clip.dtype])


def _strides(clip: Tensor) -> tuple[int, int, int, int] | None:
    """Steps of batch, time, channel and position; None where the kernels cannot walk the clip.

    They want the positions of a map, or the channels of a position, next to each other.
    """
    height, width = clip.shape[3:]
    batch, time, channel, line, column = clip.stride()
    position = line if width == 1 else column
    position = 1 if height * width == 1 else position
    if min(height, width) > 1 and line != width * column:
        return None
    channel = 1 if clip.shape[2] == 1 else channel
    return (batch, time, channel, position) if 1 in (channel, position) else None


def _addressable(clip: Tensor) -> Tensor:
    return clip if _strides(clip) is not None else clip.contiguous()


def _alike(tensor: Tensor, clip: Tensor) -> bool:
    """Whether a tensor has the clip's dtype and the same axis next to each other."""
    mine, other = _strides(tensor), _strides(clip)
    if tensor.dtype != clip.dtype or mine is None or other is None:
        return False
    return (mine[3] == 1) == (other[3] == 1)


def _call(
    name: str,
    clips: list[Tensor | None],
    results: list[Tensor | None],
    flat: Flat,
    options: Options,
) -> None:
    """Run a function of the library on x, what it writes to and the gradient of y.

    The results are the statistics and the gradients of the weights. Sizes and pointers are laid out
    as attention.cpp has them in Sizes and Pointers.
    """
    x = next(clip for clip in clips if clip is not None)
    weights = [None if w is None else w.contiguous() for w in flat]
    mixing, hidden = _present(weights[4]), 0
    if len(weights) == _MOST_WEIGHTS:
        hidden = len(_present(weights[-2]))
    else:
        weights.append(None)
    bins, along_time, side = options
    sizes = [_STORED[x.dtype], torch.get_num_threads(), *x.shape]
    sizes += [bins, len(mixing), along_time, side, hidden]
    for clip in clips:
        sizes += (0, 0, 0, 0) if clip is None else _present(_strides(clip))
    kept, by_weight = results
    basis = constant(dct_basis, side, like=mixing)
    tensors = [*clips, kept, basis, *_resampling(x.shape[1], mixing), by_weight, *weights]
    addresses = [None if tensor is None else tensor.data_ptr() for tensor in tensors]
    failed = getattr(library, name)(_SIZES(*sizes), _POINTERS(*addresses))
    if failed:
        raise MemoryError(f"no memory for the intermediate values of {failed} samples")


def _present(value: T | None) -> T:
    if value is None:
        raise TypeError("attention.cpp needs this value")
    return value


def _resampling(frames: int, mixing: Tensor) -> tuple[Tensor | None, Tensor | None]:
    """Matrices from the clip's frames to the weights' and back, where they differ."""
    length = len(mixing)
    if frames == length:
        return None, None
    inward = constant(resampling_matrix, frames, length, like=mixing)
    return inward, constant(resampling_matrix, length, frames, like=mixing)


def _fake_attend(clip: Tensor, out: Tensor, flat: Flat, options: Options, keep: bool) -> Tensor:
    return _empty_statistics(clip, options, keep)


def _fake_attend_backward(
    clip: Tensor, grad: Tensor, out: Tensor | None, tensors: Flat, options: Options
) -> Tensor:
    return _empty_gradient(clip, tensors[1:])


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
