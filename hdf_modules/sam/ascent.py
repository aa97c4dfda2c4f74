"""The mathematics of sharpness-aware minimization: the norm of the gradient and the step up."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
import torch.distributed as dist
from torch import Tensor

from hdf_modules.errors import HDFError


class Alike(NamedTuple):
    """What one ``foreach`` call takes of a group: gradients of one dtype, device and mesh."""

    rho: float
    adaptive: bool
    params: list[Tensor]
    grads: list[Tensor]


def with_gradient(groups: Sequence[dict[str, Any]]) -> list[Alike]:
    """Return the parameters that have a gradient, sorted; raise unless there are, dense ones."""
    found: dict[Any, Alike] = {}
    for place, group in enumerate(groups):
        for p in group["params"]:
            if (grad := p.grad) is None:
                continue
            if grad.layout != torch.strided:
                raise HDFError("gradients", "dense tensors", "a sparse one", "use sparse=False")
            kind = place, grad.dtype, grad.device, getattr(grad, "device_mesh", None)
            if kind not in found:
                found[kind] = Alike(group["rho"], group["adaptive"], [], [])
            found[kind].params.append(p)
            found[kind].grads.append(grad)
    if not found:
        hint = "run forward and backward before sam.ascend(), or in the closure"
        raise HDFError("gradients", "those of a backward pass", "none", hint)
    return list(found.values())


def global_norm(lists: Sequence[list[Tensor]]) -> float:
    """Return the 2-norm of all tensors together, sharded ones (DTensor) included.

    The tensors of one list are alike. Half precision is summed in float32.
    """
    norms: dict[Any, list[Tensor]] = {}
    for tensors in lists:
        dtype, device = tensors[0].dtype, tensors[0].device
        each = norms.setdefault((dtype, device, getattr(tensors[0], "device_mesh", None)), [])
        if dtype in (torch.float16, torch.bfloat16):  # DTensor has no _foreach_norm with a dtype
            each += [torch.linalg.vector_norm(tensor, dtype=torch.float32) for tensor in tensors]
        else:
            each += torch._foreach_norm(tensors, 2)
    squares = 0.0
    for (_, _, mesh), each in norms.items():
        norm = torch.linalg.vector_norm(torch.stack(each), dtype=torch.float64)
        squares += (norm.full_tensor() if mesh else norm).item() ** 2
    return math.sqrt(squares)


def mean_over_ranks(value: float, device: torch.device) -> float:
    """Return the mean over all processes, the same bits on each; alone, the value itself."""
    if not (dist.is_available() and dist.is_initialized() and dist.get_world_size() > 1):
        return value
    total = torch.tensor(value, dtype=torch.float64, device=device)
    dist.all_reduce(total)
    return total.item() / dist.get_world_size()


@torch.no_grad()
def climb(parts: Sequence[Alike], norm: float) -> None:
    """Add ε to every parameter with a gradient; a zero gradient moves nothing.

    Args:
        parts: what moves. ρ is each group's own, the norm that divides ε is that of all together.
        norm: of the gradients. If some group is adaptive, ‖w∘g‖ takes its place, with g alone for
            the groups that are not.
    """
    directions = [part.grads for part in parts]
    if [part for part in parts if part.adaptive]:
        scaled = _times_weights(parts, directions)
        directions = _times_weights(parts, scaled)
        norm = global_norm(scaled)
    if norm == 0:
        return
    for part, direction in zip(parts, directions, strict=True):
        torch._foreach_add_(part.params, direction, alpha=part.rho / norm)


@torch.no_grad()
def restore(weights: Sequence[tuple[list[Tensor], list[Tensor]]]) -> None:
    """Write copies back into their parameters, bit for bit; the lists are alike."""
    for params, copies in weights:
        sharded = hasattr(params[0], "to_local")
        # DTensor has no _foreach_copy_; the shards of this process are all there is to write
        owned, values = [_local(each) for each in (params, copies)] if sharded else (params, copies)
        torch._foreach_copy_(owned, values)


def _local(tensors: Sequence[Any]) -> list[Tensor]:
    return [tensor.to_local() for tensor in tensors]


@torch.no_grad()
def spoil(groups: Sequence[dict[str, Any]]) -> None:
    """Mark all gradients as non-finite."""
    for group in groups:
        for p in group["params"]:
            if p.grad is not None:
                p.grad.fill_(math.nan)


def _times_weights(parts: Sequence[Alike], lists: Sequence[list[Tensor]]) -> list[list[Tensor]]:
    return [
        list(torch._foreach_mul(tensors, part.params)) if part.adaptive else tensors
        for part, tensors in zip(parts, lists, strict=True)
    ]
