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
    squares = 0.0
    for (dtype, _, mesh), places in _alike(tensors).items():
        group = [tensors[place] for place in places]
        if dtype in (torch.float16, torch.bfloat16):  # DTensor has no _foreach_norm with a dtype
            norms = [torch.linalg.vector_norm(tensor, dtype=torch.float32) for tensor in group]
        else:
            norms = list(torch._foreach_norm(group, 2))
        norm = torch.linalg.vector_norm(torch.stack(norms), dtype=torch.float64)
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
            runs over all of them together, ρ is each group's own.
    """
    ascents = [_ascent(group["params"], group["adaptive"]) for group in groups]
    length = global_norm([tensor for _, _, measured in ascents for tensor in measured])
    if length == 0:
        return
    for group, (params, directions, _) in zip(groups, ascents, strict=True):
        for places in _alike(params).values():
            moved, ways = [params[i] for i in places], [directions[i] for i in places]
            torch._foreach_add_(moved, ways, alpha=group["rho"] / length)


@torch.no_grad()
def restore(weights: Sequence[Tensor], copies: Sequence[Tensor]) -> None:
    """Write the copies back, bit for bit."""
    # DTensor has no _foreach_copy_; the shards of this process are all there is to write
    owned, values = ([_local(tensor) for tensor in each] for each in (weights, copies))
    for places in _alike(owned).values():
        torch._foreach_copy_([owned[i] for i in places], [values[i] for i in places])


@torch.no_grad()
def spoil(groups: Sequence[dict[str, Any]]) -> None:
    """Mark all gradients as non-finite."""
    for group in groups:
        for p in group["params"]:
            if p.grad is not None:
                p.grad.fill_(math.nan)


def _local(tensor: Tensor) -> Tensor:
    to_local = getattr(tensor, "to_local", None)
    return tensor if to_local is None else to_local()


def _alike(tensors: Sequence[Tensor]) -> dict[Any, list[int]]:
    """Return the places of tensors that one ``foreach`` call takes: dtype, device and mesh."""
    places: dict[Any, list[int]] = {}
    for place, tensor in enumerate(tensors):
        mesh = getattr(tensor, "device_mesh", None)
        places.setdefault((tensor.dtype, tensor.device, mesh), []).append(place)
    return places


def _ascent(
    params: Sequence[Tensor], adaptive: bool
) -> tuple[list[Tensor], list[Tensor], list[Tensor]]:
    """Return what moves, in which direction, and the tensors whose norm divides that."""
    moving = [p for p in params if p.grad is not None]
    grads = [p.grad for p in moving if p.grad is not None]
    if not adaptive:
        return moving, grads, grads
    directions, measured = list(grads), list(grads)
    for places in _alike(moving).values():
        weights = [moving[i] for i in places]
        scaled = torch._foreach_mul([grads[i] for i in places], weights)
        squared = torch._foreach_mul(scaled, weights)
        for i, once, twice in zip(places, scaled, squared, strict=True):
            measured[i], directions[i] = once, twice
    return moving, directions, measured
