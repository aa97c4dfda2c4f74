"""How a step begins: who calls it, and what its closure does to the gradients it finds."""

from __future__ import annotations

import math
import sys
import warnings
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.amp import GradScaler

from hdf_modules.errors import HDFError
from hdf_modules.sam.ascent import SECOND, give, grads_of, mark

BEFORE = "_before_closure"


def called_by_scaler() -> bool:
    """Tell whether an enabled GradScaler is stepping: it leaves no other trace in its optimizer."""
    frame = sys._getframe()
    while frame is not None:
        if frame.f_code is GradScaler.step.__code__:
            return bool(frame.f_locals["self"].is_enabled())
        frame = frame.f_back  # type: ignore[assignment]
    return False


def warn_of_plain_step(what: str) -> None:
    """Say that a call of SAM's step, in the caller's code, does without SAM."""
    hint = "use `with sam.ascend():` for the second pass, or step base_optimizer itself"
    warnings.warn(f"SAM.{what} is a plain step; {hint}", stacklevel=3)


def first_call(
    closure: Callable[[], Any], groups: Sequence[dict[str, Any]], *, zeros: bool
) -> tuple[Any, bool]:
    """Call a closure; return its loss, and whether it left the gradients it found untouched.

    After an exception there are no gradients: what was added to which cannot be told.

    Args:
        closure: what to call.
        groups: parameter groups.
        zeros: gradients of zeros may have been left outside; adding to those is clearing.

    Raises:
        HDFError: if the closure adds to gradients from before.
    """
    try:
        return _watched(closure, groups, zeros)
    except BaseException:
        give(groups, {})
        raise


def _watched(
    closure: Callable[[], Any], groups: Sequence[dict[str, Any]], zeros: bool
) -> tuple[Any, bool]:
    """Call a closure, and refuse gradients that it neither leaves nor clears.

    They would be missing from the second pass. What was there before is known by a mark, and
    cleared in place or added to by a NaN in the smallest one's stead: zeros take its place, what is
    added to it stays NaN.
    """
    owners = [p for group in groups for p in group["params"] if p.grad is not None]
    sparse = [(p, p.grad, p.grad._version) for p in owners if p.grad.layout != torch.strided]
    owners = [p for p in owners if p.grad.layout == torch.strided and p.numel() > 0]
    if not owners or (zeros and not any(bool(p.grad.any()) for p in owners)):
        mark(grads_of(groups), SECOND, False)
        loss = closure()
        same = [p.grad is grad and grad._version == before for p, grad, before in sparse]
        return loss, not owners and bool(same) and all(same)  # zeros are as good as none
    number, smallest = len(grads_of(groups)), min(owners, key=Tensor.numel)
    kept, probe = smallest.grad, torch.full_like(smallest.grad, math.nan)
    smallest.grad = probe
    for p in owners:
        setattr(p.grad, BEFORE, p.grad._version)
    loss = closure()
    stayed = [p for p in owners if hasattr(p.grad, BEFORE)]
    untouched = len(stayed) == len(owners) and len(grads_of(groups)) == number
    untouched &= all(getattr(p.grad, BEFORE) == p.grad._version for p in stayed)
    for p in stayed:
        delattr(p.grad, BEFORE)
    if untouched:
        smallest.grad = kept
        return loss, True
    # a view of a bucket of DistributedDataParallel stays the same tensor when it is cleared
    seen = smallest.grad is probe or getattr(smallest.grad, "_is_view", bool)()
    if stayed and (not seen or bool(smallest.grad.isnan().any())):
        raise HDFError(
            "closure",
            "one that clears the gradients before its own",
            "gradients of earlier batches, which the second pass would leave out",
            "accumulate without a closure, both passes of each batch `with sam.micro_batch():` "
            "(in Lightning: optimise by hand)",
        )
    mark(grads_of(groups), SECOND, False)  # cleared in place, whoever did it
    return loss, False
