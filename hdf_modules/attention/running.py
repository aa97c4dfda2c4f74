"""What runs: kernels, forward and backward, and the equations where they do not."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from hdf_modules.attention import choice, functional
from hdf_modules.attention.kernels.plan import Kept
from hdf_modules.attention.layout import BoundLayout
from hdf_modules.attention.weights import AttentionOptions, AttentionWeights


def launched(
    x: Tensor, axes: BoundLayout, weights: AttentionWeights, options: AttentionOptions
) -> tuple[Tensor, Kept] | None:
    """Return what kernels compute and what they keep, or None where they fail."""
    from hdf_modules.attention.kernels import launch  # noqa: PLC0415 (imports the compiler)

    try:
        with choice.on_device_of(x):
            return launch.forward(x, axes, weights, options)
    except Exception as error:  # compilers fail in many ways
        choice.failed(axes, options, error)
    return None


def by_kernels(
    grad: Tensor,
    x: Tensor,
    axes: BoundLayout,
    weights: AttentionWeights,
    options: AttentionOptions,
    *,
    kept: Kept,
    of_x: bool,
) -> tuple[Tensor | None, Tensor, Tensor] | None:
    """Return the gradients as kernels lay them out, or None where they fail."""
    from hdf_modules.attention.kernels import launch  # noqa: PLC0415 (imports the compiler)

    try:
        with choice.on_device_of(x):
            return launch.backward(grad, x, axes, weights, options, kept, of_x=of_x)
    except Exception as error:  # compilers fail in many ways
        choice.failed(axes, options, error)
    return None


def by_equations(
    grad: Tensor,
    x: Tensor,
    axes: BoundLayout,
    weights: AttentionWeights,
    options: AttentionOptions,
    *,
    needed: list[bool],
) -> list[Tensor | None]:
    """Compute again, and differentiate that; autocast is off. Gradients of x and of the weights."""
    again = torch.is_grad_enabled()  # whether these gradients will be differentiated
    with torch.enable_grad():
        inputs: list[Any] = [
            None if tensor is None else _leaf(tensor, need, again)
            for tensor, need in zip((x, *weights), needed, strict=True)
        ]
        y = functional.attend(inputs[0], axes, AttentionWeights._make(inputs[1:]), options)
        wanted = [tensor for tensor, need in zip(inputs, needed, strict=True) if need]
        found = torch.autograd.grad(y, wanted, grad, create_graph=again, materialize_grads=True)
    grads = iter(found)
    return [next(grads) if need else None for need in needed]


def _leaf(tensor: Tensor, need: bool, again: bool) -> Tensor:
    """Return the tensor as one whose gradient does not lead on to what it was made of."""
    return tensor.view_as(tensor) if again else tensor.detach().requires_grad_(need)
