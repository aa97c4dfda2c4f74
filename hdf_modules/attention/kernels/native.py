"""Distributional attention by the compiled kernels in ``cpp``: for processors.

They are built with the package where there is a C++ compiler that knows OpenMP. They take pointers
and know nothing of torch, so one build serves every version of it. At one clip the Python around
them, whose data a network drives out of the caches between two calls, takes as long as they do:
what depends on shapes alone is found once.
"""

from __future__ import annotations

import ctypes
from collections.abc import Sequence
from functools import lru_cache
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor
from torch._utils import _unflatten_dense_tensors  # as DDP uses it: one call for all views

from hdf_modules.attention.constants import dct_basis, resampling_matrix
from hdf_modules.attention.kernels import Call
from hdf_modules.attention.layout import BoundLayout, Layout, Sizes
from hdf_modules.attention.weights import NAMES, AttentionOptions, Flat

FOLDER = Path(__file__).parent / "cpp"
# The builds that a processor can run, best first, by torch's names for what it can do.
BUILDS = {"AVX512": ("avx512", "avx2", "baseline"), "AVX2": ("avx2", "baseline")}
_STORED = {torch.float32: 0, torch.float64: 1, torch.bfloat16: 2}  # as attention.cpp numbers them
COMPUTED = {torch.float32: torch.float32, torch.float64: torch.float64}
COMPUTED[torch.bfloat16] = torch.float32
INTERFACE = 2  # as in attention.cpp
_Weights = ctypes.c_void_p * len(NAMES)
_MIXING = NAMES.index("temporal.mixing")
_READOUTS = NAMES.index("frequency.readout.0"), NAMES.index("frequency.readout.1")
_CLIP = Layout("b t c h w")

Strides = tuple[int, ...]
Clips = tuple[Tensor, Tensor | None, Tensor | None]


def load() -> ctypes.CDLL | None:
    """The best build for this processor, or None where there is none."""
    for name in BUILDS.get(torch.backends.cpu.get_cpu_capability(), ("baseline",)):
        for path in sorted(FOLDER.glob(f"{name}.*")):
            try:
                return open_build(path)
            except (OSError, ValueError):  # built elsewhere, without its OpenMP, or long ago
                continue
    return None


def open_build(path: Path) -> ctypes.CDLL:
    """Open one build.

    Raises:
        OSError: if the system cannot load it.
        ValueError: if it is of another version, or takes the weights in another order.
    """
    build = ctypes.CDLL(str(path))
    interface = ctypes.c_int.in_dll(build, "hdf_interface").value
    if interface != INTERFACE:
        raise ValueError(f"{path}: expected interface {INTERFACE}, found {interface}")
    build.hdf_weights.restype = ctypes.c_char_p
    order = tuple(build.hdf_weights().decode().split())
    if order != NAMES:
        raise ValueError(f"{path}: expected weights in the order {NAMES}, found {order}")
    for function in (build.hdf_forward, build.hdf_backward):
        function.argtypes = [ctypes.c_void_p] * 8
    return build


library = load()


def is_available(x: Tensor, dtype: torch.dtype) -> bool:
    """Whether the kernels can be used for this input in this dtype."""
    return (
        type(x) is Tensor
        and x.is_cpu
        and COMPUTED.get(x.dtype) == dtype
        and x.numel() < 2**31
        and library is not None
    )


def forward(x: Tensor, call: Call, *, keep: bool) -> tuple[Tensor, list[Tensor]]:
    """Return y, and with ``keep`` what :func:`backward` needs besides x and the call."""
    y = call.axes.result(x, x)
    kept = empty_statistics(x, call.axes.sizes, call.options.bins) if keep else None
    run("hdf_forward", call, (x, y, None), (kept, None))
    return y, [] if kept is None else [kept]


def backward(
    grad: Tensor, x: Tensor, kept: Sequence[Tensor], call: Call, *, input_needed: bool
) -> list[Tensor | None]:
    """Gradients of x and of the weights, these in the order of ``call.flat``."""
    axes, flat, _ = call
    grad_x = axes.result(x, grad) if input_needed else None
    by_sample = empty_gradient(x, flat, axes.sizes.b)
    run("hdf_backward", call, (x, grad_x, grad), (kept[0], by_sample))
    return [grad_x, *split_gradient(by_sample.sum(0), flat)]


def split_gradient(by_weight: Tensor, flat: Flat) -> list[Tensor | None]:
    """Give each weight its part of the gradients that lie one behind the other."""
    parts = iter(_unflatten_dense_tensors(by_weight, [w for w in flat if w is not None]))
    return [None if w is None else next(parts) for w in flat]


class _Route(NamedTuple):
    """What the kernels want to know besides addresses; it depends on shapes alone.

    Attributes:
        sizes: as attention.cpp lays them out in Sizes.
        starts: bytes before the clip in x, in y and in the gradient of y.
        constants: addresses as in attention.cpp's Constants.
        tensors: what lies there.
    """

    sizes: ctypes.Array[ctypes.c_int64]
    starts: list[int]
    constants: ctypes.Array[ctypes.c_void_p]
    tensors: list[Tensor | None]


