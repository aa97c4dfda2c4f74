"""Worst-case weights of a set of losses: closed forms, no iteration but one Newton root.

Each objective maximises Σ w_i l_i over weights w ≥ 0 with Σ w_i = 1 that stay near uniform. The
weights carry no gradient, so the gradient of Σ w_i l_i is that of the maximum (Danskin's theorem).
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from hdf_modules.errors import HDFError, choose

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
    if len(losses) == 0:
        return torch.zeros_like(losses, dtype=at_least_float32(losses.dtype))
    wide = torch.float32 if losses.device.type == "mps" else torch.float64
    shifted = losses.detach().to(wide)
    shifted = shifted - shifted.max()
    weights = _OBJECTIVES[objective](shifted, level)
    return weights.to(at_least_float32(losses.dtype))


def check_level(objective: str, level: float | None) -> float:
    """Return ``level`` if it suits the objective, else raise."""
    expected, legal = _LEVELS[choose("objective", objective, tuple(_LEVELS))]
    if level is None or not (math.isfinite(level) and legal(level)):
        raise HDFError("level", f"{expected} for {objective!r}", level)
    return float(level)


def check_losses(losses: Tensor) -> None:
    """Raise unless ``losses`` is a vector of finite real numbers."""
    if losses.ndim != 1 or not losses.is_floating_point():
        found = f"shape {tuple(losses.shape)}, {losses.dtype}"
        raise HDFError("losses", "a floating point tensor of shape (n,)", found)
    check_finite("losses", losses)


def check_finite(name: str, rows: Tensor) -> None:
    """Raise, naming the rows, unless every value is finite."""
    finite = torch.isfinite(rows.detach()).flatten(1).all(1) if rows.ndim > 1 else rows.isfinite()
    if not bool(finite.all()):
        indices = (~finite).nonzero().flatten().tolist()
        more = f" and {len(indices) - 10} more" if len(indices) > 10 else ""
        found = f"inf or NaN at index {', '.join(map(str, indices[:10]))}{more}"
        raise HDFError(name, "finite values", found, "look at these samples and the learning rate")


def at_least_float32(dtype: torch.dtype) -> torch.dtype:
    """Return float64 for float64, else float32."""
    return torch.promote_types(dtype, torch.float32)


def _uniform_on(chosen: Tensor, like: Tensor) -> Tensor:
    return chosen.to(like.dtype) / chosen.sum()


def _kl_penalty(losses: Tensor, temperature: float) -> Tensor:
    return torch.softmax(losses / temperature, 0)


def _kl_ball(losses: Tensor, radius: float) -> Tensor:
    n, ties = len(losses), losses == 0
    if radius >= math.log(n / int(ties.sum())):
        return _uniform_on(ties, losses)
    if radius == 0:
        return torch.full_like(losses, 1 / n)
    # KL(τ) ≤ range²/(8τ²) bounds 1/τ from below (Hoeffding); from 1/τ = 800/gap on, every loss
    # below the maximum has underflowed.
    low = math.log(8 * radius) / 2 - math.log(-float(losses.min()))
    high = math.log(800) - math.log(-float(losses[~ties].max()))
    return torch.softmax(losses * math.exp(_newton(losses, radius, low, high)), 0)


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


def _chi2_ball(losses: Tensor, radius: float) -> Tensor:
    n, ties = len(losses), losses == 0
    if radius == 0:
        return torch.full_like(losses, 1 / n)
    if 1 + 2 * radius >= n / int(ties.sum()):
        return _uniform_on(ties, losses)
    losses = losses / -losses.min()  # the weights do not depend on the scale; squares stay finite
    largest = losses.sort(descending=True).values
    k = torch.arange(1, n + 1, device=losses.device, dtype=losses.dtype)
    mean = largest.cumsum(0) / k
    variance = ((largest**2).cumsum(0) / k - mean**2).clamp(min=0)
    excess = (k - n + 2 * radius * k) / n
    # The k-th largest loss is above η exactly if this holds; it holds for a leading run of k.
    active = (variance > excess * (mean - largest) ** 2) | (largest == 0)
    last = min(max(int(active.sum()), math.floor(n / (1 + 2 * radius)) + 1), n) - 1
    threshold = mean[last] - (variance[last] / excess[last]).sqrt()
    weights = (losses - threshold).clamp(min=0)
    return weights / weights.sum()


def _cvar(losses: Tensor, share: float) -> Tensor:
    capacity = share * len(losses)  # the number of losses that the worst share covers
    covered = max(math.ceil(capacity - 1e-9 * capacity), 1)
    threshold = losses.topk(covered).values[-1]
    weights = (losses > threshold).to(losses.dtype) / max(capacity, 1.0)
    ties = losses == threshold
    return weights + (1 - weights.sum()) * _uniform_on(ties, losses)


_OBJECTIVES = {"kl": _kl_penalty, "kl-ball": _kl_ball, "chi2": _chi2_ball, "cvar": _cvar}
