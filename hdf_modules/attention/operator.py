"""Attention as one operation of autograd: what runs it, and what backward keeps."""

from __future__ import annotations

import os
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
from torch import Tensor

from hdf_modules.attention import choice, functional
from hdf_modules.attention.layout import BoundLayout
from hdf_modules.attention.weights import AttentionOptions, AttentionWeights


def attend(
    x: Tensor, axes: BoundLayout, weights: AttentionWeights, options: AttentionOptions
) -> Tensor:
    """Multiply x by its gate, as `functional.attend` does.

    For backward x and the weights alone are kept, and the gate is computed again; kernels also keep
    a little of what they found. Compilers decide on that for themselves; exporters and function
    transforms want to see every operation.
    """
    seen_through = (
        torch.compiler.is_compiling()
        or torch._C._is_tracing()
        or torch._C._are_functorch_transforms_active()
        or torch.autograd.forward_ad._current_level >= 0
    )
    if seen_through:
        return functional.attend(x, axes, weights, options)
    asked = x.is_cuda or "HDF_KERNELS" in os.environ or "TRITON_INTERPRET" in os.environ
    kernels = asked and choice.chosen(x, axes, weights, options)
    if torch.is_grad_enabled():
        return _Attend.apply(x, axes, options, kernels, *weights)
    launched = _launched(x, axes, weights, options) if kernels else None
    return launched[0] if launched else functional.attend(x, axes, weights, options)


def _launched(
    x: Tensor, axes: BoundLayout, weights: AttentionWeights, options: AttentionOptions
) -> tuple[Tensor, tuple[Tensor, ...]] | None:
    """Return what kernels compute and what they keep, or None where they fail."""
    from hdf_modules.attention.kernels import launch  # noqa: PLC0415 (imports the compiler)

    try:
        with choice.on_device_of(x):
            return launch.forward(x, axes, weights, options)
    except Exception as error:  # compilers fail in many ways
        choice.failed(axes, options, error)
    return None


class _Attend(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        x: Tensor,
        axes: BoundLayout,
        options: AttentionOptions,
        kernels: bool,
        *weights: Tensor | None,
    ) -> Tensor:
        ctx.axes, ctx.options = axes, options
        call = x, axes, AttentionWeights._make(weights), options
        launched = _launched(*call) if kernels else None
        y, kept = launched or (functional.attend(*call), ())
        ctx.save_for_backward(x, *weights, *kept)
        return y

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        needed = [ctx.needs_input_grad[0], *ctx.needs_input_grad[4:]]
        saved = ctx.saved_tensors  # once: checkpointing computes them again for one reader
        found = _by_kernels(ctx, saved, grad, needed[0]) or _by_equations(ctx, saved, grad, needed)
        of_x, *of_weights = [g if need else None for g, need in zip(found, needed, strict=True)]
        return of_x, None, None, None, *of_weights


def _by_kernels(
    ctx: Any, given: tuple[Tensor, ...], grad: Tensor, of_x: bool
) -> list[Tensor | None] | None:
    """Return the gradients, or None where kernels did not run or these will be differentiated."""
    inputs = 1 + len(AttentionWeights._fields)
    x, *saved = given
    weights, kept = AttentionWeights(*saved[: inputs - 1]), saved[inputs - 1 :]
    if not kept or torch.is_grad_enabled() or type(grad) is not Tensor:
        return None
    from hdf_modules.attention.kernels import launch  # noqa: PLC0415 (imports the compiler)

    try:
        with choice.on_device_of(x):
            call = grad, x, ctx.axes, weights, ctx.options, launch.Kept(*kept)
            return launch.backward(*call, of_x=of_x)
    except Exception as error:  # compilers fail in many ways
        choice.failed(ctx.axes, ctx.options, error)
    return None


def _by_equations(
    ctx: Any, given: tuple[Tensor, ...], grad: Tensor, needed: list[bool]
) -> list[Tensor | None]:
    """Compute again, and differentiate that."""
    again = torch.is_grad_enabled()  # whether these gradients will be differentiated
    with torch.enable_grad(), without_autocast(grad):
        inputs: list[Any] = [
            None if tensor is None else _leaf(tensor, need, again)
            for tensor, need in zip(given, needed, strict=False)  # and what is kept
        ]
        x, *weights = inputs
        y = functional.attend(x, ctx.axes, AttentionWeights._make(weights), ctx.options)
        wanted = [tensor for tensor, need in zip(inputs, needed, strict=True) if need]
        found = torch.autograd.grad(y, wanted, grad, create_graph=again, materialize_grads=True)
    grads = iter(found)
    return [next(grads) if need else None for need in needed]


def _leaf(tensor: Tensor, need: bool, again: bool) -> Tensor:
    """Return the tensor as one whose gradient does not lead on to what it was made of."""
    return tensor.view_as(tensor) if again else tensor.detach().requires_grad_(need)


def without_autocast(x: Tensor) -> AbstractContextManager[Any]:
    """Context in which tensors like x keep their dtype; nothing where autocast is off anyway."""
    device_type = x.device.type
    if device_type != "meta" and torch.is_autocast_enabled(device_type):  # meta: not known to it
        return torch.autocast(device_type, enabled=False)
    return nullcontext()
