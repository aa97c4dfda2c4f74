"""The contrastive and the bottleneck term of the distribution-aware scaling module."""

from __future__ import annotations

import copy
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
from hdf_modules.loss.memory import FeatureMemory, check_memory
from hdf_modules.loss.pairwise import (
    Split,
    positives_elsewhere,
    soft_positives,
    tiled_denominators,
)

# A feature vector whose largest entry is below this has no direction: it counts as zero, and no
# gradient flows to it (F.normalize would send 1e12 times the gradient).
_ZERO = 1e-6
_AT_ONCE, _SIDE = 4096, 2048  # samples whose pairs are formed at once; else, side of the tiles

Memory = tuple[Tensor, ...] | None


@dataclass  # not frozen: torch 2.6's compiler does not see how a frozen one is filled
class Kernel:
    """Log of the weighted exponential, log w + s/τ = s/τ − (s − η)²/2η², of a cosine s."""

    temperature: float
    eta: float
    weight_gradient: bool = False

    def __post_init__(self) -> None:
        number("temperature", self.temperature)
        number("eta", self.eta)

    def __call__(self, similarity: Tensor) -> Tensor:
        """Log weighted exponential; autograd keeps nothing where the weights are constants."""
        scale = -0.5 / self.eta**2
        if self.weight_gradient:
            return similarity / self.temperature + scale * (similarity - self.eta).square()
        distance = similarity.detach() - self.eta
        return (distance * distance).mul_(scale).add_(similarity, alpha=1 / self.temperature)

    def slope(self, similarity: Tensor) -> Tensor | float:
        """Derivative in s."""
        if self.weight_gradient:
            return (similarity - self.eta).mul_(-1 / self.eta**2).add_(1 / self.temperature)
        return 1 / self.temperature


class RobustContrastive(nn.Module):
    """`robust_contrastive_loss` as a part of the loss, with a memory of earlier batches.

    Args:
        temperature: τ > 0, which the paper leaves open.
        eta: η > 0, most weighted similarity and its width.
        weight_gradient: whether the gradient flows through the weights too, see
            `robust_contrastive_loss`.
        memory: number of samples of earlier batches that serve as positives and negatives too.
        across_groups: whether the positives of a sample are those of other groups alone: a class
            is then what it shares across sources. Not in the paper; it needs groups.
        block_size: side of the tiles in which the pairs are visited; ``None``: as fits.

    Example:
        >>> from hdf_modules import HeterogeneityAwareLoss
        >>> criterion = HeterogeneityAwareLoss(contrastive=RobustContrastive(memory=256))
    """

    def __init__(
        self,
        temperature: float = 0.05,
        eta: float = 0.2,
        *,
        memory: int = 0,
        across_groups: bool = False,
        block_size: int | None = None,
        weight_gradient: bool = False,
    ) -> None:
        super().__init__()
        self.kernel = Kernel(temperature, eta, weight_gradient)
        self.memory = FeatureMemory(memory)
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
        kernel = ", ".join(f"{name}={value}" for name, value in vars(self.kernel).items())
        names = ("across_groups", "block_size")
        return kernel + "".join(f", {name}={getattr(self, name)}" for name in names)


def as_contrastive(contrastive: RobustContrastive | str | None) -> RobustContrastive | None:
    """Return what a loss is given as a module of its own."""
    if isinstance(contrastive, RobustContrastive):
        return copy.deepcopy(contrastive)
    if contrastive not in (None, "robust"):
        found = getattr(contrastive, "__name__", contrastive)
        raise HDFError("contrastive", "RobustContrastive(…), 'robust' or None", found)
    return None if contrastive is None else RobustContrastive()


