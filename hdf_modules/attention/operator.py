"""Attention as one operation of autograd: what runs it, and what backward keeps."""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
from torch import Tensor

from hdf_modules.attention import functional
from hdf_modules.attention.layout import BoundLayout
from hdf_modules.attention.weights import AttentionOptions, AttentionWeights


def attend(
    x: Tensor, axes: BoundLayout, weights: AttentionWeights, options: AttentionOptions
) -> Tensor:
    """Multiply x by its gate, as `functional.attend` does.

    For backward x and the weights alone are kept, and the gate is computed again. Compilers decide
    on that for themselves; exporters and function transforms want to see every operation.
    """
    seen_through = (
        torch.compiler.is_compiling()
        or torch._C._is_tracing()
        or torch._C._are_functorch_transforms_active()
        or torch.autograd.forward_ad._current_level >= 0
    )
    if seen_through or not torch.is_grad_enabled():
        return functional.attend(x, axes, weights, options)
    return _Attend.apply(x, axes, options, *weights)


class _Attend(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, x: Tensor, axes: BoundLayout, options: AttentionOptions, *weights: Tensor | None
    ) -> Tensor:
        ctx.axes, ctx.options = axes, options
        ctx.save_for_backward(x, *weights)
        return functional.attend(x, axes, AttentionWeights._make(weights), options)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        needed = [ctx.needs_input_grad[0], *ctx.needs_input_grad[3:]]
        again = torch.is_grad_enabled()  # whether these gradients will be differentiated
        with torch.enable_grad(), without_autocast(grad):
            inputs: list[Any] = [
                None if tensor is None else _leaf(tensor, need, again)
                for tensor, need in zip(ctx.saved_tensors, needed, strict=True)
            ]
            x, *weights = inputs
            y = functional.attend(x, ctx.axes, AttentionWeights._make(weights), ctx.options)
            wanted = [tensor for tensor, need in zip(inputs, needed, strict=True) if need]
            found = torch.autograd.grad(y, wanted, grad, create_graph=again, materialize_grads=True)
        grads = iter(found)
        by_input = [next(grads) if need else None for need in needed]
        return by_input[0], None, None, *by_input[1:]


def _leaf(tensor: Tensor, need: bool, again: bool) -> Tensor:
    """Return the tensor as one whose gradient does not lead on to what it was made of."""
    return tensor.view_as(tensor) if again else tensor.detach().requires_grad_(need)


def without_autocast(x: Tensor) -> AbstractContextManager[Any]:
    """Context in which tensors like x keep their dtype; nothing where autocast is off anyway."""
    device_type = x.device.type
    if device_type != "meta" and torch.is_autocast_enabled(device_type):  # meta: not known to it
        return torch.autocast(device_type, enabled=False)
    return nullcontext()
