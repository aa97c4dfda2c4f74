"""How similar anchors are to their positives, without any N×N matrix.

With a_ip the agreement of i and p, 1 or 0 for class ids and y_i·y_p for soft labels, these are
Σ_p a_ip s_ip and Σ_p a_ip over the positives p ≠ i: sums per class.
"""

from __future__ import annotations

import torch
from torch import Tensor


def positives(
    anchors: Tensor, target: Tensor, others: Tensor, labels: Tensor
) -> tuple[Tensor, Tensor]:
    """Both sums, over anchors and others: those of all, less the anchor's own share.

    Args:
        anchors: unit vectors (N, D).
        target: class ids (N,) or soft labels (N, K).
        others: unit vectors (M, D) without gradient, and no anchors.
        labels: their targets.
    """
    if target.ndim == 2:
        return _soft_positives(anchors, target.detach(), others, labels)
    classes, members = torch.cat([target, labels]).unique(return_inverse=True)
    sums = anchors.new_zeros(len(classes), anchors.shape[1])
    sums = sums.index_add(0, members, torch.cat([anchors, others]) if len(others) else anchors)
    own = members[: len(anchors)]
    total = torch.bincount(members, minlength=len(classes))[own] - 1
    return (anchors * (sums[own] - anchors)).sum(1), total.to(anchors.dtype)


def positives_elsewhere(
    anchors: Tensor,
    target: Tensor,
    others: Tensor,
    labels: Tensor,
    groups: tuple[Tensor, Tensor],
) -> tuple[Tensor, Tensor]:
    """The same, where positives are in other groups than the anchor.

    Group by group, not as a difference, whose rounding would make positives out of none.

    Args:
        anchors: as above.
        target: as above.
        others: as above.
        labels: as above.
        groups: ids of the anchors (N,), of the others (M,).
    """
    keys, every, count = torch.cat([anchors, others]), torch.cat(groups), len(anchors)
    members = torch.cat([target, labels]).detach()
    if members.ndim == 1:
        members = torch.nn.functional.one_hot(members.unique(return_inverse=True)[1])
    members = members.to(anchors.dtype)
    agreement, total = torch.zeros_like(anchors[:, 0]), torch.zeros_like(anchors[:, 0])
    for group in groups[0].unique():
        own, elsewhere = every[:count] == group, every != group
        sums, sizes = members[elsewhere].T @ keys[elsewhere], members[elsewhere].sum(0)
        mine = members[:count][own]
        agreement = agreement.masked_scatter(own, (anchors[own] * (mine @ sums)).sum(1))
        total = total.masked_scatter(own, mine @ sizes)
    return agreement, total


def _soft_positives(
    anchors: Tensor, target: Tensor, others: Tensor, labels: Tensor
) -> tuple[Tensor, Tensor]:
    """In float64: an anchor's own share may be most of the sum."""
    wide = torch.float32 if anchors.device.type == "mps" else torch.float64
    target, labels, precise = target.to(wide), labels.to(wide), anchors.to(wide)
    sums = target.T @ precise + labels.T @ others.to(wide)
    total = (target * (target.sum(0) + labels.sum(0) - target)).sum(1)
    own = target.square().sum(1) * precise.square().sum(1)
    agreement = (precise * (target @ sums)).sum(1) - own
    return agreement.to(anchors.dtype), total.to(anchors.dtype)
