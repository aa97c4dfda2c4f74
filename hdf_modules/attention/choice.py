"""Whether kernels compute attention, and why not; this imports none of them."""

from __future__ import annotations

import os
import warnings
from contextlib import AbstractContextManager, nullcontext
from typing import Any, NamedTuple

import torch
from torch import Tensor

from hdf_modules.attention import functional
from hdf_modules.attention.branches import KERNEL_SIZE
from hdf_modules.attention.kernels.plan import shaped
from hdf_modules.attention.layout import BoundLayout, Layout
from hdf_modules.attention.weights import AttentionOptions, AttentionWeights
from hdf_modules.errors import HDFError, choose

MOST = 128  # frames and bins: a program holds a matrix of them
LARGEST_SPECTRUM = 7
OLDEST = (3, 3)  # the first Triton whose kernels take tuples, and so named weights
DTYPES = (torch.float32, torch.bfloat16, torch.float16)
PLAIN = (Tensor, torch.nn.Parameter)

_failed: dict[Any, str] = {}


class Choice(NamedTuple):
    """What computes attention, ``"reference"`` (operations of torch) or ``"gpu"``, and why."""

    path: str
    why: str


def kernels_used(x: Tensor) -> Choice:
    """Tell what would compute attention over x, outside of compilers and function transforms.

    Example:
        >>> kernels_used(torch.ones(1, dtype=torch.float64)).path
        'reference'
    """
    why = _not_for(x) or _not_on(x.device)
    return Choice("reference", why) if why else Choice("gpu", f"kernels work on {x.device}")


def chosen(
    x: Tensor, axes: BoundLayout, weights: AttentionWeights, options: AttentionOptions
) -> bool:
    """Whether kernels compute this.

    Raises:
        HDFError: if they do not, and the environment variable ``HDF_KERNELS`` is ``gpu``.
    """
    why = _not_for(x) or _not_with(x, axes, weights, options)
    why = why or _failed.get((axes.sizes, options)) or _not_on(x.device)
    if why and os.environ.get("HDF_KERNELS") == "gpu":
        raise _missing(why)
    return not why


def foreseen(
    x: Tensor, axes: BoundLayout, weights: AttentionWeights, options: AttentionOptions
) -> bool:
    """Whether kernels may compute this, for compilers: whatever a compiled graph is fixed for."""
    if type(x) not in PLAIN or not _usable(x.device, x.dtype):
        return False
    return not _not_with(x, axes, weights, options)


def _usable(device: torch.device, dtype: torch.dtype) -> bool:
    return not (_not_for_kind(device, dtype) or _not_on(device))


# What torch.compiler.assume_constant_result does, which imports the compiler: called, not traced.
_usable._dynamo_marked_constant = True  # type: ignore[attr-defined]


def failed(axes: BoundLayout, options: AttentionOptions, error: Exception) -> None:
    """Remember that kernels failed at these sizes, and warn; out of memory they did not fail.

    Raises:
        Exception: what happened, where it is not the kernels' failure.
        HDFError: if the environment variable ``HDF_KERNELS`` is ``gpu``.
    """
    if isinstance(error, torch.OutOfMemoryError):
        raise error
    why = _failed[axes.sizes, options] = _said(error)
    if os.environ.get("HDF_KERNELS") == "gpu":
        raise _missing(why) from error
    _warn(f"at {axes.sizes}: {why}")


def on_device_of(x: Tensor) -> AbstractContextManager[Any]:
    """Context in which launches go to the device of x."""
    return torch.cuda.device(x.device) if x.is_cuda else nullcontext()


def _not_for(x: Tensor) -> str | None:
    if type(x) not in PLAIN:
        return f"x is a {type(x).__name__}"
    return _not_for_kind(x.device, x.dtype)


def _not_for_kind(device: torch.device, dtype: torch.dtype) -> str | None:
    mode = os.environ.get("HDF_KERNELS")
    if mode and choose("HDF_KERNELS", mode, ("reference", "gpu")) == "reference":
        return "HDF_KERNELS=reference"
    interpreted = device.type == "cpu" and os.environ.get("TRITON_INTERPRET") == "1"
    if not (device.type == "cuda" or interpreted):
        return f"there are no kernels for {device.type}"
    return None if dtype in DTYPES else f"there are no kernels for {dtype}"


