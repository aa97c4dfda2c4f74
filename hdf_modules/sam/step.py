"""Where a step of SAM stands, and what it asks of its arguments and gradients."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from hdf_modules.errors import HDFError


@dataclass
class Step:
    """One mutable object, so that whatever forwards attributes to SAM writes here too.

    Attributes:
        grad_norm: g of the last first pass.
        sharpness_gap: L(w + ε) − L(w) of the last step by closure.
        ascending: the weights are at w + ε.
        ascended: ``.grad`` holds the SAM gradient.
        aside: gradients of earlier micro-batches.
    """

    grad_norm: float = math.nan
    sharpness_gap: Any = None
    ascending: bool = False
    ascended: bool = False
    aside: dict[Tensor, Tensor] = field(default_factory=dict)


def with_gradient(groups: Sequence[dict[str, Any]]) -> dict[Tensor, Tensor]:
    """Return the parameters that have a gradient, and it."""
    return {p: p.grad for group in groups for p in group["params"] if p.grad is not None}


def check_gradients(gradients: dict[Tensor, Tensor]) -> None:
    """Raise unless there are gradients, and dense ones."""
    if not gradients:
        hint = "run forward and backward before sam.ascend(), or in the closure"
        raise HDFError("gradients", "those of a backward pass", "none", hint)
    if any(gradient.layout != torch.strided for gradient in gradients.values()):
        raise HDFError("gradients", "dense tensors", "a sparse one", "use sparse=False")


def check_arguments(base_optimizer: Any, rho: Any, model: Any, every: Any) -> None:
    """Raise for an argument out of its range."""
    if not isinstance(base_optimizer, Optimizer):
        found = type(base_optimizer).__name__
        raise HDFError("base_optimizer", "a torch.optim.Optimizer", found)
    if model is not None and not isinstance(model, nn.Module):
        raise HDFError("model", "a torch.nn.Module or None", type(model).__name__)
    check_rho(rho, isinstance(rho, (int, float)) and 0 < rho < math.inf)
    if not isinstance(every, int) or every < 1:
        raise HDFError("every", "an integer >= 1", every)


def check_rho(rho: Any, valid: bool) -> None:
    """Raise unless the radius is valid."""
    if not valid:
        raise HDFError("rho", "a finite number > 0", rho, "the paper uses 0.05")


def check_criterion(criterion: Any) -> None:
    """Raise unless the criterion takes g."""
    if criterion is not None and not callable(getattr(criterion, "rescale", None)):
        found = type(criterion).__name__
        raise HDFError("criterion", "an object with rescale(grad_norm)", found)
