"""Worst-case weights of a set of losses: closed forms, no iteration but one Newton root.

Each objective maximises Σ w_i l_i over weights w ≥ 0 with Σ w_i = 1 that stay near uniform. The
weights carry no gradient, so the gradient of Σ w_i l_i is that of the maximum (Danskin's theorem).
"""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor

from hdf_modules.errors import HDFError, check_losses, choose

__all__ = ["dro_weights"]

_LEVELS = {
    "kl": ("a temperature > 0", lambda level: level > 0),
    "kl-ball": ("a radius >= 0", lambda level: level >= 0),
    "chi2": ("a radius >= 0", lambda level: level >= 0),
    "cvar": ("a share in (0, 1]", lambda level: 0 < level <= 1),
}


def dro_weights(losses: Tensor, objective: str, level: float) -> Tensor:
    r"""Weights of distributionally robust optimization, exact to rounding.

    With u the uniform distribution over the n losses (Rahimian & Mehrotra, 2019, section 3):

    * ``"kl"``: max Σ w l − τ KL(w‖u), so w = softmax(l/τ); ``level`` = τ > 0.
    * ``"kl-ball"``: max Σ w l over KL(w‖u) ≤ ρ: softmax(l/τ) with the τ that meets ρ; uniform on
      the m largest, tied losses once ρ ≥ log(n/m); ``level`` = ρ ≥ 0.
    * ``"chi2"``: over (1/2n) Σ (n w − 1)² ≤ ρ: w ∝ max(l − η, 0); uniform on the ties once
      1 + 2ρ ≥ n/m; O(n log n) (Duchi & Namkoong, 2019, section 2); ``level`` = ρ ≥ 0.
    * ``"cvar"``: over w ≤ 1/(an): the mean of the worst share a (Rockafellar & Uryasev, 2000);
      tied losses share equally; ``level`` = a in (0, 1].

    Computed in float64 (float32 on devices without it).

    Args:
        losses: shape (n,), floating point, finite; n = 0 gives no weights.
        objective: ``"kl"``, ``"kl-ball"``, ``"chi2"`` or ``"cvar"``.
        level: see above.

    Returns:
        Detached weights (n,), ≥ 0, summing to one, in the losses' dtype, at least float32.

    Raises:
        HDFError: for another shape or dtype, non-finite losses, an unknown objective, or a level
            out of range.

    Example:
        >>> dro_weights(torch.tensor([0.0, 1.0, 3.0, 2.0]), "cvar", 0.5)
        tensor([0.0000, 0.0000, 0.5000, 0.5000])
    """
    level = check_level(objective, level)
    check_losses(losses)
    return worst_case(losses, objective, level)


def worst_case(losses: Tensor, objective: str, level: float) -> Tensor:
    """`dro_weights` of losses and a level that are checked."""
    dtype = torch.promote_types(losses.dtype, torch.float32)
    if len(losses) == 0:
        return torch.zeros_like(losses, dtype=dtype)
    wide = torch.float32 if losses.device.type == "mps" else torch.float64
    shifted = losses.detach().to(wide)
    return _OBJECTIVES[objective](shifted - shifted.max(), level).to(dtype)


def check_level(objective: str, level: Any, argument: str = "level") -> float:
    """Return ``level`` if it suits the objective, else raise."""
    expected, legal = _LEVELS[choose("objective", objective, tuple(_LEVELS))]
    real = isinstance(level, (int, float)) and not isinstance(level, bool)
    if not (real and math.isfinite(level) and legal(level)):
        raise HDFError(argument, f"{expected} for {objective!r}", level)
    return float(level)


def _uniform_on(chosen: Tensor, like: Tensor) -> Tensor:
    return chosen.to(like.dtype) / chosen.sum()


def _kl_penalty(losses: Tensor, temperature: float) -> Tensor:
    return torch.softmax(losses / temperature, 0)


def _kl_ball(losses: Tensor, radius: float) -> Tensor:
    n, ties = len(losses), losses == 0
    if radius == 0:
        return torch.full_like(losses, 1 / n)
    # KL(τ) ≤ range²/(8τ²) bounds 1/τ from below (Hoeffding); from 1/τ = 800/gap on, every loss
    # below the maximum has underflowed.
    shallow, steep = math.log(8 * radius) / 2, math.log(800)
    if _waits(losses):
        least, most = -losses.where(~ties, -torch.inf).max(), -losses.min()
        at = _between(losses, radius, shallow - most.log(), steep - least.log())
        reached = radius >= (n / ties.sum().to(losses.dtype)).log()
        return _uniform_on(ties, losses).where(reached, torch.softmax(losses * at.exp(), 0))
    if radius >= math.log(n / int(ties.sum())):
        return _uniform_on(ties, losses)
    low = shallow - math.log(-float(losses.min()))
    high = steep - math.log(-float(losses[~ties].max()))
    return torch.softmax(losses * math.exp(_newton(losses, radius, low, high)), 0)


