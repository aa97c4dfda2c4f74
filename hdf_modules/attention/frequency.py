"""The frequency branch: which positions matter, from a robust local spectrum of the clip."""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from hdf_modules.attention.constants import constant

KERNEL_SIZE = 7  # of the read-out convolution
SPREAD_RATE = 0.05  # λ_w, the share of a frequency's spread in its perturbation
EPS = 1e-6  # in the standard deviation over the frequencies, and beside it


class FrequencyWeights(NamedTuple):
    """Learned weights of the frequency branch, for n×n frequencies.

    Attributes:
        clean_weight: α_d, weight of the clean spectrum, one number.
        perturbed_weight: β_d, weight of the perturbed spectrum, one number.
        noise: ν, perturbation per frequency, (n²), or None without perturbation.
        noise_scale: a, its factor, (n²), or None for 1.
        spread_scale: b, perturbation per λ_w of spread, (n²), or None without perturbation.
        slope: κ, one number.
        scale: γ_f, (n²).
        shift: β_f, (n²).
        readout: kernels of the read-out convolutions, one or two.
    """

    clean_weight: Tensor
    perturbed_weight: Tensor
    noise: Tensor | None
    noise_scale: Tensor | None
    spread_scale: Tensor | None
    slope: Tensor
    scale: Tensor
    shift: Tensor
    readout: tuple[Tensor, ...]


def dct_basis(size: int, dtype: torch.dtype, device: torch.device) -> Tensor:
    """Orthonormal DCT-II basis, (n, n): c_u(i) = s_u cos(π u (i+½)/n), s_0 = √(1/n), else √(2/n).

    The angle is reduced in integers and the zeros are exact, so that an image with one row or
    column has exactly nothing in the odd frequencies (the perturbation takes their sign).

    Example:
        >>> basis = dct_basis(7, torch.float64, torch.device("cpu"))
        >>> torch.allclose(basis @ basis.T, torch.eye(7, dtype=torch.float64))
        True
    """
    exact = torch.float32 if device.type == "mps" else torch.float64
    index = torch.arange(size, device=device)
    turn = index[:, None] * (2 * index + 1) % (4 * size)
    wave = torch.cos(turn.to(exact) * (math.pi / (2 * size)))
    wave = torch.where(turn % (2 * size) == size, 0.0, wave)
    wave[0] *= math.sqrt(0.5)
    return (wave * math.sqrt(2 / size)).to(dtype)


