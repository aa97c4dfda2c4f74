"""The loss of the distribution-aware scaling module, around any classification loss."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace

import torch
from torch import Tensor, nn

from hdf_modules.errors import HDFError
from hdf_modules.loss.balance import GradientScaling, nonnegative
from hdf_modules.loss.checks import (
    check_block_size,
    check_features,
    check_groups,
    check_labels,
)
from hdf_modules.loss.contrastive import contrastive_term, covariance_trace, normalize
from hdf_modules.loss.diagnostics import concentration, shares
from hdf_modules.loss.distributed import Ranks, is_distributed, meet
from hdf_modules.loss.dro import check_finite
from hdf_modules.loss.memory import FeatureMemory
from hdf_modules.loss.pairwise import Kernel
from hdf_modules.loss.per_sample import PerSampleLoss, Samples
from hdf_modules.loss.schedule import Level
from hdf_modules.loss.weighting import Weighting, make_weighting


class HeterogeneityAwareLoss(nn.Module):
    r"""Weighted classification loss plus robust contrastive loss plus information bottleneck.

    Cui et al., 2025 (arXiv:2507.15765), Figure 2, the distribution-aware scaling module::

        L = λ_CE Σ_i w_i l_i + λ_SC ( mean_i L_D-SC(i) + b Tr Cov(Z) )

    with l_i the base loss of sample i, w its distributionally robust weights
    (`functional.dro_weights`), L_D-SC from `functional.robust_contrastive_loss`, Z the normalised
    features, and λ_CE = α g/(g+1), λ_SC = β/(g+1) from the gradient norm g given to
    `rescale` (α and β until then). Without features the second term is absent.

    Samples whose target is the base's ``ignore_index`` leave the whole loss: they have no
    label, so they are neither positives nor negatives nor anchors, and they get no weight.

    Under ``torch.distributed`` every rank returns the loss of the batch of all ranks, whose sizes
    may differ and be zero; its gradient is world size times the rank's share, so that DDP's average
    is the gradient of one process on the whole batch. All ranks call it together, in training mode;
    in evaluation mode nothing is gathered, and group weights, memory and ramps do not move.

    Deviations from the released code, which cannot run as published: the bottleneck is added (there
    it is subtracted), λ follows g (there it is constant) above a floor (`scaling`), and w in the
    contrastive term lives on the cosine.

    Args:
        base: a loss of ``torch.nn`` or another module with ``reduction`` (overridden on a copy,
            whose parameters are then this module's), or a callable (logits, target) → losses
            (B,). Default cross-entropy.
        weighting: ``None`` (the base loss's own mean, class weights and label smoothing included),
            ``"kl"``, ``"kl-ball"``, ``"chi2"``, ``"cvar"``, ``"group"``, or a callable from
            detached losses (n,) to weights (n,). Class weights multiply the losses that are
            weighted.
        level: temperature, radius, share or step size of the weighting; required by those named;
            ``(start, end, steps)`` ramps it linearly over the training calls.
        alpha: α ≥ 0, scale of the classification term.
        beta: β ≥ 0, scale of the contrastive term.
        temperature: τ > 0 of the contrastive term, which the paper leaves open. The weighted
            exponential rises with the similarity s only up to η + η²/τ: a more similar negative
            is pulled in. The default is the largest τ at which none can be, η²/(1 − η).
        eta: η > 0, most weighted similarity and its width.
        bottleneck: b ≥ 0, share of the covariance trace.
        across_groups: whether the positives of a sample are those of other groups alone: a class
            is then what it shares across sources. Not in the paper; it needs groups.
        trim: share in [0, 1) of the largest losses that get no weight (label noise; DORO, Zhai et
            al., 2021).
        adjustment: (G,) tensor added to the group losses in the update of ``"group"``: C/√n_g.
        joint_groups: ``"group"`` and its diagnostics run over pairs of group and class, numbered
            group · K + class.
        floor: smallest λ_CE as a share of α, reached at g = 1 by default. Where g is small because
            λ_CE is, training would stay there (`scaling`).
        grad_norm_smoothing: weight in [0, 1) of the past in a moving average of g.
        grad_norm_unit: the norm that counts as g = 1. √(number of parameters) makes g the root
            mean square of the gradient's entries. Whether g grows with the model is a matter of the
            model: measure before scaling by it (benchmarks/results/scaling.md).
        gather: whether ``torch.distributed`` ranks form one batch. The losses and features are
            gathered; each rank then visits the pairs of its own anchors alone.
        memory: number of samples of earlier batches that serve as positives and negatives too.
        block_size: side of the tiles of the contrastive term, whose memory is then linear in N;
            ``None`` forms the matrix of all pairs.

    Attributes:
        terms: detached parts of the last call, scalars: ``classification``, ``contrastive``,
            ``bottleneck``, ``lambda_ce``, ``lambda_sc``, ``effective_sample_size``,
            ``largest_weight``, and, after a call inside `frozen`, ``sharpness_gap``, L(w+ε) − L(w).
        shares: detached shares of the weight per ``"class"`` and per ``"group"``, vectors.

    Raises:
        HDFError: for an option out of range; in ``forward`` for tensors that do not fit and, by
            index and rank, for losses or features that are inf or NaN (this costs one
            synchronisation with the device). All ranks raise together.

    Example:
        >>> criterion = HeterogeneityAwareLoss(weighting="cvar", level=0.5)
        >>> logits = torch.tensor([[2.0, 0.0], [0.0, 1.0], [1.0, 0.0], [0.0, 0.0]])
        >>> criterion(logits, torch.tensor([0, 1, 1, 0]))
        tensor(1.0032)
    """

    def __init__(
        self,
        base: Callable[[Tensor, Tensor], Tensor] | None = None,
        *,
        weighting: Weighting = None,
        level: Level = None,
        alpha: float = 1.0,
        beta: float = 0.1,
        temperature: float = 0.05,
        eta: float = 0.2,
        bottleneck: float = 0.1,
        across_groups: bool = False,
        trim: float = 0.0,
        adjustment: Tensor | None = None,
        joint_groups: bool = False,
        floor: float = 0.5,
        grad_norm_smoothing: float = 0.0,
        grad_norm_unit: float = 1.0,
        gather: bool = True,
        memory: int = 0,
        block_size: int | None = None,
    ) -> None:
        super().__init__()
        self.bottleneck = nonnegative("bottleneck", bottleneck)
        check_block_size(block_size)
        self.kernel, self.block_size = Kernel(temperature, eta), block_size
        self.gather, self.joint_groups = gather, joint_groups
        self.across_groups = across_groups
        self.base = PerSampleLoss(nn.CrossEntropyLoss() if base is None else base)
        self.weighting = make_weighting(weighting, level, trim=trim, adjustment=adjustment)
        self.scaling = GradientScaling(
            alpha, beta, floor=floor, smoothing=grad_norm_smoothing, unit=grad_norm_unit
        )
        self.memory = FeatureMemory(memory)
        self.terms: dict[str, Tensor] = {}
        self.shares: dict[str, Tensor] = {}
        self._parts: tuple[Tensor, Tensor] | None = None
        self._repeats = False

    def forward(
        self,
        logits: Tensor,
        target: Tensor,
        features: Tensor | None = None,
        groups: Tensor | None = None,
    ) -> Tensor:
        """Return the scalar loss, float32 at least.

        Args:
            logits: what the base loss takes, (B, …).
            target: class ids (B,), or soft labels (B, K).
            features: penultimate features (B, D), any length; ``None`` leaves the contrastive and
                the bottleneck term out.
            groups: ids (B,) in 0 … 65535 for ``weighting="group"``, ``across_groups`` and `shares`.
        """
        mine, ranks = self._together(logits, target, features, groups)
        batch = ranks.gather_samples(mine)
        advance = self.training and not self._repeats
        classification = self._classification(mine, batch, ranks, advance)
        contrastive, bottleneck = self._representation(batch, ranks, advance)
        return self._combine(classification, contrastive, bottleneck)

    def rescale(self, grad_norm: float | Tensor) -> None:
        """Set λ_CE and λ_SC from the norm of the loss's gradient, a number or a 0-dim tensor.

        What ``clip_grad_norm_`` returns will do; under DDP it has to be equal on every rank. inf
        and NaN are counted, warned about and ignored.
        """
        self.scaling.update(grad_norm)

    @contextmanager
    def frozen(self) -> Iterator[None]:
        """Inside, a batch is seen a second time: group weights, memory and ramps do not move.

        For the second pass of sharpness-aware minimisation; `SAM` does it by itself.
        """
        before, self._repeats = self._repeats, True
        try:
            yield
        finally:
            self._repeats = before

    def extra_repr(self) -> str:
        """Return the options that no submodule shows."""
        names = ("block_size", "bottleneck", "across_groups", "gather")
        options = {name: getattr(self, name) for name in names}
        options = {"temperature": self.kernel.temperature, "eta": self.kernel.eta} | options
        return ", ".join(f"{name}={value}" for name, value in options.items())

    def _together(
        self, logits: Tensor, target: Tensor, features: Tensor | None, groups: Tensor | None
    ) -> tuple[Samples, Ranks]:
        """Return this rank's samples and who else has some; if one rank fails, all raise."""

        def prepare() -> Samples:
            return self._prepare(logits, target, features, groups)

        if self.training and self.gather and is_distributed():
            return meet(prepare, logits.device)
        mine = prepare()
        return mine, Ranks((len(mine.losses),))

    def _prepare(
        self, logits: Tensor, target: Tensor, features: Tensor | None, groups: Tensor | None
    ) -> Samples:
        """Check everything and return the samples that are not ignored."""
        _check(logits, target, features, groups)
        if self.across_groups and features is not None and groups is None:
            raise HDFError("groups", "group ids (B,) for across_groups=True", None)
        samples = self.base(logits, target)
        check_finite("losses", samples.losses)
        hard = target.ndim == 1 and not target.is_floating_point()
        labelled = hard or (target.ndim == 2 and target.is_floating_point())
        if groups is not None and self.joint_groups:
            groups = _joint(groups, target, logits)
        samples = replace(
            samples,
            labels=target if labelled else None,
            groups=groups,
            features=None if features is None else normalize(features),
        )
        return samples[samples.elements > 0]

    def _classification(self, mine: Samples, batch: Samples, ranks: Ranks, advance: bool) -> Tensor:
        weights = self.weighting(batch, advance)
        self.terms |= concentration(weights)
        self.shares = shares(weights, batch)
        own = (weights[ranks.own] * mine.losses).sum()
        return ranks.share(own, (weights * batch.losses).sum())

    def _representation(self, batch: Samples, ranks: Ranks, advance: bool) -> tuple[Tensor, Tensor]:
        features, labels = batch.features, batch.labels
        if features is None or labels is None:
            zero = torch.zeros((), device=batch.losses.device)
            return zero, zero
        groups = batch.groups if self.across_groups else None
        kept = (features, labels) if groups is None else (features, labels, groups)
        contrastive = contrastive_term(
            features,
            labels,
            self.kernel,
            groups=groups,
            memory=self.memory(*kept, advance=advance),
            block_size=self.block_size,
            split=ranks.split,
        )
        bottleneck = covariance_trace(features)
        return ranks.share(contrastive, contrastive), ranks.share(bottleneck, bottleneck)

    def _combine(self, classification: Tensor, contrastive: Tensor, bottleneck: Tensor) -> Tensor:
        lambda_ce, lambda_sc = self.scaling.lambda_ce, self.scaling.lambda_sc
        representation = contrastive + self.bottleneck * bottleneck
        self.terms |= {
            "classification": classification.detach(),
            "contrastive": contrastive.detach(),
            "bottleneck": bottleneck.detach(),
            "lambda_ce": lambda_ce.clone(),
            "lambda_sc": lambda_sc.clone(),
        }
        parts = classification.detach(), representation.detach()
        if self._repeats and self._parts is not None:  # λ may have moved in between: use one λ
            rises = [after - before for after, before in zip(parts, self._parts, strict=True)]
            self.terms["sharpness_gap"] = lambda_ce * rises[0] + lambda_sc * rises[1]
        else:
            self._parts = parts
        return lambda_ce * classification + lambda_sc * representation


def _joint(groups: Tensor, target: Tensor, logits: Tensor) -> Tensor:
    """Number the pairs of group and class."""
    classes = target if target.ndim == 1 else target.argmax(1)
    pairs = groups * logits.shape[1] + classes.clamp(min=0)  # an ignore_index may be negative
    check_groups(pairs, len(groups))
    return pairs


def _check(logits: Tensor, target: Tensor, features: Tensor | None, groups: Tensor | None) -> None:
    for name, value in (("logits", logits), ("target", target)):
        if not isinstance(value, Tensor):
            raise HDFError(name, "a tensor", type(value).__name__)
    if not logits.is_floating_point():
        raise HDFError("logits", "a floating point tensor", logits.dtype)
    if logits.ndim == 0 or target.ndim == 0 or len(target) != len(logits):
        found = f"{tuple(target.shape)} and {tuple(logits.shape)}"
        raise HDFError("target", "as many targets as logits", found)
    if groups is not None:
        check_groups(groups, len(logits))
    if features is not None:
        check_features(features)
        if len(features) != len(logits):
            raise HDFError("features", f"{len(logits)} rows, one for each sample", len(features))
        check_labels(target, len(features))
        check_finite("features", features)
