"""Sums over the pairs of a batch in linear memory: positives by class, denominators by tiles."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from hdf_modules.errors import MAX_GROUPS

if TYPE_CHECKING:
    from hdf_modules.loss.contrastive import Kernel


@dataclass(frozen=True)
class Split:
    """Which anchors are this process's own, and how the processes tell each other about theirs.

    Attributes:
        own: rows of the anchors.
        gather: (value for each own anchor) → (value for each anchor), without gradient.
    """

    own: slice
    gather: Callable[[Tensor], Tensor]


def tiled_denominators(
    anchors: Tensor,
    others: Tensor,
    kernel: Kernel,
    block_size: int | None = None,
    split: Split | None = None,
) -> Tensor:
    """Return log Σ_{a≠i} exp kernel(s_ia) for each anchor i, tile by tile.

    Args:
        anchors: unit vectors (N, D); each is a term of every other's sum.
        others: unit vectors (M, D), terms only, without gradient; N + M ≥ 2.
        kernel: log weight of a similarity.
        block_size: side of the tiles; ``None``: as large as they can be.
        split: visit the pairs of the own anchors alone. Only these receive a gradient, but all
            of theirs: as anchors, and as terms of every anchor's sum.
    """
    whole = Split(slice(0, len(anchors)), lambda own: own)
    side = block_size or max(len(anchors), len(others))
    return _Tiled.apply(anchors, others, _Tiling(kernel, side, split or whole))


@dataclass(frozen=True)
class _Tiling:
    kernel: Kernel
    side: int
    split: Split

    def tiles(self, *tensors: Tensor) -> list[tuple[Tensor, ...]]:
        """Rows of all tensors, ``side`` at a time; views."""
        if len(tensors[0]) == 0:
            return []
        return list(zip(*(tensor.split(self.side) for tensor in tensors), strict=True))

    def own(self, *tensors: Tensor) -> list[tuple[Tensor, ...]]:
        """Tiles of this process's anchors."""
        return self.tiles(*(tensor[self.split.own] for tensor in tensors))

    def foreign(self, *tensors: Tensor) -> list[tuple[Tensor, ...]]:
        """Tiles of the anchors of other processes."""
        start, stop = self.split.own.start, self.split.own.stop
        return self.tiles(*(torch.cat([tensor[:start], tensor[stop:]]) for tensor in tensors))


class _Tiled(torch.autograd.Function):
    """The forward pass keeps no tile; the backward pass computes each again.

    The pairs among own anchors are symmetric, so only the tiles on and above the diagonal are
    visited, and each serves its rows and its columns.
    """

    @staticmethod
    def forward(ctx: Any, anchors: Tensor, others: Tensor, tiling: _Tiling) -> Tensor:
        result = anchors.new_full((len(anchors),), -torch.inf)
        own, kernel = tiling.own(anchors, result), tiling.kernel
        foreign = [*tiling.foreign(anchors), *tiling.tiles(others)]
        for i, (rows, sums) in enumerate(own):
            for j, (columns, column_sums) in enumerate(own[i:], i):
                logits = _tile(rows, columns, kernel, diagonal=i == j)[1]
                torch.logaddexp(sums, logits.logsumexp(1), out=sums)
                if j > i:
                    torch.logaddexp(column_sums, logits.logsumexp(0), out=column_sums)
            for (columns,) in foreign:
                logits = _tile(rows, columns, kernel)[1]
                torch.logaddexp(sums, logits.logsumexp(1), out=sums)
        result = tiling.split.gather(result[tiling.split.own])
        ctx.save_for_backward(anchors, others, result)
        ctx.tiling = tiling
        return result

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, upstream: Tensor) -> tuple[Tensor, None, None]:
        anchors, others, result = ctx.saved_tensors
        gradient, tiling = torch.zeros_like(anchors), ctx.tiling
        with torch.autocast(anchors.device.type, enabled=False):
            own = tiling.own(gradient, anchors, result, upstream)
            _add_from_own(own, tiling.kernel)
            _add_from_foreign(own, tiling.foreign(anchors, result, upstream), tiling.kernel)
            _add_from_foreign(own, tiling.tiles(others), tiling.kernel)
        return gradient, None, None


def _add_from_own(own: list[tuple[Tensor, ...]], kernel: Kernel) -> None:
    """Add to the own gradient what flows through the pairs among own anchors."""
    for i, (gradient, rows, sums, factors) in enumerate(own):
        for j, (column_gradient, columns, *column) in enumerate(own[i:], i):
            similarity, logits = _tile(rows, columns, kernel, diagonal=i == j)
            pull = _share(logits, sums[:, None], factors[:, None])
            pull += _share(logits, *column)
            pull *= kernel.slope(similarity)
            gradient.addmm_(pull, columns)
            if j > i:
                column_gradient.addmm_(pull.T, rows)


