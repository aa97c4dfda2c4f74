"""The mathematics of sharpness-aware minimization: the global norm and the ascent step."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor


def global_norm(tensors: Sequence[Tensor]) -> float:
    """Return the 2-norm of all tensors together, sharded ones (DTensor) included.

    Half precision is summed in float32.
    """
    alike: dict[Any, list[Tensor]] = {}
    for tensor in tensors:
        mesh = getattr(tensor, "device_mesh", None)
        alike.setdefault((tensor.dtype, tensor.device, mesh), []).append(tensor)
    squares = 0.0
    for (dtype, _, mesh), group in alike.items():
        norms = torch._foreach_norm(group, 2, torch.promote_types(dtype, torch.float32))
        norm = torch.linalg.vector_norm(torch.stack(list(norms)), dtype=torch.float64)
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
def perturb(groups: Sequence[dict[str, Any]]) -> None:
    """Add ε to every parameter with a gradient; a zero gradient moves nothing.

    Args:
        groups: parameter groups with ``params``, ``rho`` and ``adaptive``. The norm that divides ε
        runs
            over all of them together, ρ is each group's own.
    """
    ascents = [_ascent(group["params"], group["adaptive"]) for group in groups]
    length = global_norm([tensor for _, _, measured in ascents for tensor in measured])
    if length == 0:
        return
    for group, (params, directions, _) in zip(groups, ascents, strict=True):
        if params:
            torch._foreach_add_(params, directions, alpha=group["rho"] / length)


def _ascent(
    params: Sequence[Tensor], adaptive: bool
) -> tuple[list[Tensor], list[Tensor], list[Tensor]]:
    """Return what moves, in which direction, and the tensors whose norm divides that."""
    moving = [p for p in params if p.grad is not None]
    grads = [p.grad for p in moving if p.grad is not None]
    if not (adaptive and moving):
        return moving, grads, grads
    scaled = torch._foreach_mul(grads, moving)
    return moving, list(torch._foreach_mul(scaled, moving)), list(scaled)
