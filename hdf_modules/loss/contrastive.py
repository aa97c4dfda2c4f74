"""The contrastive and the bottleneck term of the distribution-aware scaling module."""

from __future__ import annotations

import torch
from torch import Tensor

from hdf_modules.errors import HDFError
from hdf_modules.loss.checks import (
    check_block_size,
    check_features,
    check_groups,
    check_labels,
)
from hdf_modules.loss.dro import at_least_float32
from hdf_modules.loss.pairwise import Kernel, Split, log_denominators
from hdf_modules.loss.positives import positives, positives_elsewhere

__all__ = ["covariance_trace", "robust_contrastive_loss"]

# A feature vector whose largest entry is below this has no direction: it counts as zero, and no
# gradient flows to it (F.normalize would send 1e12 times the gradient).
_ZERO = 1e-6

Memory = tuple[Tensor, ...] | None


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
    return contrastive_term(
        features,
        target,
        Kernel(temperature, eta),
        groups=groups,
        memory=memory,
        block_size=block_size,
    )


def contrastive_term(
    features: Tensor,
    target: Tensor,
    kernel: Kernel,
    *,
    groups: Tensor | None = None,
    memory: Memory,
    block_size: int | None,
    split: Split | None = None,
) -> Tensor:
    """`robust_contrastive_loss`, its pairs divided among processes if ``split`` is given."""
    check_features(features)
    check_labels(target, len(features))
    check_block_size(block_size)
    if groups is not None:
        check_groups(groups, len(features))
    with torch.autocast(features.device.type, enabled=False):
        anchors = normalize(features)
        others, labels, past = _remembered(memory, anchors, target, groups)
        if len(anchors) + len(others) < 2:
            return anchors.sum() * 0
        if groups is None or past is None:
            agreement, total = positives(anchors, target, others, labels)
        else:
            ids = groups, past
            agreement, total = positives_elsewhere(anchors, target, others, labels, ids)
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


def _remembered(
    memory: Memory, anchors: Tensor, target: Tensor, groups: Tensor | None
) -> tuple[Tensor, Tensor, Tensor | None]:
    """Return the memory's normalised features, its targets and its groups, all possibly empty."""
    if memory is None:
        return anchors[:0].detach(), target[:0], None if groups is None else groups[:0]
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
    return normalize(features.detach()).to(anchors.dtype), labels, past[0] if past else None