def robust_contrastive_loss(
    features: Tensor,
    target: Tensor,
    *,
    temperature: float = 0.05,
    eta: float = 0.2,
    groups: Tensor | None = None,
    memory: Memory = None,
    block_size: int | None = None,
    weight_gradient: bool = False,
) -> Tensor:
    r"""Supervised contrastive loss with distributionally robust weights on the denominator.

    Cui et al., 2025 (arXiv:2507.15765), Figure 2, L_D-SC; SupCon (Khosla et al., 2020) with
    weights. With s_ij the cosine of features i and j::

        w_ij = exp(−(s_ij − η)² / 2η²)
        L_i  = −1/Σ_p a_ip · Σ_{p≠i} a_ip log[ exp(s_ip/τ) / Σ_{a≠i} w_ia exp(s_ia/τ) ]

    a_ip = 1 if the labels agree, else 0; for soft labels a_ip = y_i·y_p. The result is the mean of
    L_i over the anchors that have a positive (Σ a > 0), and a zero with a graph if there are none.

    The weights enter the gradient as constants, as worst-case weights do (Danskin's theorem), and
    as they do around the classification loss. The paper does not say; taken with them
    (``weight_gradient=True``), the gradient pushes a negative of similarity s away by
    1/τ − (s − η)/η² only, nothing at s = 1 and τ = 0.05, and features that start out alike, behind
    a ReLU and a mean, may stay alike: on photographs of real faces one of five runs of the whole
    method ended at chance so, and none with constant weights (docs/measured.md).

    Deviation from the released code: it takes w on s/τ minus the row maximum, which leaves all the
    weight on the diagonal and no gradient; here w is taken on the cosine, as in the paper.

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
            backward pass, visited again: memory O(ND). ``None``: all at once for up to 4,096
            samples and in function transforms, else tiles of 2,048.
        weight_gradient: whether the gradient flows through w.

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
        past = None
        if memory is not None:
            check_memory(memory, anchors, target, groups)
            past = normalize(memory[0].detach()).to(anchors.dtype), *memory[1:]
    kernel = Kernel(temperature, eta, weight_gradient)
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
        if block_size is None and len(anchors) + len(others) > _AT_ONCE:
            block_size = _SIDE
        # Tiles have a backward pass of their own, which function transforms cannot look into.
        looked_into = torch._C._are_functorch_transforms_active()
        if split is None and (block_size is None or looked_into):
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
        features: (N, D), floating point, else an `HDFError`; not normalised; computed in float32
            at least, autocast off. For N = 0 the result is a zero with a graph.

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


def _denominators(anchors: Tensor, others: Tensor, kernel: Kernel) -> Tensor:
    """Return log Σ_{a≠i} exp kernel(s_ia) for each anchor i, over anchors and others."""
    keys = torch.cat([anchors, others]) if len(others) else anchors
    logits = kernel(anchors @ keys.T)
    # In place, so that one matrix is kept for the backward pass, the terms.
    with torch.no_grad():
        logits.view(-1)[:: len(keys) + 1].fill_(-torch.inf)  # the diagonal
        largest = logits.amax(1, keepdim=True)
    terms = logits.sub_(largest).exp_()
    return largest[:, 0] + terms.sum(1).log()


def _positives(
    anchors: Tensor, target: Tensor, others: Tensor, labels: Tensor
) -> tuple[Tensor, Tensor]:
    """Return Σ_p a_ip s_ip and Σ_p a_ip over the positives p ≠ i of each anchor i, class ids known.

    Sums per class, without any N×N matrix: those of all, less the anchor's own share. A class goes
    by its first place among the sorted ids: how many there are, no host has to wait for.
    """
    count, every = len(anchors), torch.cat([target, labels])
    ranked = every.sort().values
    first, end = torch.searchsorted(ranked, every), torch.searchsorted(ranked, every, right=True)
    keys = torch.cat([anchors, others]) if len(others) else anchors
    sums = torch.zeros_like(keys).index_add(0, first, keys)[first[:count]]
    total = (end - first)[:count] - 1
    return (anchors * (sums - anchors)).sum(1), total.to(anchors.dtype)
