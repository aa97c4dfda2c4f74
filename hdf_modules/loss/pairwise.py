"""Log-sum-exp over all pairs of a batch, at once or tile by tile in linear memory."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from hdf_modules.errors import HDFError


@dataclass(frozen=True)
class Kernel:
    """Log of the weighted exponential, s/τ − (s − η)²/2η²: a parabola in the cosine s."""

    temperature: float
    eta: float

    def __post_init__(self) -> None:
        for name in ("temperature", "eta"):
            value = getattr(self, name)
            if not 0 < value < math.inf:
                raise HDFError(name, "a finite number > 0", value)

    def __call__(self, similarity: Tensor) -> Tensor:
        """Log weight at cosine s."""
        return (similarity * -self._square).add_(self._linear).mul_(similarity).sub_(0.5)

    def slope(self, similarity: Tensor) -> Tensor:
        """Derivative in s."""
        return (similarity * (-2 * self._square)).add_(self._linear)

    @property
    def _linear(self) -> float:
        return 1 / self.temperature + 1 / self.eta

    @property
    def _square(self) -> float:
        return 1 / (2 * self.eta**2)


@dataclass(frozen=True)
class Split:
    """Which anchors are this process's own, and how the processes tell each other about theirs.

    Attributes:
        own: rows of the anchors.
        gather: (value for each own anchor) → (value for each anchor), without gradient.
    """

    own: slice
    gather: Callable[[Tensor], Tensor]


def log_denominators(
    anchors: Tensor,
    others: Tensor,
    kernel: Kernel,
    block_size: int | None = None,
    split: Split | None = None,
) -> Tensor:
    """Return log Σ_{a≠i} exp kernel(s_ia) for each anchor i.

    Args:
        anchors: unit vectors (N, D); each is a term of every other's sum.
        others: unit vectors (M, D), terms only, without gradient; N + M ≥ 2.
        kernel: log weight of a similarity.
        block_size: side of the tiles, or ``None`` for the N×(N+M) matrix.
        split: visit the pairs of the own anchors alone. Only these receive a gradient, but all
            of theirs: as anchors, and as terms of every anchor's sum.
    """
    if block_size is not None or split is not None:
        whole = Split(slice(0, len(anchors)), lambda own: own)
        side = block_size or max(len(anchors), len(others))
        return _Blockwise.apply(anchors, others, _Tiling(kernel, side, split or whole))
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


class _Blockwise(torch.autograd.Function):
    """The same, visiting tiles; the backward pass computes each tile again.

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
    """Similarities and logits of a tile; a sample is no term of its own sum."""
    similarity = rows @ columns.T
    logits = kernel(similarity)
    if diagonal:
        logits.diagonal().fill_(-torch.inf)
    return similarity, logits


def _share(logits: Tensor, log_sum: Tensor, factor: Tensor) -> Tensor:
    """Softmax times the upstream gradient."""
    return (logits - log_sum).exp_().mul_(factor)
