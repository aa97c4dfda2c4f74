"""How the losses of a batch are weighted: by the base's own mean, a worst case, or a callable."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable
from dataclasses import replace

import torch
from torch import Tensor

from hdf_modules.errors import HDFError, choose, number, share
from hdf_modules.loss.dro import check_level, worst_case
from hdf_modules.loss.memory import Growing
from hdf_modules.loss.per_sample import Samples
from hdf_modules.loss.ramp import Level, Ramp, as_ramp

LOG_2 = math.log(2)


class Weighting(Growing):
    """What every weighting is: a module (samples, advance) → weights (n,) of their losses.

    ``advance`` says whether the batch is a new one, on which a state moves.

    Attributes:
        by_class: whether groups are pairs of group and class, numbered group · K + class.
        remembers: whether a batch that comes twice would count twice.
    """

    by_class = remembers = False


class OwnMean(Weighting):
    """The base loss's own mean."""

    def forward(self, samples: Samples, advance: bool) -> Tensor:
        """Return elements / Σ normalizer; zeros where that sum is zero."""
        total = samples.normalizer.sum()
        return samples.elements * (total > 0) / total.where(total > 0, 1)


class _WorstCase(Weighting):
    """The `dro_weights` of one objective."""

    objective: str
    parameter: str

    def __init__(self, level: Level) -> None:
        super().__init__()
        self.level = as_ramp(
            level, lambda value: check_level(self.objective, value, self.parameter)
        )

    def forward(self, samples: Samples, advance: bool) -> Tensor:
        """Return the worst-case weights of the losses."""
        return worst_case(samples.losses, self.objective, self.level(advance))


class KL(_WorstCase):
    """Worst case over all weights, with a KL penalty, at a temperature τ > 0: a softmax.

    Example:
        >>> from hdf_modules import HeterogeneityAwareLoss
        >>> criterion = HeterogeneityAwareLoss(weighting=KL(temperature=2.0))
    """

    objective, parameter = "kl", "temperature"

    def __init__(self, temperature: Level = 1.0) -> None:
        super().__init__(temperature)


class KLBall(_WorstCase):
    """Worst case within a KL ball of radius ρ ≥ 0; log 2 reaches the worst half of a batch.

    Example:
        >>> from hdf_modules import HeterogeneityAwareLoss
        >>> criterion = HeterogeneityAwareLoss(weighting=KLBall(radius=0.5))
    """

    objective, parameter = "kl-ball", "radius"

    def __init__(self, radius: Level = LOG_2) -> None:
        super().__init__(radius)


class Chi2(_WorstCase):
    """Worst case within a χ² ball of radius ρ ≥ 0; ½ reaches the worst half of a batch.

    Example:
        >>> from hdf_modules import HeterogeneityAwareLoss
        >>> criterion = HeterogeneityAwareLoss(weighting=Chi2(radius=0.5))
    """

    objective, parameter = "chi2", "radius"

    def __init__(self, radius: Level = 0.5) -> None:
        super().__init__(radius)


class CVaR(_WorstCase):
    """The worst share in (0, 1] of the batch, equally weighted: conditional value at risk.

    Start from the mean, the share 1, where training starts at chance: all losses are alike there,
    and what is learned first makes others worse, which then are all that counts. On real faces the
    worst half from the first step on stayed near chance in each of five runs; from the mean on,
    over the first half of the steps, it trained as cross-entropy does (benchmarks/evidence).

    Example:
        >>> from hdf_modules import HeterogeneityAwareLoss
        >>> from hdf_modules.loss import Ramp
        >>> criterion = HeterogeneityAwareLoss(weighting=CVaR(Ramp(1.0, 0.5, steps=1000)))
    """

    objective, parameter = "cvar", "share"

    def __init__(self, share: Level = 0.5) -> None:
        super().__init__(share)


