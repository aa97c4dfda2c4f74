"""Distributional attention as one autograd function: the fast path beside ``functional.attend``.

The same numbers, with less memory traffic. Forward keeps, besides the input, only the statistics
(a few thousand numbers); backward recomputes the gates from them. Two sets of kernels do the work:
``native`` on processors, where it was built, and ``fused`` everywhere.
"""

from __future__ import annotations

from types import ModuleType
from typing import Any

import torch
from torch import Tensor

from hdf_modules.attention import functional
from hdf_modules.attention.kernels import Call, compiled, fused, native
from hdf_modules.attention.layout import BoundLayout
from hdf_modules.attention.weights import AttentionOptions, AttentionWeights

# Torch 2.6 does not tell exporters from compilers: both get the plain path there.
_is_exporting = getattr(torch.compiler, "is_exporting", torch.compiler.is_compiling)


def kernels(x: Tensor, dtype: torch.dtype) -> ModuleType | None:
    """The fast kernels for this input in this dtype; None where only the plain path can run.

    Exporters and function transforms look into every operation. Compilers do too, and are good at
    it, but on a processor not as fast as ``native``.
    """
    compiling = torch.compiler.is_compiling()
    if compiling:
        transparent = _is_exporting()
    else:
        transparent = torch._C._is_tracing() or torch._C._are_functorch_transforms_active()
    if transparent or x.numel() == 0:
        return None
    if native.is_available(x, dtype):
        return compiled if compiling else native
    return None if compiling else fused


def attend(
    x: Tensor, axes: BoundLayout, weights: AttentionWeights, options: AttentionOptions
) -> Tensor:
    """Multiply x by its gate, as :func:`hdf_modules.attention.functional.attend` does."""
    chosen = kernels(x, weights.temporal_weight.dtype)
    if chosen is None:
        return functional.attend(x, axes, weights, options)
    if torch.is_grad_enabled():
        return _Attend.apply(x, axes, options, chosen, *weights.flat())
    y, _ = chosen.forward(x, Call(axes, weights.flat(), options), keep=False)
    return y


class _Attend(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        x: Tensor,
        axes: BoundLayout,
        options: AttentionOptions,
        chosen: ModuleType,
        *flat: Tensor | None,
    ) -> Tensor:
        y, kept = chosen.forward(x, Call(axes, flat, options), keep=True)
        ctx.axes, ctx.options, ctx.kernels, ctx.count = axes, options, chosen, len(kept)
        ctx.save_for_backward(x, *kept, *flat)
        return y

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        x, *saved = ctx.saved_tensors
        kept, flat = saved[: ctx.count], saved[ctx.count :]
        call = Call(ctx.axes, flat, ctx.options)
        needed = [ctx.needs_input_grad[0], *ctx.needs_input_grad[4:]]
        with torch.autocast(grad.device.type, enabled=False):
            if torch.is_grad_enabled():
                grads = _differentiable_backward(grad, x, call, needed)
            else:
                grads = ctx.kernels.backward(grad, x, kept, call, input_needed=needed[0])
        return grads[0], None, None, None, *grads[1:]


def _differentiable_backward(
    grad: Tensor, x: Tensor, call: Call, needed: list[bool]
) -> list[Tensor | None]:
    """Gradients by differentiating the plain path, which can be differentiated again."""
    axes, flat, options = call
    inputs = zip((x, *flat), needed, strict=True)
    wanted = [tensor for tensor, need in inputs if need and tensor is not None]
    y = functional.attend(x, axes, AttentionWeights.from_flat(flat), options)
    found = iter(torch.autograd.grad(y, wanted, grad, create_graph=True, materialize_grads=True))
    return [next(found) if need else None for need in needed]