def _add_from_foreign(
    own: list[tuple[Tensor, ...]], foreign: list[tuple[Tensor, ...]], kernel: Kernel
) -> None:
    """Add to the own gradient what flows through pairs with rows that are not own anchors."""
    for gradient, rows, sums, factors in own:
        for columns, *column in foreign:
            similarity, logits = _tile(rows, columns, kernel)
            pull = _share(logits, sums[:, None], factors[:, None])
            if column:  # they are anchors too, and the own ones are terms of their sums
                pull += _share(logits, *column)
            gradient.addmm_(pull.mul_(kernel.slope(similarity)), columns)


def _tile(
    rows: Tensor, columns: Tensor, kernel: Kernel, *, diagonal: bool = False
) -> tuple[Tensor, Tensor]:
    """Similarities and logits of a tile; a sample is no term of its own sum.

    The diagonal by its stride, which compilers and transforms know better than ``fill_diagonal_``.
    """
    similarity = rows @ columns.T
    logits = kernel(similarity)
    if diagonal:
        logits.view(-1)[:: len(columns) + 1].fill_(-torch.inf)
    return similarity, logits


def _share(logits: Tensor, log_sum: Tensor, factor: Tensor) -> Tensor:
    """Softmax times the upstream gradient."""
    return (logits - log_sum).exp_().mul_(factor)


def positives_elsewhere(
    anchors: Tensor,
    target: Tensor,
    others: Tensor,
    labels: Tensor,
    groups: tuple[Tensor, Tensor],
) -> tuple[Tensor, Tensor]:
    """Return Σ_p a_ip s_ip and Σ_p a_ip over the positives p of each anchor i in other groups.

    For class ids without any N×N matrix: the samples of a class and group stand side by side among
    the sorted ones, and their number, by which there are positives or none, is exact. For soft
    labels as a matrix (N, N + M), in which what does not count is exactly zero.

    Args:
        anchors: unit vectors (N, D).
        target: class ids (N,) or soft labels (N, K).
        others: unit vectors (M, D) without gradient, and no anchors.
        labels: their targets.
        groups: ids of the anchors (N,), of the others (M,).
    """
    keys, every, count = torch.cat([anchors, others]), torch.cat(groups).long(), len(anchors)
    members = torch.cat([target, labels]).detach()
    if members.ndim == 2:
        members = members.to(anchors.dtype)
        shares = members[:count] @ members.T * (every[:count, None] != every)
        return (anchors * (shares @ keys)).sum(1), shares.sum(1)
    # A class goes by its first place among the sorted ids, as for positives of all groups.
    classes = torch.searchsorted(members.sort().values, members)
    first, pairs = classes[:count] * MAX_GROUPS, classes * MAX_GROUPS + every
    ranked, order = pairs.sort()
    wide = torch.float32 if anchors.device.type == "mps" else torch.float64
    sums = torch.cat([torch.zeros_like(keys[:1]), keys[order]]).to(wide).cumsum(0)
    start, end = (torch.searchsorted(ranked, ids) for ids in (first, first + MAX_GROUPS))
    own = pairs[:count]
    own_start, own_end = (torch.searchsorted(ranked, own, right=side) for side in (False, True))
    # What of the class comes before the own group, and what behind it.
    elsewhere = (sums[own_start] - sums[start]) + (sums[end] - sums[own_end])
    total = (own_start - start) + (end - own_end)
    return (anchors * elsewhere.to(anchors.dtype)).sum(1), total.to(anchors.dtype)


def soft_positives(
    anchors: Tensor, target: Tensor, others: Tensor, labels: Tensor
) -> tuple[Tensor, Tensor]:
    """Return the same sums over all p ≠ i, for soft labels, a_ip = y_i·y_p.

    In float64: an anchor's own share may be most of the sum.
    """
    target = target.detach()
    wide = torch.float32 if anchors.device.type == "mps" else torch.float64
    target, labels, precise = target.to(wide), labels.to(wide), anchors.to(wide)
    sums = target.T @ precise + labels.T @ others.to(wide)
    total = (target * (target.sum(0) + labels.sum(0) - target)).sum(1)
    own = target.square().sum(1) * precise.square().sum(1)
    agreement = (precise * (target @ sums)).sum(1) - own
    return agreement.to(anchors.dtype), total.to(anchors.dtype)
