"""The contrastive and the bottleneck term of the distribution-aware scaling module."""

from __future__ import annotations

import torch
from torch import Tensor

from hdf_modules.errors import HDFError
from hdf_modules.functional.dro import at_least_float32
from hdf_modules.functional.pairwise import Kernel, Split, log_denominators

__all__ = ["covariance_trace", "robust_contrastive_loss"]

# A feature vector whose largest entry is below this has no direction: it counts as zero, and no
# gradient flows to it (F.normalize would send 1e12 times the gradient).
_ZERO = 1e-6


def robust_contrastive_loss(
    features: Tensor,
    target: Tensor,
    *,
    temperature: float = 0.05,
    eta: float = 0.2,
    memory: tuple[Tensor, Tensor] | None = None,
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
        memory: features (M, D) and targets of earlier samples: more positives and more terms of
            the denominator, without gradient, and no anchors.
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
    return contrastive_term(
        features,
        target,
        Kernel(temperature, eta),
        memory=memory,
        block_size=block_size,
    )


def contrastive_term(
    features: Tensor,
    target: Tensor,
    kernel: Kernel,
    *,
    memory: tuple[Tensor, Tensor] | None,
    block_size: int | None,
    split: Split | None = None,
) -> Tensor:
    """`robust_contrastive_loss`, its pairs divided among processes if ``split`` is given."""
    check_features(features)
    check_labels(target, len(features))
    check_block_size(block_size)
    with torch.autocast(features.device.type, enabled=False):
        anchors = normalize(features)
        others, labels = _without_gradient(memory, anchors, target)
        if len(anchors) + len(others) < 2:
            return anchors.sum() * 0
        agreement, total = _positives(anchors, target, others, labels)
        denominators = log_denominators(anchors, others, kernel, block_size, split)
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
        features = features.to(at_least_float32(features.dtype))
        if len(features) == 0:
            return features.sum()
        return (features - features.mean(0)).square().sum() / len(features)


def normalize(features: Tensor) -> Tensor:
    """Unit vectors in float32 at least; safe for zero, tiny, huge and half precision rows."""
    features = features.to(at_least_float32(features.dtype))
    if features.numel() == 0:
        return features
    size = features.detach().abs().amax(1, keepdim=True)  # cancels, so it carries no gradient
    alive = size > _ZERO
    features = features.where(alive, 0) / size.where(alive, 1)
    length = torch.linalg.vector_norm(features, dim=1, keepdim=True)
    return features / length.where(alive, 1)


def check_features(features: Tensor) -> None:
    """Raise unless ``features`` is a floating point matrix."""
    if features.ndim != 2 or not features.is_floating_point():
        found = f"shape {tuple(features.shape)}, {features.dtype}"
        raise HDFError("features", "a floating point tensor of shape (N, D)", found)


def check_labels(target: Tensor, length: int) -> None:
    """Raise unless ``target`` holds class ids (length,) or soft labels (length, K)."""
    integer = not (target.is_floating_point() or target.is_complex() or target.dtype == torch.bool)
    soft = target.is_floating_point() and target.ndim == 2
    if not (integer and target.ndim == 1) and not soft:
        found = f"shape {tuple(target.shape)}, {target.dtype}"
        expected = "integer class ids (N,) or floating point soft labels (N, K)"
        raise HDFError("target", expected, found)
    if len(target) != length:
        raise HDFError("target", f"{length} labels, one for each feature", len(target))


def check_block_size(block_size: int | None) -> None:
    """Raise unless ``block_size`` can be the side of a tile."""
    if block_size is not None and block_size < 1:
        raise HDFError("block_size", "an integer >= 1 or None", block_size)


def _without_gradient(
    memory: tuple[Tensor, Tensor] | None, anchors: Tensor, target: Tensor
) -> tuple[Tensor, Tensor]:
    """Return the memory's normalised features and its targets, both possibly empty."""
    if memory is None:
        return anchors.new_empty(0, anchors.shape[1]), target[:0]
    features, labels = memory
    check_features(features)
    check_labels(labels, len(features))
    if features.shape[1] != anchors.shape[1] or labels.shape[1:] != target.shape[1:]:
        found = f"features {tuple(features.shape)}, targets {tuple(labels.shape)}"
        expected = f"features (M, {anchors.shape[1]}), targets (M, *{tuple(target.shape[1:])})"
        raise HDFError("memory", expected, found)
    return normalize(features.detach()).to(anchors.dtype), labels


def _positives(
    anchors: Tensor, target: Tensor, others: Tensor, labels: Tensor
) -> tuple[Tensor, Tensor]:
    """Σ_p a_ip s_ip and Σ_p a_ip over the positives p ≠ i, without any N×N matrix.

    Both are sums per class, less the anchor's own share.
    """
    if target.ndim == 2:
        return _soft_positives(anchors, target.detach(), others, labels)
    classes, members = torch.cat([target, labels]).unique(return_inverse=True)
    sums = anchors.new_zeros(len(classes), anchors.shape[1])
    sums = sums.index_add(0, members, torch.cat([anchors, others]) if len(others) else anchors)
    own = members[: len(anchors)]
    total = torch.bincount(members, minlength=len(classes))[own] - 1
    return (anchors * (sums[own] - anchors)).sum(1), total.to(anchors.dtype)


def _soft_positives(
    anchors: Tensor, target: Tensor, others: Tensor, labels: Tensor
) -> tuple[Tensor, Tensor]:
    """The same for soft labels, in float64: an anchor's own share may be most of the sum."""
    wide = torch.float32 if anchors.device.type == "mps" else torch.float64
    target, labels, precise = target.to(wide), labels.to(wide), anchors.to(wide)
    sums = target.T @ precise + labels.T @ others.to(wide)
    total = (target * (target.sum(0) + labels.sum(0) - target)).sum(1)
    own = target.square().sum(1) * precise.square().sum(1)
    agreement = (precise * (target @ sums)).sum(1) - own
    return agreement.to(anchors.dtype), total.to(anchors.dtype)