class GroupDRO(Weighting):
    """Group DRO: exponentiated gradient ascent on the mixture of the groups.

    Sagawa et al., 2020 (arXiv:1911.08731), Algorithm 1, in log space: with l_g the mean loss of
    group g, log q ← log_softmax(log q + step·(l_g + adjustment_g)); a sample of g weighs q_g / n_g.
    Deviations from the released code: a group that is absent from the batch keeps its q (there it
    counts as loss 0); the weights of a batch are normalised over the groups present, so that
    the scale of the loss does not depend on which they are; q grows with the groups seen, a new
    group entering with the share 1/G.

    Args:
        step: the step size ≥ 0 (0.01 in the paper's experiments); where it starts and ends is a
            buffer.
        adjustment: (G,), added to the groups' losses in the update, C/√(size of the group) in
            the paper's section 3.3; 0 for groups beyond. Part of the state.
        by_class: the groups are pairs of group and class, numbered group · K + class.

    Example:
        >>> from hdf_modules import HeterogeneityAwareLoss
        >>> criterion = HeterogeneityAwareLoss(weighting=GroupDRO(step=0.1))
        >>> sources = torch.tensor([0, 0, 1, 1])
        >>> loss = criterion(torch.rand(4, 7), torch.tensor([3, 1, 4, 1]), groups=sources)
        >>> criterion.shares["group"].shape
        torch.Size([2])
    """

    grown, remembers = ("adjustment", "log_q"), True
    step_sizes: Tensor

    def __init__(
        self, step: Level = 0.01, *, adjustment: Tensor | None = None, by_class: bool = False
    ) -> None:
        super().__init__()
        adjustment = torch.empty(0) if adjustment is None else torch.as_tensor(adjustment)
        if adjustment.ndim != 1 or not adjustment.is_floating_point():
            found = f"shape {tuple(adjustment.shape)}, {adjustment.dtype}"
            raise HDFError("adjustment", "a floating point tensor, a value per group", found)
        if not bool(adjustment.isfinite().all()):
            raise HDFError("adjustment", "finite values", adjustment.tolist())
        self.step = as_ramp(step, lambda value: number("step", value, zero=True))
        self.by_class = by_class
        self.register_buffer("step_sizes", torch.tensor([self.step.start, self.step.end]))
        self.adjustment, self.log_q = adjustment.clone(), torch.empty(0)

    def forward(self, samples: Samples, advance: bool) -> Tensor:
        """Return the weights of the samples; with ``advance``, update q first."""
        losses, groups = samples.losses, samples.groups
        if groups is None:
            raise HDFError(
                "groups", "group ids (B,) for weighting='group'", None, "pass groups=sources"
            )
        if len(losses) == 0:
            return losses
        seen = int(groups.max()) + 1 if samples.counts[1] is None else samples.counts[1]
        log_q = self._grown(seen).to(losses)
        counts = torch.zeros_like(log_q).index_add(0, groups, torch.ones_like(losses))
        present = counts > 0
        if advance:
            means = torch.zeros_like(counts).index_add(0, groups, losses) / counts.clamp(min=1)
            means += self._adjustments(len(log_q)).to(losses)
            start, end = self.step_sizes.to(losses)
            step = torch.lerp(start, end, self.step.progress(advance))
            before = log_q.where(present, -torch.inf)
            after = (before + step * means).log_softmax(0) + before.logsumexp(0)
            self.log_q = log_q = after.where(present, log_q)
        q = log_q.where(present, -torch.inf).softmax(0)
        return (q / counts.clamp(min=1))[groups]

    def _grown(self, size: int) -> Tensor:
        """Return a copy of log q with at least ``size`` groups."""
        old, new = len(self.log_q), max(size, len(self.log_q))
        log_q = self.log_q.new_full((new,), -math.log(new))
        log_q[:old] = self.log_q + math.log(max(old, 1) / new)
        return log_q

    def _adjustments(self, size: int) -> Tensor:
        padding = self.adjustment.new_zeros(max(size - len(self.adjustment), 0))
        return torch.cat([self.adjustment, padding])[:size]


class CallableWeights(Weighting):
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
            raise HDFError(
                "weighting", f"weights of shape {tuple(losses.shape)}", found, "return one a sample"
            )
        if not bool(weights.isfinite().all()):
            raise HDFError("weighting", "finite weights", "inf or NaN")
        return weights.detach().to(losses.dtype)


AnyWeighting = str | Weighting | Callable[[Tensor], Tensor] | None


class Trim(Weighting):
    """Without a share of the largest losses, then weighted: DORO (Zhai et al., 2021).

    Wrong labels have large losses, and a worst case would chase them.

    Args:
        weighting: of the losses that are left, as `HeterogeneityAwareLoss` takes it.
        share: in [0, 1).

    Example:
        >>> from hdf_modules import HeterogeneityAwareLoss
        >>> criterion = HeterogeneityAwareLoss(weighting=Trim("cvar", 0.1))
    """

    def __init__(self, weighting: AnyWeighting, share: float) -> None:
        super().__init__()
        if isinstance(weighting, Trim):
            raise HDFError("weighting", "what a Trim can trim", "another Trim", "add their shares")
        self.inner, self.share = as_weighting(weighting), _share("share", share)
        self.by_class = self.inner.by_class

    def forward(self, samples: Samples, advance: bool) -> Tensor:
        """Return the inner weights of the ⌈(1 − share) n⌉ smallest losses, zero for the others."""
        n = len(samples.losses)
        kept = samples.losses.argsort(stable=True)[: n - math.floor(self.share * n + 1e-9)]
        weights = torch.zeros_like(samples.losses)
        left = replace(samples[kept], counts=(None, None))
        return weights.index_copy(0, kept, self.inner(left, advance).to(weights))


_share = share  # beside a parameter of that name
_NAMED = {"kl": KL, "kl-ball": KLBall, "chi2": Chi2, "cvar": CVaR, "group": GroupDRO}


def as_weighting(weighting: AnyWeighting) -> Weighting:
    """Return what a loss is given as a module of its own.

    Raises:
        HDFError: for an unknown name, or what is no weighting.
    """
    if weighting is None:
        return OwnMean()
    if isinstance(weighting, str):
        return _NAMED[choose("weighting", weighting, (None, *_NAMED))]()
    if isinstance(weighting, Weighting):
        return copy.deepcopy(weighting)  # two losses made from one part do not share its state
    if isinstance(weighting, (type, Ramp)) or not callable(weighting):
        found = f"the class {weighting.__name__}" if isinstance(weighting, type) else weighting
        expected = "None, a name, a part such as CVaR(0.5), or a function of the losses"
        raise HDFError(
            "weighting", expected, found, f"name one of {', '.join(_NAMED)}, or call the class"
        )
    return CallableWeights(weighting)
