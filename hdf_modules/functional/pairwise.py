"""Log-sum-exp over all pairs of a batch, at once or tile by tile in linear memory."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable


@dataclass(frozen=True)
class Kernel:
    """Log of the weighted exponential, s/τ − (s − η)²/2η²: a parabola in the cosine s."""

    temperature: float
    eta: float

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


def log_denominators(
    anchors: Tensor, others: Tensor, kernel: Kernel, block_size: int | None
) -> Tensor:
    """Return log Σ_{a≠i} exp kernel(s_ia) for each anchor i.

    Args:
        anchors: unit vectors (N, D); each is a term of every other's sum.
        others: unit vectors (M, D), terms only, without gradient; N + M ≥ 2.
        kernel: log weight of a similarity.
        block_size: side of the tiles, or ``None`` for the N×(N+M) matrix.
    """
    if block_size is not None:
        return _Blockwise.apply(anchors, others, kernel, block_size)
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


class _Blockwise(torch.autograd.Function):
    """The same, visiting tiles; the backward pass computes each tile again.

    The pairs among the anchors are symmetric, so only the tiles on and above the diagonal are
    visited, and each serves its rows and its columns.
    """

    @staticmethod
    def forward(ctx: Any, anchors: Tensor, others: Tensor, kernel: Kernel, side: int) -> Tensor:
        result = anchors.new_full((len(anchors),), -torch.inf)
        blocks = anchors.split(side)
        sums = result.split(side)  # views: written in place
        for i, rows in enumerate(blocks):
            for j in range(i, len(blocks)):
                logits = _tile(rows, blocks[j], kernel, diagonal=i == j)[1]
                torch.logaddexp(sums[i], logits.logsumexp(1), out=sums[i])
                if j > i:
                    torch.logaddexp(sums[j], logits.logsumexp(0), out=sums[j])
            for columns in others.split(side) if len(others) else ():
                logits = kernel(rows @ columns.T)
                torch.logaddexp(sums[i], logits.logsumexp(1), out=sums[i])
        ctx.save_for_backward(anchors, others, result)
        ctx.kernel, ctx.side = kernel, side
        return result

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, upstream: Tensor) -> tuple[Tensor, None, None, None]:
        anchors, others, result = ctx.saved_tensors
        with torch.autocast(anchors.device.type, enabled=False):
            return _gradient(anchors, others, result, upstream, ctx), None, None, None


def _gradient(
    anchors: Tensor, others: Tensor, result: Tensor, upstream: Tensor, ctx: Any
) -> Tensor:
    gradient = torch.zeros_like(anchors)
    blocks, gradients = anchors.split(ctx.side), gradient.split(ctx.side)
    sums, factors = result.split(ctx.side), upstream.split(ctx.side)
    for i, rows in enumerate(blocks):
        for j in range(i, len(blocks)):
            similarity, logits = _tile(rows, blocks[j], ctx.kernel, diagonal=i == j)
            pull = _share(logits, sums[i][:, None], factors[i][:, None])
            pull += _share(logits, sums[j], factors[j])
            pull *= ctx.kernel.slope(similarity)
            gradients[i].addmm_(pull, blocks[j])
            if j > i:
                gradients[j].addmm_(pull.T, rows)
        for columns in others.split(ctx.side) if len(others) else ():
            similarity = rows @ columns.T
            pull = _share(ctx.kernel(similarity), sums[i][:, None], factors[i][:, None])
            gradients[i].addmm_(pull.mul_(ctx.kernel.slope(similarity)), columns)
    return gradient


def _tile(
    rows: Tensor, columns: Tensor, kernel: Kernel, *, diagonal: bool
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
