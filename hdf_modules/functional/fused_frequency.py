"""The frequency branch with its gradient written out: the fast path beside ``frequency``.

Everything lies frequency first, (n², N) with N = batch·height·width, so that sums over frequencies
and convolutions are matrix products over the whole batch.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from hdf_modules.functional.frequency import EPS, KERNEL_SIZE, FrequencyWeights, is_constant
from hdf_modules.functional.planes import (
    Grid,
    convolve,
    convolve_backward,
    spectrum,
    spectrum_backward,
)


class Kept(NamedTuple):
    """Intermediate values of :func:`frequency_gate`, names as in ``frequency``.

    Attributes:
        spectrum: d, (n², batch, positions).
        level: mean_hw d, (n², batch, 1), or None without perturbation.
        deviation: ‖d − mean_hw d‖₂, (n², batch, 1), or None without perturbation.
        mixed: d', (n², N).
        average: mean of d' over the frequencies, (1, N).
        spread: standard deviation s over the frequencies, (1, N).
        slope: 2κ/(s + ε), (1, N).
        squashed: σ(slope · d').
        layers: input of each read-out convolution.
        gate: f, (1, N).
    """

    spectrum: Tensor
    level: Tensor | None
    deviation: Tensor | None
    mixed: Tensor
    average: Tensor
    spread: Tensor
    slope: Tensor
    squashed: Tensor
    layers: list[Tensor]
    gate: Tensor


def frequency_gate(
    total: Tensor, weights: FrequencyWeights, size: int, *, keep: bool = False
) -> Kept:
    """Compute f, and with ``keep`` what its gradient needs.

    Arguments as for ``frequency.frequency_gate``. Fresh memory costs more than arithmetic here, so
    without ``keep`` every step writes over the one before, and only ``gate`` is of use.
    """
    w, batch, count = weights, len(total), size * size
    d = spectrum(total.reshape(1, -1), Grid.of(total, size)).view(count, batch, -1)
    scratch, level, deviation = torch.empty_like(d), None, None
    clean = 0.5 * (w.clean_weight + w.perturbed_weight)
    if w.offset is not None and w.spread is not None:
        level = d.mean(-1, keepdim=True)
        torch.sub(d, level, out=scratch)
        deviation = torch.linalg.vector_norm(scratch, dim=-1, keepdim=True)
        deviation.masked_fill_(is_constant(deviation, level, total), 0)
        torch.sign(d, out=scratch)
        amount = (_column(w.offset) + _column(w.spread) * deviation) * (0.5 * w.perturbed_weight)
        mixed = torch.mul(d, clean, out=None if keep else d).addcmul_(scratch, amount)
    else:
        mixed = torch.mul(d, clean, out=None if keep else d)
    mixed, scratch = mixed.view(count, -1), scratch.view(count, -1)
    mean_of = d.new_full((1, count), 1 / count)
    average = mean_of @ mixed
    square = torch.sub(mixed, average, out=scratch).square_()
    spread = (mean_of @ square).mul_(count / (count - 1)).add_(EPS).sqrt_()
    slope = 2 * w.slope / (spread + EPS)
    squashed = torch.mul(mixed, slope, out=scratch).sigmoid_()
    fitted = torch.addcmul(
        (w.shift - w.scale)[:, None], squashed, 2 * w.scale[:, None], out=None if keep else mixed
    )
    layers, grid = [fitted], Grid.of(total, KERNEL_SIZE)
    for kernel in w.readout[:-1]:
        layers.append(convolve(layers[-1], kernel, grid).relu_())
    gate = convolve(layers[-1], w.readout[-1], grid).sigmoid_()
    return Kept(d, level, deviation, mixed, average, spread, slope, squashed, layers, gate)


def frequency_gate_backward(
    grad: Tensor, kept: Kept, weights: FrequencyWeights, size: int
) -> tuple[Tensor, FrequencyWeights]:
    """Gradients of f with respect to m, (batch, height, width), and to the weights.

    Args:
        grad: with respect to f, (batch, height, width).
        kept: what :func:`frequency_gate` returned.
        weights: the learned weights.
        size: n, side of the DCT's neighbourhood.
    """
    grid = Grid.of(grad, KERNEL_SIZE)
    upstream = torch.ops.aten.sigmoid_backward(grad.reshape(1, -1), kept.gate)
    kernels: list[Tensor] = []
    for i in reversed(range(len(kept.layers))):
        if kernels:
            upstream.masked_fill_(kept.layers[i + 1] == 0, 0)
        upstream, kernel = convolve_backward(upstream, kept.layers[i], weights.readout[i], grid)
        kernels.insert(0, kernel)
    mixed, slope, scale, shift = _dynamic_tanh_backward(upstream, kept, weights)
    d, clean, perturbed, offset, spread = _perturb_backward(mixed, kept, weights)
    image = spectrum_backward(d, Grid.of(grad, size)).view_as(grad)
    return image, FrequencyWeights(
        clean, perturbed, offset, spread, slope, scale, shift, tuple(kernels)
    )


def _dynamic_tanh_backward(
    grad: Tensor, kept: Kept, weights: FrequencyWeights
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Gradients with respect to d', κ, γ_f and β_f; ``grad`` and ``kept.squashed`` are consumed."""
    shift, scratch = grad.sum(1), kept.layers[0]
    scale = torch.mul(grad, kept.squashed, out=scratch).sum(1).mul_(2).sub_(shift)
    grad.mul_(2 * weights.scale[:, None])
    grad = torch.ops.aten.sigmoid_backward.grad_input(grad, kept.squashed, grad_input=grad)
    by_slope = torch.mul(grad, kept.mixed, out=scratch).sum(0, keepdim=True)
    below = kept.spread + EPS
    slope = (by_slope / below).sum() * 2
    # d slope/d s = −slope/(s + ε) and d s/d d' = (d' − average)/((n² − 1) s)
    rate = by_slope * kept.slope / (below * kept.spread * (1 - len(grad)))
    grad.mul_(kept.slope).addcmul_(kept.mixed, rate).sub_(rate * kept.average)
    return grad, slope, scale, shift


def _perturb_backward(
    grad: Tensor, kept: Kept, weights: FrequencyWeights
) -> tuple[Tensor, Tensor, Tensor, Tensor | None, Tensor | None]:
    """Gradients with respect to d, α_d, β_d, the offset and the spread; ``grad`` is consumed."""
    w, d = weights, kept.spectrum
    grad = grad.view_as(d)
    clean = 0.5 * torch.dot(grad.flatten(), d.flatten())
    if w.offset is None or w.spread is None or kept.deviation is None or kept.level is None:
        return grad.mul_(0.5 * (w.clean_weight + w.perturbed_weight)), clean, clean, None, None
    amount = _column(w.offset) + _column(w.spread) * kept.deviation
    sign = torch.sign(d, out=kept.squashed.view_as(d))
    by_amount = sign.mul_(grad).sum(-1, keepdim=True)
    perturbed = clean + 0.5 * (by_amount * amount).sum()
    by_amount = by_amount * (0.5 * w.perturbed_weight)
    by_deviation = by_amount * _column(w.spread) / kept.deviation
    by_deviation.masked_fill_(kept.deviation == 0, 0)
    grad.mul_(0.5 * (w.clean_weight + w.perturbed_weight))
    grad.addcmul_(d, by_deviation).sub_(by_deviation * kept.level)
    spread = (by_amount * kept.deviation).sum((1, 2))
    return grad, clean, perturbed, by_amount.sum((1, 2)), spread


def _column(values: Tensor) -> Tensor:
    """Lay values per frequency out along (frequency, batch, position)."""
    return values[:, None, None]
