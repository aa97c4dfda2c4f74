"""Weights of the two terms of the loss from the measured gradient norm."""

from __future__ import annotations

import math
import warnings

import torch
from torch import Tensor, nn

from hdf_modules.errors import HDFError


class GradientScaling(nn.Module):
    """λ_CE = α g/(g+1) and λ_SC = β/(g+1), from the norm g of the loss's gradient.

    Cui et al., 2025 (arXiv:2507.15765), Figure 2; α and β themselves until ``update`` is called.
    Deviations: g may be smoothed and measured in another unit (both off by default), and
    λ_CE ≥ floor·α. g contains λ_CE: where the classification term's own gradient norm is
    g₀, g ≈ λ_CE g₀ and the update λ ← λg₀/(λg₀+1) has the single fixed point 0 if g₀ ≤ 1, so
    that without a floor the classification term would switch itself off for good as soon as the
    model fits. The default of 0.5 is reached at g = 1; with 0.1 a plateau early in training was
    enough to hold λ_CE down, and training at its plateau (benchmarks/results).

    Args:
        alpha: α ≥ 0.
        beta: β ≥ 0.
        floor: smallest λ_CE, as a share of α, in [0, 1].
        smoothing: weight in [0, 1) of the past in an exponential moving average of g, which starts
            from the first g.
        unit: the gradient norm > 0 that counts as g = 1.
    """

    lambda_ce: Tensor
    lambda_sc: Tensor
    grad_norm: Tensor
    unit: Tensor
    skipped: Tensor

    def __init__(
        self,
        alpha: float,
        beta: float,
        *,
        floor: float = 0.5,
        smoothing: float = 0.0,
        unit: float = 1.0,
    ) -> None:
        super().__init__()
        self.alpha, self.beta = nonnegative("alpha", alpha), nonnegative("beta", beta)
        if not 0 <= floor <= 1:
            raise HDFError("floor", "a share in [0, 1]", floor)
        if not 0 <= smoothing < 1:
            raise HDFError("grad_norm_smoothing", "a number in [0, 1)", smoothing)
        if not 0 < unit < math.inf:
            raise HDFError("grad_norm_unit", "a finite number > 0", unit)
        self.floor, self.smoothing = floor, smoothing
        self.register_buffer("lambda_ce", torch.tensor(float(alpha)))
        self.register_buffer("lambda_sc", torch.tensor(float(beta)))
        self.register_buffer("grad_norm", torch.tensor(math.nan))  # none yet
        self.register_buffer("unit", torch.tensor(float(unit)))
        self.register_buffer("skipped", torch.tensor(0))

    def update(self, grad_norm: float | Tensor) -> None:
        """Set both weights; a norm of inf or NaN is counted, warned about and left out."""
        g = float(grad_norm)
        if not math.isfinite(g):
            self.skipped += 1
            message = f"gradient norm {g} ignored, λ unchanged ({int(self.skipped)} so far)"
            warnings.warn(message, stacklevel=3)
            return
        g = min(nonnegative("grad_norm", g) / float(self.unit), 1e30)  # fits the float32 buffer
        past = float(self.grad_norm)
        if not math.isnan(past):
            g = self.smoothing * past + (1 - self.smoothing) * g
        self.grad_norm.fill_(g)
        self.lambda_ce.fill_(self.alpha * max(g / (g + 1), self.floor))
        self.lambda_sc.fill_(self.beta / (g + 1))


def nonnegative(name: str, value: float) -> float:
    """Return ``value`` if it is finite and not negative, else raise."""
    if not 0 <= value < math.inf:
        raise HDFError(name, "a finite number >= 0", value)
    return value
