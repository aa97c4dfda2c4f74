"""A base loss that returns one number for the whole batch, as a value for each sample."""

from __future__ import annotations

import warnings
from collections.abc import Callable

import torch
from torch import Tensor

from hdf_modules.errors import HDFError


def one_by_one(base: Callable[[Tensor, Tensor], Tensor], x: Tensor, target: Tensor) -> Tensor:
    """Evaluate a loss that returns one number for each sample alone."""

    def alone(logits: Tensor, label: Tensor) -> Tensor:
        return base(logits[None], label[None]).reshape(())

    if len(target) == 0:
        return x.flatten(1).sum(1)
    try:
        return torch.func.vmap(alone, randomness="different")(x, target)
    except Exception:  # whatever in it cannot be vectorised
        warnings.warn(
            "base: one number for the whole batch, and torch.func.vmap cannot enter it: it is "
            "called for each sample, which is slow; return one value per sample instead",
            stacklevel=2,
        )
        return torch.stack([alone(*pair) for pair in zip(x, target, strict=True)])


def is_made_of(rows: Tensor, whole: Tensor) -> bool:
    """Tell whether this batch could show it; raise if its value is not made of its samples'."""
    if len(rows) < 2:
        return False
    rows, whole = rows.detach().double(), whole.detach().double()
    close = [
        torch.allclose(value, whole, rtol=1e-3, atol=1e-6) for value in (rows.mean(), rows.sum())
    ]
    if not any(close):
        raise HDFError(
            "base",
            "a loss that returns one value per sample, or the mean or the sum of theirs",
            f"{float(whole):.4g} for the batch, {float(rows.mean()):.4g} as the mean over samples",
            "add it beside this one: a loss of the batch as a whole cannot be weighted by sample",
        )
    return True