def local_spectrum(image: Tensor, size: int) -> Tensor:
    """DCT-II coefficients of the n×n neighbourhood of every position, zero-padded.

    Separable: along the rows, then along the columns, each a product with the n×n basis.

    Args:
        image: (batch, height, width).
        size: n, odd.

    Returns:
        (batch, n², height, width); frequency v·n + u has u along the height and v along the width.
    """
    height, width = image.shape[-2:]
    basis = constant(dct_basis, size, like=image)
    image = F.pad(image, (size // 2,) * 4)
    rows = torch.stack([image[:, i : i + height] for i in range(size)], 1)
    rows = multiply(basis, rows.flatten(2)).unflatten(-1, (height, -1))
    columns = torch.stack([rows[..., j : j + width] for j in range(size)], 1)
    return multiply(basis, columns.flatten(2)).view(-1, size * size, height, width)


def multiply(matrix: Tensor, maps: Tensor) -> Tensor:
    """Return matrix @ maps for maps (batch, in, positions), which are not copied to fold them."""
    return torch.bmm(matrix.expand(maps.shape[0], -1, -1), maps)


def perturb(spectrum: Tensor, weights: FrequencyWeights) -> Tensor:
    """Mix the clean and the perturbed spectrum: d' = ½(α_d d + β_d adv).

    adv = d + sign(d) ⊙ (ν·a + λ_w·b·‖d − mean_hw d‖₂), the norm over the positions.
    """
    w = weights
    clean = 0.5 * (w.clean_weight + w.perturbed_weight)
    if w.noise is None or w.spread_scale is None:
        return clean * spectrum
    level = spectrum.mean((-2, -1), keepdim=True)
    deviation = torch.linalg.vector_norm(spectrum - level, dim=(-2, -1))
    deviation = deviation.masked_fill(is_constant(deviation, level[..., 0, 0], spectrum), 0)
    offset = w.noise if w.noise_scale is None else w.noise * w.noise_scale
    size = 0.5 * w.perturbed_weight * (offset + SPREAD_RATE * w.spread_scale * deviation)
    return clean * spectrum + spectrum.sign() * size[..., None, None]


def is_constant(deviation: Tensor, level: Tensor, spectrum: Tensor) -> Tensor:
    """Whether a map deviates from its mean by rounding alone, which has no direction.

    A map no larger than half a window has one value at the lowest frequency everywhere.
    """
    positions = spectrum.shape[-1] * spectrum.shape[-2]
    return deviation <= 16 * torch.finfo(spectrum.dtype).eps * math.sqrt(positions) * level.abs()


def dynamic_tanh(spectrum: Tensor, weights: FrequencyWeights) -> Tensor:
    """Adaptive dynamic tanh: tanh(κ/(s+ε) d) ⊙ γ_f + β_f.

    s = √(var + ε), the unbiased variance over the frequencies of a position. Written as
    tanh(z) = 2σ(2z) − 1, because a CPU's sigmoid is several times faster.
    """
    w = weights
    flat = spectrum.flatten(2)
    rest = flat - flat.mean(1, keepdim=True)
    variance = rest.square().sum(1, keepdim=True) / (flat.shape[1] - 1)
    slope = 2 * w.slope / (torch.sqrt(variance + EPS) + EPS)
    fitted = torch.sigmoid(slope * flat) * (2 * w.scale[:, None]) + (w.shift - w.scale)[:, None]
    return fitted.view_as(spectrum)


def convolve(maps: Tensor, kernel: Tensor) -> Tensor:
    """Zero-padded ("same") convolution with few output channels.

    One matrix product gives every tap's contribution, which is then shifted into place: CPU
    convolutions are slow with one output channel.

    Args:
        maps: (batch, in, height, width).
        kernel: (out, in, k, k), k odd.
    """
    out, _, size, _ = kernel.shape
    height, width = maps.shape[-2:]
    matrix = kernel.permute(0, 2, 3, 1).reshape(out * size * size, -1)
    taps = multiply(matrix, maps.flatten(2))
    taps = F.pad(taps.unflatten(-1, (height, width)), (size // 2,) * 4)
    taps = taps.unflatten(1, (out, size, size))
    rows = taps[:, :, 0, :, :height]
    for i in range(1, size):
        rows = rows + taps[:, :, i, :, i : i + height]
    result = rows[:, :, 0, :, :width]
    for j in range(1, size):
        result = result + rows[:, :, j, :, j : j + width]
    return result


def frequency_gate(total: Tensor, weights: FrequencyWeights, size: int) -> Tensor:
    """Compute f, the gate of each position.

    Frequency branch of distributional attention (Cui et al. 2025, arXiv:2507.15765, Fig. 2):
    local spectrum → perturbation → dynamic tanh → read-out convolution → sigmoid. The released code
    repeats the DCT filters over the channels; here the spectrum is that of the channel sum, which
    is the same numbers.

    Args:
        total: m, sum over channels of the average over time, (batch, height, width).
        weights: the learned weights.
        size: n, side of the DCT's neighbourhood.

    Returns:
        f in (0, 1), (batch, height, width).
    """
    maps = dynamic_tanh(perturb(local_spectrum(total, size), weights), weights)
    first, *second = weights.readout
    maps = convolve(maps, first)
    for kernel in second:
        maps = convolve(torch.relu(maps), kernel)
    return torch.sigmoid(maps.squeeze(1))
