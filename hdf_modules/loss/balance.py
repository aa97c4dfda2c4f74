"""Weights of the two terms of the loss: fixed, or from the measured gradient norm."""

from __future__ import annotations

import copy
import math
import warnings
from typing import Any

import torch
from torch import Tensor, nn

from hdf_modules.errors import HDFError, choose, number, share


class Fixed(nn.Module):
    """λ_CE and λ_SC as they are given.

    Args:
        lambda_ce: λ_CE ≥ 0, weight of the classification term.
        lambda_sc: λ_SC ≥ 0, weight of the contrastive and the bottleneck term.

    Example:
        >>> from hdf_modules import HeterogeneityAwareLoss
        >>> criterion = HeterogeneityAwareLoss(balance=Fixed(10.0, 0.1))
    """

    lambda_ce: Tensor
    lambda_sc: Tensor

    def __init__(self, lambda_ce: float = 1.0, lambda_sc: float = 0.1) -> None:
        super().__init__()
        self.register_buffer("lambda_ce", torch.tensor(number("lambda_ce", lambda_ce, zero=True)))
        self.register_buffer("lambda_sc", torch.tensor(number("lambda_sc", lambda_sc, zero=True)))

    def update(self, grad_norm: float | Tensor) -> None:
        """Leave both as they are."""


class GradientNorm(nn.Module):
    """λ_CE = α g/(g+1) and λ_SC = β/(g+1), from the norm g of the loss's gradient.

    Cui et al., 2025 (arXiv:2507.15765), Figure 2; α and β themselves until ``update`` is called.
    Deviations: g may be smoothed and measured in another unit (both off by default), and
    λ_CE ≥ floor·α. g contains λ_CE: where the classification term's own gradient norm is
    g₀, g ≈ λ_CE g₀ and the update λ ← λg₀/(λg₀+1) has the single fixed point 0 if g₀ ≤ 1, so
    that without a floor the classification term would switch itself off for good as soon as the
    model fits. The default of 0.5 is reached at g = 1; with 0.1 a plateau early in training was
    enough to hold λ_CE down, and training at its plateau (benchmarks/evidence).

    Args:
        alpha: α ≥ 0.
        beta: β ≥ 0.
        floor: smallest λ_CE, as a share of α, in [0, 1].
        smoothing: weight in [0, 1) of the past in an exponential moving average of g, which starts
            from the first g.
        unit: the gradient norm > 0 that counts as g = 1. √(number of parameters) makes g the root
            mean square of the gradient's entries. Whether g grows with the model is a matter of the
            model: measure before scaling by it (benchmarks/scaling).

    Example:
        >>> balance = GradientNorm(alpha=1.0, beta=0.1)
        >>> balance.update(3.0)
        >>> balance.lambda_ce, balance.lambda_sc
        (tensor(0.7500), tensor(0.0250))
    """

    lambda_ce: Tensor
    lambda_sc: Tensor
    grad_norm: Tensor
    unit: Tensor
    skipped: Tensor

    def __init__(
        self,
        alpha: float = 1.0,
        beta: float = 0.1,
        *,
        floor: float = 0.5,
        smoothing: float = 0.0,
        unit: float = 1.0,
    ) -> None:
        super().__init__()
        self.alpha, self.beta = number("alpha", alpha, zero=True), number("beta", beta, zero=True)
        self.floor, self.smoothing = share("floor", floor, one=True), share("smoothing", smoothing)
        self.register_buffer("lambda_ce", torch.tensor(self.alpha))
        self.register_buffer("lambda_sc", torch.tensor(self.beta))
        self.register_buffer("grad_norm", torch.tensor(math.nan))  # none yet
        self.register_buffer("unit", torch.tensor(number("unit", unit)))
        self.register_buffer("skipped", torch.tensor(0))

    def update(self, grad_norm: float | Tensor) -> None:
        """Set both weights; a norm of inf or NaN is counted, warned about and left out."""
        g = float(grad_norm)
        if not math.isfinite(g):
            self.skipped += 1
            message = f"gradient norm {g} ignored, λ unchanged ({int(self.skipped)} so far)"
            warnings.warn(message, stacklevel=3)
            return
        g = number("grad_norm", g, zero=True)
        wide = torch.float32 if self.unit.device.type == "mps" else torch.float64
        # On the device, where the buffers are: to read them, the host would wait.
        now = (g / self.unit.to(wide)).clamp(max=1e30)  # fits float32
        past = self.grad_norm.to(wide)
        now = now.where(past.isnan(), self.smoothing * past + (1 - self.smoothing) * now)
        self.grad_norm.copy_(now)
        self.lambda_ce.copy_(self.alpha * (now / (now + 1)).clamp(min=self.floor))
        self.lambda_sc.copy_(self.beta / (now + 1))

    def extra_repr(self) -> str:
        """Return the options as the constructor takes them."""
        names = ("alpha", "beta", "floor", "smoothing")
        options = "".join(f"{name}={getattr(self, name)}, " for name in names)
        return f"{options}unit={float(self.unit)}"


Balance = Fixed | GradientNorm
_NAMED = {"gradient-norm": GradientNorm, "fixed": Fixed}


def as_balance(balance: str | Balance) -> Balance:
    """Return what a loss is given as a module of its own.

    Raises:
        HDFError: for an unknown name, or what is no balance.
    """
    if isinstance(balance, Fixed | GradientNorm):
        return copy.deepcopy(balance)  # two losses made from one part do not share its state
    if not isinstance(balance, str):
        found: Any = getattr(balance, "__name__", balance)
        expected = "GradientNorm(alpha, beta), Fixed(lambda_ce, lambda_sc) or the name of one"
        raise HDFError("balance", expected, found)
    return _NAMED[choose("balance", balance, tuple(_NAMED))]()