def _not_with(
    x: Tensor, axes: BoundLayout, weights: AttentionWeights, options: AttentionOptions
) -> str | None:
    """Say what the kernels cannot do of this call."""
    b, t, _, h, w = axes.sizes
    length = len(weights.temporal_scale)
    for tensor in weights:
        if tensor is not None and not (
            type(tensor) in PLAIN and tensor.dtype == torch.float32 and tensor.device == x.device
        ):
            return f"a weight is {type(tensor).__name__} of {tensor.dtype} on {tensor.device}"
    if weights.frequency_second_readout is not None:
        return "the read-out has two convolutions"
    if weights.frequency_readout.shape[-1] != KERNEL_SIZE or options.dct_size > LARGEST_SPECTRUM:
        return f"dct_size is above {LARGEST_SPECTRUM}"
    if max(t, length, options.bins) > MOST:
        return f"there are more than {MOST} frames or bins"
    reach = sum((n - 1) * stride for n, stride in zip(x.shape, x.stride(), strict=True))
    if max(reach, b * max(64 * h * w, 10 * MOST**2)) >= 2**31:
        return "x is too large for 32-bit indices"
    return None


def _not_on(device: torch.device) -> str | None:
    """Say why kernels do not run on a device; looked into when it is first used."""
    if device.type == "cuda" and torch.cuda.is_current_stream_capturing():
        return _known.get(device, "a graph is being captured before their first use")
    if device not in _known:
        try:
            _known[device] = why = _compared(device)
        except Exception as error:  # compilers fail in many ways
            _known[device] = why = _said(error)
        if why:
            _warn(f"on {device}: {why}")
    return _known[device]


_known: dict[torch.device, str | None] = {}


def _compared(device: torch.device) -> str | None:
    """Compare forward and backward with the reference, once; say where they differ."""
    import triton  # noqa: PLC0415 (heavy, and not there everywhere)

    if tuple(map(int, triton.__version__.split(".")[:2])) < OLDEST:
        return f"Triton {triton.__version__} is older than 3.3, which came with torch 2.7"
    from hdf_modules.attention.kernels import launch  # noqa: PLC0415 (imports the compiler)

    for limit, sizes, options in _TRIALS[: 1 if device.type == "cpu" else None]:
        error = _difference(launch, device, sizes, options)
        if not error < limit:
            return f"they differ from the equations by {error:.0e} at {sizes}"
    return None


# Ten times what torch's own float32 differs by; batch, channels, frames, height, width. The second,
# of many programs, is for devices: an interpreter takes minutes, and runs one program at a time.
_TRIALS = (
    (1e-4, (2, 5, 3, 5, 6), AttentionOptions(4, "time", 3)),
    (1e-3, (4, 24, 16, 28, 28), AttentionOptions(16, "time", 7)),
)


def _difference(
    launch: Any, device: torch.device, sizes: tuple[int, ...], options: AttentionOptions
) -> float:
    """Return by how much of their length results and gradients differ from the equations'."""
    source = torch.Generator().manual_seed(0)
    t, k, n = sizes[2], options.bins, options.dct_size**2
    shapes: list[Any] = [1, 1, (t, k), (t, k), (t, t), *[(k, k), k] * 3, 1, 1, n, n, n, 1, n, n]
    shapes += [(1, n, KERNEL_SIZE, KERNEL_SIZE), None, 1, 1, 1]
    drawn: list[Any] = [
        None if s is None else 0.5 * torch.randn(s, generator=source) for s in shapes
    ]
    x, grad = torch.randn((2, *sizes), generator=source)
    axes = Layout("b c t h w").bind(x, t)
    with torch.enable_grad(), torch.inference_mode(False):
        leaves: list[Any] = [
            None if d is None else d.double().requires_grad_() for d in (x, *drawn)
        ]
        y = functional.attend(leaves[0], axes, AttentionWeights(*leaves[1:]), options)
        wanted = [leaf for leaf in leaves if leaf is not None]
        expected = [y.detach(), *torch.autograd.grad(y, wanted, grad.double())]
    with torch.no_grad():
        moved: list[Any] = [None if d is None else d.to(device) for d in (x, *drawn)]
        there, weights = moved[0], AttentionWeights(*moved[1:])
        y, kept = launch.forward(there, axes, weights, options)
        call = grad.to(device), there, axes, weights, options, kept
        of_x, flat, of_readout = launch.backward(*call)
        of_weights = shaped(flat, of_readout, weights, options)
        found = [y, of_x, *[g for g in of_weights if g is not None]]
        pairs = zip(found, expected, strict=True)
        return max(float((f.cpu() - e).norm() / (e.norm() + 1e-2)) for f, e in pairs)


def _missing(why: str) -> HDFError:
    return HDFError("HDF_KERNELS", "kernels that run", why, "unset it to compute without them")


def _said(error: Exception) -> str:
    lines = str(error).strip().splitlines() or [""]
    return f"{type(error).__name__}: {lines[-1][:200]}"


def _warn(why: str) -> None:
    if os.environ.get("HDF_KERNELS") != "gpu":  # which makes it an error
        said = f"attention is computed without GPU kernels {why} (HDF_KERNELS=reference: no try)"
        warnings.warn(said, RuntimeWarning, stacklevel=2)
