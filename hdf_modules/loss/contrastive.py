"""The contrastive and the bottleneck term of the distribution-aware scaling module."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from hdf_modules.errors import (
    HDFError,
    at_least,
    check_features,
    check_groups,
    check_labels,
    number,
)
from hdf_modules.loss.memory import FeatureMemory
from hdf_modules.loss.pairwise import (
    Split,
    positives_elsewhere,
    soft_positives,
    tiled_denominators,
)

# A feature vector whose largest entry is below this has no direction: it counts as zero, and no
# gradient flows to it (F.normalize would send 1e12 times the gradient).
_ZERO = 1e-6

Memory = tuple[Tensor, ...] | None


@dataclass(frozen=True)
class Kernel:
    """Log of the weighted exponential, s/τ − (s − η)²/2η²: a parabola in the cosine s."""

    temperature: float
    eta: float

    def __post_init__(self) -> None:
        number("temperature", self.temperature)
        number("eta", self.eta)

    def __call__(self, similarity: Tensor) -> Tensor:
        """Log weight at cosine s."""
        square, linear = 1 / (2 * self.eta**2), 1 / self.temperature + 1 / self.eta
        return (similarity * -square).add_(linear).mul_(similarity).sub_(0.5)

    def slope(self, similarity: Tensor) -> Tensor:
        """Derivative in s."""
        return (similarity * -(1 / self.eta**2)).add_(1 / self.temperature + 1 / self.eta)


class RobustContrastive(nn.Module):
    """`robust_contrastive_loss` as a part of the loss, with a memory of earlier batches.

    Args:
        temperature: τ > 0, which the paper leaves open. The weighted exponential rises with the
            similarity s only up to η + η²/τ: a more similar negative is pulled in. The default is
            the largest τ at which none can be, η²/(1 − η).
        eta: η > 0, most weighted similarity and its width.
        memory: number of samples of earlier batches that serve as positives and negatives too.
        across_groups: whether the positives of a sample are those of other groups alone: a class
            is then what it shares across sources. Not in the paper; it needs groups.
        block_size: side of the tiles, whose memory is linear in N; ``None`` forms all pairs.
    """

    def __init__(
        self,
        temperature: float = 0.05,
        eta: float = 0.2,
        *,
        memory: int = 0,
        across_groups: bool = False,
        block_size: int | None = None,
    ) -> None:
        super().__init__()
        self.kernel, self.memory = Kernel(temperature, eta), FeatureMemory(memory)
        self.block_size = at_least("block_size", block_size, 1, or_none=True)
        self.across_groups = across_groups

    def forward(
        self, batch: tuple[Tensor, Tensor, Tensor | None], split: Split | None, advance: bool
    ) -> Tensor:
        """Return the term of unit vectors, labels and groups, remembered if ``advance``."""
        features, labels, groups = batch
        groups = groups if self.across_groups else None
        past = None
        if self.memory.size:
            kept = (features, labels) if groups is None else (features, labels, groups)
            past = self.memory(*kept, advance=advance)
        options: Any = {"block_size": self.block_size, "split": split}
        return contrastive_term(features, labels, self.kernel, groups, past, **options)

    def extra_repr(self) -> str:
        """Return the options as the constructor takes them."""
        kernel = f"temperature={self.kernel.temperature}, eta={self.kernel.eta}"
        names = ("across_groups", "block_size")
        return kernel + "".join(f", {name}={getattr(self, name)}" for name in names)


def robust_contrastive_loss(
    features: Tensor,
    target: Tensor,
    *,
    temperature: float = 0.05,
    eta: float = 0.2,
    groups: Tensor | None = None,
    memory: Memory = None,
    block_size: int | None = None,
) -> Tensor:
    r"""Supervised contrastive loss with distributionally robust weights on the denominator.

    Cui et al., 2025 (arXiv:2507.15765), Figure 2, L_D-SC; SupCon (Khosla et al., 2020) with
    weights. With s_ij the cosine of features i and j::

        w_ij = exp(−(s_ij − η)² / 2η²)
        L_i  = −1/Σ_p a_ip · Σ_{p≠i} a_ip log[ exp(s_ip/τ) / Σ_{a≠i} w_ia exp(s_ia/τ) ]

    a_ip = 1 if the labels agree, else 0; for soft labels a_ip = y_i·y_p. The result is the mean of
    L_i over the anchors that have a positive (Σ a > 0), and a zero with a graph if there are none.
    The gradient flows through w.

    Deviation from the released code: it takes w on s/τ minus the row maximum, which leaves all the
    weight on the diagonal and no gradient; here w is taken on the cosine, as in the paper, in log
    space: log w + s/τ is a parabola in s.

    Args:
        features: (N, D), any length; normalised here, in float32 at least, autocast off. A zero
            vector has similarity 0 to all others and receives no gradient.
        target: class ids (N,), integer, or soft labels (N, K), floating point and ≥ 0.
        temperature: τ > 0.
        eta: η > 0, the similarity that weighs most, and the width of the weight.
        groups: ids (N,), integer: of the sources, the subjects. Then a_ip = 0 within a group, and
            what brings a class together is what it shares across groups; the denominator is as
            without. The paper has no groups.
        memory: features (M, D) and targets of earlier samples, and their groups (M,) if there are
            groups: more positives and more terms of the denominator, without gradient, and no
            anchors.
        block_size: side of the square tiles in which the N×N similarities are visited and, in the
            backward pass, visited again: memory O(ND). ``None`` forms them at once.

    Returns:
        A scalar, float32 or float64.

    Raises:
        HDFError: for shapes or types that do not fit, or an option out of range.

    Example:
        >>> features = torch.tensor([[1.0, 0.0], [1.0, 0.0], [0.0, 1.0]])
        >>> robust_contrastive_loss(features, torch.tensor([0, 0, 1]), temperature=1.0)
        tensor(-1.4985)
    """
    check_features(features)
    check_labels(target, len(features))
    at_least("block_size", block_size, 1, or_none=True)
    if groups is not None:
        check_groups(groups, len(features))
    with torch.autocast(features.device.type, enabled=False):
        anchors = normalize(features)
        past = memory and _remembered(memory, anchors, target, groups)
    kernel = Kernel(temperature, eta)
    return contrastive_term(anchors, target, kernel, groups, past, block_size=block_size)


def contrastive_term(
    anchors: Tensor,
    target: Tensor,
    kernel: Kernel,
    groups: Tensor | None = None,
    memory: Memory = None,
    *,
    block_size: int | None = None,
    split: Split | None = None,
) -> Tensor:
    """`robust_contrastive_loss` of checked unit vectors, those of the memory among them.

    Its pairs are divided among processes if ``split`` is given.
    """
    with torch.autocast(anchors.device.type, enabled=False):
        others, labels, *past = memory or (anchors[:0].detach(), target[:0])
        if len(anchors) + len(others) < 2:
            return anchors.sum() * 0
        if groups is not None:
            ids = groups, past[0] if past else groups[:0]
            agreement, total = positives_elsewhere(anchors, target, others, labels, ids)
        else:
            sums = _positives if target.ndim == 1 else soft_positives
            agreement, total = sums(anchors, target, others, labels)
        if block_size is None and split is None:
            denominators = _denominators(anchors, others, kernel)
        else:
            denominators = tiled_denominators(anchors, others, kernel, block_size, split)
        has_positive = total > 0
        mean_similarity = agreement / total.where(has_positive, 1)
        losses = (denominators - mean_similarity / kernel.temperature).where(has_positive, 0)
        return losses.sum() / has_positive.sum().clamp(min=1)


def covariance_trace(features: Tensor) -> Tensor:
    """Trace of the population covariance, the sum of the D variances (L_IB of the paper), O(ND).

    The released code subtracts this term and builds the D×D matrix; the paper minimises it.

    Args:
        features: (N, D), as given, not normalised; computed in float32 at least, autocast off.

    Returns:
        A scalar; zero with a graph for N = 0.

    Raises:
        HDFError: if the features are not a floating point matrix.

    Example:
        >>> covariance_trace(torch.tensor([[0.0, 1.0], [2.0, 1.0]]))
        tensor(1.)
    """
    check_features(features)
    with torch.autocast(features.device.type, enabled=False):
        features = features.to(torch.promote_types(features.dtype, torch.float32))
        if len(features) == 0:
            return features.sum()
        return (features - features.mean(0)).square().sum() / len(features)


def normalize(features: Tensor) -> Tensor:
    """Unit vectors in float32 at least; safe for zero, tiny, huge and half precision rows."""
    features = features.to(torch.promote_types(features.dtype, torch.float32))
    if features.numel() == 0:
        return features
    size = features.detach().abs().amax(1, keepdim=True)  # cancels, so it carries no gradient
    alive = size > _ZERO
    features = features.where(alive, 0) / size.where(alive, 1)
    length = torch.linalg.vector_norm(features, dim=1, keepdim=True)
    return features / length.where(alive, 1)


def _remembered(
    memory: tuple[Tensor, ...], anchors: Tensor, target: Tensor, groups: Tensor | None
) -> tuple[Tensor, ...]:
    """Check a memory and return it with unit vectors."""
    features, labels, *past = memory
    if len(past) != (groups is not None):
        expected = "features and targets, and groups if there are groups"
        raise HDFError("memory", expected, f"{len(memory)} tensors")
    check_features(features)
    check_labels(labels, len(features))
    for ids in past:
        check_groups(ids, len(features))
    if features.shape[1] != anchors.shape[1] or labels.shape[1:] != target.shape[1:]:
        found = f"features {tuple(features.shape)}, targets {tuple(labels.shape)}"
        expected = f"features (M, {anchors.shape[1]}), targets (M, *{tuple(target.shape[1:])})"
        raise HDFError("memory", expected, found)
    return normalize(features.detach()).to(anchors.dtype), labels, *past


def _denominators(anchors: Tensor, others: Tensor, kernel: Kernel) -> Tensor:
    """Return log Σ_{a≠i} exp kernel(s_ia) for each anchor i, over anchors and others."""
    keys = torch.cat([anchors, others]) if len(others) else anchors
    logits = _Logits.apply(anchors @ keys.T, kernel)
    # In place, so that two matrices are kept for the backward pass: similarities and terms.
    with torch.no_grad():
        logits.diagonal().fill_(-torch.inf)
        largest = logits.amax(1, keepdim=True)
    terms = logits.sub_(largest).exp_()
    return largest[:, 0] + terms.sum(1).log()


class _Logits(torch.autograd.Function):
    """``kernel`` of a matrix, keeping nothing but the matrix; differentiable twice."""

    @staticmethod
    def forward(ctx: Any, similarity: Tensor, kernel: Kernel) -> Tensor:
        ctx.save_for_backward(similarity)
        ctx.kernel = kernel
        return kernel(similarity)

    @staticmethod
    def backward(ctx: Any, upstream: Tensor) -> tuple[Tensor, None]:
        (similarity,) = ctx.saved_tensors
        return ctx.kernel.slope(similarity) * upstream, None


def _positives(
    anchors: Tensor, target: Tensor, others: Tensor, labels: Tensor
) -> tuple[Tensor, Tensor]:
    """Return Σ_p a_ip s_ip and Σ_p a_ip over the positives p ≠ i of each anchor i, class ids known.

    Sums per class, without any N×N matrix: those of all, less the anchor's own share.
    """
    classes, members = torch.cat([target, labels]).unique(return_inverse=True)
    sums = anchors.new_zeros(len(classes), anchors.shape[1])
    sums = sums.index_add(0, members, torch.cat([anchors, others]) if len(others) else anchors)
    own = members[: len(anchors)]
    total = torch.bincount(members, minlength=len(classes))[own] - 1
    return (anchors * (sums[own] - anchors)).sum(1), total.to(anchors.dtype)
