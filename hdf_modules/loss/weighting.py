"""How the losses of a batch are weighted: the base's own mean, a worst case, or a callable."""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Tensor, nn

from hdf_modules.errors import HDFError, choose
from hdf_modules.loss.dro import check_level, dro_weights
from hdf_modules.loss.groups import GroupWeights
from hdf_modules.loss.per_sample import Samples
from hdf_modules.loss.schedule import Level, Schedule

Weighting = str | Callable[[Tensor], Tensor] | None


def make_weighting(
    weighting: Weighting, level: Level, *, trim: float, adjustment: Tensor | None
) -> nn.Module:
    """Return the module (samples, advance) → weights; ``advance`` says whether state moves on.

    Raises:
        HDFError: for an unknown weighting, or an option that is missing, out of range or unused.
    """
    if not 0 <= trim < 1:
        raise HDFError("trim", "a share in [0, 1)", trim)
    if adjustment is not None and weighting != "group":
        raise HDFError("adjustment", "None, unless weighting='group'", "a tensor")
    inner = _make_inner(weighting, level, adjustment)
    return Trimmed(inner, trim) if trim else inner


def _make_inner(weighting: Weighting, level: Level, adjustment: Tensor | None) -> nn.Module:
    if weighting is None or callable(weighting):
        if level is not None:
            raise HDFError("level", "None, unless weighting names an objective", level)
        return OwnMean() if weighting is None else CallableWeights(weighting)
    choose("weighting", weighting, (None, "kl", "kl-ball", "chi2", "cvar", "group"))
    if weighting == "group":
        return GroupWeights(Schedule(_check_step, level), adjustment)
    return RobustWeights(weighting, level)


def _check_step(step: float | None) -> float:
    if step is None or not (math.isfinite(step) and step >= 0):
        raise HDFError("level", "a step size >= 0 for 'group'", step, "the paper uses 0.01")
    return float(step)


class OwnMean(nn.Module):
    """The base loss's own mean."""

    def forward(self, samples: Samples, advance: bool) -> Tensor:
        """Return elements / Σ normalizer; zeros where that sum is zero."""
        total = samples.normalizer.sum()
        return samples.elements * (total > 0) / total.where(total > 0, 1)


class RobustWeights(nn.Module):
    """`dro_weights` of one of its objectives."""

    def __init__(self, objective: str, level: Level) -> None:
        super().__init__()
        self.objective = objective
        self.level = Schedule(lambda value: check_level(objective, value), level)

    def forward(self, samples: Samples, advance: bool) -> Tensor:
        """Return the worst-case weights of the losses."""
        return dro_weights(samples.losses, self.objective, self.level(advance))


class CallableWeights(nn.Module):
    """A user's function from detached losses to weights."""

    def __init__(self, function: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.function = function

    def forward(self, samples: Samples, advance: bool) -> Tensor:
        """Return the function's weights, checked and detached."""
        losses = samples.losses
        weights = self.function(losses)
        found = f"shape {tuple(weights.shape)}" if isinstance(weights, Tensor) else type(weights)
        if not isinstance(weights, Tensor) or weights.shape != losses.shape:
            raise HDFError("weighting", f"weights of shape {tuple(losses.shape)}", found)
        if not bool(weights.isfinite().all()):
            raise HDFError("weighting", "finite weights", "inf or NaN")
        return weights.detach().to(losses.dtype)


class Trimmed(nn.Module):
    """Without the share ``trim`` of largest losses, then weighted: DORO (Zhai et al., 2021).

    Wrong labels have large losses, and a worst case would chase them.
    """

    def __init__(self, inner: nn.Module, trim: float) -> None:
        super().__init__()
        self.inner, self.trim = inner, trim

    def forward(self, samples: Samples, advance: bool) -> Tensor:
        """Return the inner weights of the ⌈(1 − trim) n⌉ smallest losses, zero for the others."""
        n = len(samples.losses)
        kept = samples.losses.argsort(stable=True)[: n - math.floor(self.trim * n + 1e-9)]
        weights = torch.zeros_like(samples.losses)
        return weights.index_copy(0, kept, self.inner(samples[kept], advance).to(weights))
