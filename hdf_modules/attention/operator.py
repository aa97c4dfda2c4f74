"""Attention as one operation of autograd, or of compilers; what backward keeps of it."""

from __future__ import annotations

import os
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
from torch import Tensor

from hdf_modules.attention import choice, functional, opaque, running
from hdf_modules.attention.exporting import exporting
from hdf_modules.attention.kernels.plan import Kept, shaped
from hdf_modules.attention.layout import BoundLayout
from hdf_modules.attention.weights import AttentionOptions, AttentionWeights


def attend(
    x: Tensor, axes: BoundLayout, weights: AttentionWeights, options: AttentionOptions
) -> Tensor:
    """Multiply x by its gate, as `functional.attend` does.

    For backward x and the weights alone are kept, and the gate is computed again; kernels also keep
    a little of what they found. Compilers see one operator where kernels compute, and decide for
    themselves where equations do; exporters and function transforms want to see every operation.
    """
    call = x, axes, weights, options
    compiling = torch.compiler.is_compiling()
    if (
        (exporting() if compiling else torch._C._is_tracing())
        or torch._C._are_functorch_transforms_active()
        or torch.autograd.forward_ad._current_level >= 0
    ):
        return functional.attend(*call)
    if compiling:
        return (opaque.attend if choice.foreseen(*call) else functional.attend)(*call)
    asked = x.is_cuda or "HDF_KERNELS" in os.environ or "TRITON_INTERPRET" in os.environ
    kernels = asked and choice.chosen(*call)
    if torch.is_grad_enabled():
        return _Attend.apply(x, axes, options, kernels, *weights)
    launched = running.launched(*call) if kernels else None
    return launched[0] if launched else functional.attend(*call)


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
        launched = running.launched(*call) if kernels else None
        y, kept = launched or (functional.attend(*call), ())
        ctx.save_for_backward(x, *weights, *kept)
        return y

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        needed = [ctx.needs_input_grad[0], *ctx.needs_input_grad[4:]]
        x, *saved = ctx.saved_tensors  # once: checkpointing computes them again for one reader
        weights = AttentionWeights._make(saved[: len(needed) - 1])
        call, kept = (grad, x, ctx.axes, weights, ctx.options), saved[len(weights) :]
        found: list[Tensor | None] | None = None
        # Gradients that will be differentiated are those of the equations.
        if kept and type(grad) is Tensor and not torch.is_grad_enabled():
            flat = running.by_kernels(*call, kept=Kept._make(kept), of_x=needed[0])
            found = flat and [flat[0], *shaped(*flat[1:], weights, ctx.options)]
        with without_autocast(grad):
            found = found or running.by_equations(*call, needed=needed)
        of_x, *of_weights = [g if need else None for g, need in zip(found, needed, strict=True)]
        return of_x, None, None, None, *of_weights


def without_autocast(x: Tensor) -> AbstractContextManager[Any]:
    """Context in which tensors like x keep their dtype; nothing where autocast is off anyway."""
    device_type = x.device.type
    if device_type != "meta" and torch.is_autocast_enabled(device_type):  # meta: not known to it
        return torch.autocast(device_type, enabled=False)
    return nullcontext()