def run(function: str, call: Call, clips: Clips, results: Sequence[Tensor | None]) -> None:
    """Run a function of the library.

    Args:
        function: its name.
        call: where all clips keep their axes, the weights, and what their shapes do not say.
        clips: x, what it writes to, and the gradient of y.
        results: the statistics and the gradients of the weights, by sample.
    """
    axes, flat, options = call
    x, y, grad = clips
    flat = [w if w is None or w.is_contiguous() else w.contiguous() for w in flat]
    route = None
    if grad is None or grad.dtype == x.dtype:
        strides = tuple([None if clip is None else clip.stride() for clip in clips])
        first, second = (flat[place] for place in _READOUTS)
        hidden = 0 if second is None else first.shape[0]
        others = flat[_MIXING].shape[0], hidden, torch.get_num_threads()
        route = _route(axes, strides, x.dtype, options, others)
    if route is None:
        _run_on_copies(function, call, clips, results)
        return
    starts = route.starts
    failed = getattr(library, function)(
        route.sizes,
        route.constants,
        _Weights(*[None if w is None else w.data_ptr() for w in flat]),
        x.data_ptr() + starts[0],
        None if y is None else y.data_ptr() + starts[1],
        None if grad is None else grad.data_ptr() + starts[2],
        *[None if result is None else result.data_ptr() for result in results],
    )
    if failed:
        raise MemoryError(f"no memory for the intermediate values of {failed} samples")


def _run_on_copies(
    function: str, call: Call, clips: Clips, results: Sequence[Tensor | None]
) -> None:
    """Do as :func:`run` for tensors that the kernels cannot walk."""
    axes = call.axes
    x = axes.clip_view(clips[0]).contiguous()
    out, upstream = [None if c is None else axes.clip_view(c) for c in clips[1:]]
    y = None if out is None else torch.empty_like(x)
    grad = None if upstream is None else torch.empty_like(x).copy_(upstream)
    run(function, call._replace(axes=bound(x)), (x, y, grad), results)
    if out is not None and y is not None:
        out.copy_(y)


@lru_cache(maxsize=1024)
def _route(
    axes: BoundLayout,
    strides: tuple[Strides | None, ...],
    dtype: torch.dtype,
    options: AttentionOptions,
    others: tuple[int, int, int],
) -> _Route | None:
    """Find the route through x, y and the gradient of y by their strides, None for absent ones.

    ``others`` are the frames that the weights are for, the maps between two read-out convolutions,
    and the threads.

    None where the kernels cannot walk the tensors: they want the positions of a map, or the
    channels of a position, next to each other, and the same in all tensors.
    """
    length, hidden, threads = others
    sizes = [_STORED[dtype], threads, *axes.sizes, options.bins, length]
    sizes += [options.consistency == "time", options.dct_size, hidden]
    starts, adjacent = [], set()
    for tensor in strides:
        start, steps = 0, (0, 0, 0, 0)
        if tensor is not None:
            start, clip_strides = axes.walk(tensor)
            walkable = _steps(axes.sizes, clip_strides)
            if walkable is None:
                return None
            steps = walkable
            adjacent.add(steps[3] == 1)
        starts.append(start * dtype.itemsize)
        sizes += steps
    if len(adjacent) > 1:
        return None
    computed, cpu, frames = COMPUTED[dtype], torch.device("cpu"), axes.sizes.t
    tensors: list[Tensor | None] = [dct_basis(options.dct_size, computed, cpu), None, None]
    if frames != length:
        pairs = (frames, length), (length, frames)
        tensors[1:] = [resampling_matrix(*pair, computed, cpu) for pair in pairs]
    addresses = [None if tensor is None else tensor.data_ptr() for tensor in tensors]
    array = (ctypes.c_int64 * len(sizes))(*sizes)
    return _Route(array, starts, (ctypes.c_void_p * 3)(*addresses), tensors)


def _steps(sizes: Sizes, strides: Strides) -> tuple[int, int, int, int] | None:
    """Steps of batch, time, channel and position, or None."""
    batch, time, channel, line, column = strides
    position = line if sizes.w == 1 else column
    position = 1 if sizes.h * sizes.w == 1 else position
    if min(sizes.h, sizes.w) > 1 and line != sizes.w * column:
        return None
    channel = 1 if sizes.c == 1 else channel
    return (batch, time, channel, position) if 1 in (channel, position) else None


def bound(clip: Tensor) -> BoundLayout:
    """The layout of a tensor (batch, time, channels, height, width)."""
    return BoundLayout(_CLIP, Sizes(*clip.shape), tuple(clip.shape))


def empty_gradient(x: Tensor, flat: Flat, *sizes: int) -> Tensor:
    """Room for the gradients of all weights that are there, one behind the other."""
    count = sum([w.numel() for w in flat if w is not None])
    return x.new_empty(*sizes, count, dtype=COMPUTED[x.dtype])


def empty_statistics(x: Tensor, sizes: Sizes, bins: int) -> Tensor:
    """Room for what attention.cpp calls Statistics."""
    count = 3 * sizes.t * bins + sizes.h * sizes.w
    return x.new_empty(sizes.b, count, dtype=COMPUTED[x.dtype])