def _waits(losses: Tensor) -> bool:
    """Tell whether a host waits for each number that it reads: where the device is another."""
    return not losses.is_cpu


def _newton(losses: Tensor, radius: float, low: float, high: float) -> float:
    """Return log 1/τ where KL(softmax(l/τ)‖uniform) is the radius.

    log KL is increasing and nearly linear in log 1/τ, where its slope is Var_w(l)/(τ² KL): Newton
    needs a handful of steps; one that leaves the bracket is replaced by its middle.
    """
    n, at = len(losses), low
    for _ in range(200):
        logits = losses * math.exp(at)
        log_weights = torch.log_softmax(logits, 0)
        weights = log_weights.exp()
        centred = logits - (weights * logits).sum()
        terms = torch.stack([weights * (log_weights + math.log(n)), weights * centred**2])
        divergence, slope = terms.nan_to_num(0.0).sum(1).tolist()
        if abs(divergence - radius) <= 1e-15 * max(radius, 1e-3):
            break
        low, high = (at, high) if divergence < radius else (low, at)
        step = math.inf
        if divergence > 0 and slope > 0:
            step = at - math.log(divergence / radius) * divergence / slope
        at, before = (step if low < step < high else (low + high) / 2), at
        if at == before:
            break
    return at


def _between(losses: Tensor, radius: float, low: Tensor, high: Tensor) -> Tensor:
    """Return what `_newton` does, by a fixed number of operations.

    Four times a bracket's 64th part that has the root, then Newton, who doubles what digits there
    are.
    """
    n, parts = len(losses), torch.linspace(0, 1, 65, dtype=losses.dtype, device=losses.device)
    log_n = math.log(n)
    for _ in range(4):
        at = low + (high - low) * parts
        log_weights = torch.log_softmax(losses * at[:, None].exp(), 1)
        terms = log_weights.exp() * (log_weights + log_n)
        below = (terms.nan_to_num(0.0).sum(1) < radius).sum().clamp(1, len(parts) - 1)
        low, high = at.gather(0, torch.stack([below - 1, below])).unbind()
    at = low
    for _ in range(3):
        logits = losses * at.exp()
        log_weights = torch.log_softmax(logits, 0)
        weights = log_weights.exp()
        centred = logits - (weights * logits).sum()
        divergence = (weights * (log_weights + log_n)).nan_to_num(0.0).sum()
        slope = (weights * centred**2).nan_to_num(0.0).sum()
        step = at - (divergence / radius).log() * divergence / slope
        at = step.where((step > low) & (step < high), at)
    return at


def _chi2_ball(losses: Tensor, radius: float) -> Tensor:
    n, ties = len(losses), losses == 0
    if radius == 0:
        return torch.full_like(losses, 1 / n)
    reached = 1 + 2 * radius >= n / ties.sum().to(losses.dtype)
    losses = losses / -losses.min()  # the weights do not depend on the scale; squares stay finite
    largest = losses.sort(descending=True).values
    k = torch.arange(1, n + 1, device=losses.device, dtype=losses.dtype)
    mean = largest.cumsum(0) / k
    variance = ((largest**2).cumsum(0) / k - mean**2).clamp(min=0)
    excess = (k - n + 2 * radius * k) / n
    # The k-th largest loss is above η exactly if this holds; it holds for a leading run of k.
    active = (variance > excess * (mean - largest) ** 2) | (largest == 0)
    least = min(math.floor(n / (1 + 2 * radius)) + 1, n)
    last = active.sum().clamp(least, n)[None] - 1
    threshold = mean.gather(0, last) - (variance.gather(0, last) / excess.gather(0, last)).sqrt()
    weights = (losses - threshold).clamp(min=0)
    return _uniform_on(ties, losses).where(reached, weights / weights.sum())


def _cvar(losses: Tensor, share: float) -> Tensor:
    capacity = share * len(losses)  # the number of losses that the worst share covers
    covered = max(math.ceil(capacity - 1e-9 * capacity), 1)
    threshold = losses.topk(covered).values[-1]
    weights = (losses > threshold).to(losses.dtype) / max(capacity, 1.0)
    ties = losses == threshold
    return weights + (1 - weights.sum()) * _uniform_on(ties, losses)


_OBJECTIVES = {"kl": _kl_penalty, "kl-ball": _kl_ball, "chi2": _chi2_ball, "cvar": _cvar}
