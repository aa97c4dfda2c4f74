"""The mathematics of sharpness-aware minimization: the norm of the gradient and the step up."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import torch
import torch.distributed as dist
from torch import Tensor

from hdf_modules.errors import HDFError

FIRST, SECOND = "_of_first_pass", "_of_second_pass"  # marks of a gradient
HALF = (torch.float16, torch.bfloat16)


class Alike(NamedTuple):
    """What one ``foreach`` call takes of a group: gradients of one dtype, device and mesh.

    ``rho`` is negative where the optimizer maximizes: the worst is then the lowest.
    """

    rho: float
    adaptive: bool
    params: list[Tensor]
    grads: list[Tensor]


def with_gradient(groups: Sequence[dict[str, Any]], options: Mapping[str, Any]) -> list[Alike]:
    """Return the parameters that have a gradient, sorted; raise unless there are, dense ones.

    Args:
        groups: parameter groups of an optimizer.
        options: what they call ρ and adaptive, in this order, and what holds if they do not.
    """
    (rho, usual), (adaptive, otherwise) = options.items()
    found: dict[Any, Alike] = {}
    for place, group in enumerate(groups):
        for p in group["params"]:
            if (grad := p.grad) is None:
                continue
            if grad.layout != torch.strided:
                hint = "make the layer with sparse=False (and Adam of a SparseAdam), or give what "
                hint += "is sparse an optimizer of its own, without SAM"
                raise HDFError("gradients", "dense tensors", "a sparse one", hint)
            if hasattr(grad, SECOND):
                hint = "clear them by sam.zero_grad(); to accumulate, use `with sam.micro_batch():`"
                raise HDFError("gradients", "those of a first pass", "an earlier ascend()'s", hint)
            kind = place, grad.dtype, grad.device, getattr(grad, "device_mesh", None)
            if kind not in found:
                sign = -1 if group.get("maximize") else 1
                distance = sign * radius(group.get(rho, usual), zero=True)
                found[kind] = Alike(distance, group.get(adaptive, otherwise), [], [])
            found[kind].params.append(p)
            found[kind].grads.append(grad)
    if not found:
        hint = "run forward and backward before sam.ascend() and again inside, or in the closure"
        raise HDFError("gradients", "those of a backward pass", "none", hint)
    return list(found.values())


def global_norm(lists: Sequence[list[Tensor]]) -> tuple[float, list[list[Tensor]]]:
    """Return the 2-norm of all tensors together, and of each; sharded ones (DTensor) included.

    The tensors of one list are alike. Half precision is summed in float32.
    """
    kinds: dict[Any, tuple[list[Tensor], list[Tensor]]] = {}
    norms: list[list[Tensor]] = []
    for tensors in lists:
        dtype, device = tensors[0].dtype, tensors[0].device
        if dtype in HALF:  # DTensor has no _foreach_norm with a dtype
            norms += [[torch.linalg.vector_norm(each, dtype=torch.float32) for each in tensors]]
        else:
            norms += [list(torch._foreach_norm(tensors, 2))]
        mesh = getattr(tensors[0], "device_mesh", None)
        members, each = kinds.setdefault((dtype, device, mesh), ([], []))
        members.extend(tensors)
        each.extend(norms[-1])
    total = 0.0
    for (dtype, _, _), (members, each) in kinds.items():
        value, wide = _joined(each), dtype in (torch.float64, torch.complex128)
        limits = torch.finfo(torch.float64 if wide else torch.float32)
        lowest = math.sqrt(limits.tiny) / limits.eps
        if not lowest < value < math.inf:  # squares may have left the dtype's range
            factor = 2.0 ** ((1 if value <= lowest else -1) * (700 if wide else 200))
            value = _joined([torch.linalg.vector_norm(_wide(x) * factor) for x in members]) / factor
        total = math.hypot(total, value)
    return total, norms


def _joined(norms: list[Tensor]) -> float:
    norm: Any = torch.linalg.vector_norm(torch.stack(norms), dtype=torch.float64)
    return (norm.full_tensor() if hasattr(norm, "full_tensor") else norm).item()


def _wide(tensor: Tensor) -> Tensor:
    return tensor.to(torch.complex128 if tensor.is_complex() else torch.float64)


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
        norm, _ = global_norm(scaled)
    if norm == 0:
        return
    for part, direction in zip(parts, directions, strict=True):
        limits, factor = torch.finfo(part.params[0].dtype), part.rho / norm
        if limits.tiny <= abs(factor) <= limits.max:
            torch._foreach_add_(part.params, direction, alpha=factor)
        elif part.rho:  # no number of this dtype
            for p, d in zip(part.params, direction, strict=True):
                p.add_(_wide(d) / norm * part.rho)


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
        list(torch._foreach_mul(tensors, _factors(part.params))) if part.adaptive else tensors
        for part, tensors in zip(parts, lists, strict=True)
    ]


def _factors(params: list[Tensor]) -> list[Tensor]:
    """Return the weights, or their moduli; in float32 what would underflow in half precision."""
    if params[0].is_complex():
        return [p.abs() for p in params]
    return [p.float() for p in params] if params[0].dtype in HALF else params


def mark(grads: Sequence[Tensor], name: str, value: bool = True) -> None:
    """Set a mark on gradients, or take it away: it goes with its tensor, whoever clears them."""
    for grad in grads:
        if value:
            setattr(grad, name, True)
        elif hasattr(grad, name):
            delattr(grad, name)


def lost(grads: Mapping[Tensor, Tensor]) -> bool:
    """Tell whether a second pass replaced these gradients instead of adding to them.

    DistributedDataParallel and a graph of the gradient add in another tensor.
    """
    for p, grad in grads.items():
        now = p.grad
        if now is None or not (
            now is grad or hasattr(now, FIRST) or now._is_view() or now.requires_grad
        ):
            return True
    return False


def keep_zeros(parts: Sequence[list[Tensor]], norms: Sequence[list[Tensor]]) -> None:
    """Give back the zero gradients that ``zero_grad(set_to_none=False)`` left and nothing used."""
    for params, each in zip(parts, norms, strict=True):
        for p, norm in zip(params, each, strict=True):
            if p.grad is None and _joined([norm]) == 0:
                p.grad = torch.zeros_like(p)


def give(groups: Sequence[dict[str, Any]], grads: Mapping[Tensor, Tensor]) -> None:
    """Let these be all the gradients there are."""
    for group in groups:
        for p in group["params"]:
            p.grad = grads.get(p)


def grads_of(groups: Sequence[dict[str, Any]]) -> list[Tensor]:
    """Return all gradients."""
    return [p.grad for group in groups for p in group["params"] if p.grad is not None]


def moves(groups: Sequence[dict[str, Any]], *, zero_rate: bool) -> bool:
    """Tell a step from torch.distributed.checkpoint's, which makes the state without gradients.

    It does so at rate zero, where a step of one's own has gradients, if ``zero_rate`` counts.
    """
    if any(bool(group.get("lr", 1)) for group in groups):
        return True
    return zero_rate and any(bool((grad != 0).any()) for grad in grads_of(groups))


def radius(value: Any, *, zero: bool = False) -> float:
    """Return ρ as a float, from any scalar; a group may have none."""
    found = value.item() if getattr(value, "ndim", None) == 0 else value
    real = isinstance(found, (int, float)) and not isinstance(found, bool)
    if not (real and (found >= 0 if zero else found > 0) and found < float("inf")):
        found = f"{value!r}" if not isinstance(value, Tensor) else found
        raise HDFError("rho", "a finite number > 0", found, "try 0.05, the paper's")
    return float(found)
