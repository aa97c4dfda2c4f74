"""Convolutions and local spectra of single maps, for processors: one matrix product each.

Convolution libraries are slow where one side has a single channel. Here every map lies in one flat
row with zeros between its lines, so that moving the map by a line or a column is moving the row by
a constant, and a convolution is a matrix product and two sums over shifted views.

Maps are (batch, maps, height·width). The batch comes first in every step, so that a sample stays
with the processor core that has it in its cache.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from hdf_modules.functional.constants import constant
from hdf_modules.functional.frequency import dct_basis


class Grid(NamedTuple):
    """The size of a map, and of the square neighbourhood that is looked at."""

    height: int
    width: int
    size: int

    @classmethod
    def of(cls, maps: Tensor, size: int) -> Grid:
        """Grid of maps (batch, height, width)."""
        return cls(maps.shape[1], maps.shape[2], size)

    @property
    def half(self) -> int:
        """Reach of the neighbourhood."""
        return self.size // 2

    @property
    def pitch(self) -> int:
        """Distance of two lines: one margin serves the line before it and the line behind it."""
        return self.width + self.half

    @property
    def reach(self) -> int:
        """Length of a map's lines with the margins beside them."""
        return self.height * self.pitch + 2 * self.half

    @property
    def length(self) -> int:
        """Length of the flat row, with the margins above the first and below the last line."""
        return self.reach + 2 * self.half * self.pitch

    def embed(self, maps: Tensor) -> Tensor:
        """Lay maps (batch, maps, height·width) out with margins: (batch, maps, length)."""
        batch, count = maps.shape[:2]
        flat = maps.new_zeros(batch, count, self.length)
        inside = flat.as_strided(
            (batch, count, self.height, self.width),
            (count * self.length, self.length, self.pitch, 1),
            self.half * (self.pitch + 1),
        )
        inside.copy_(maps.view(inside.shape))
        return flat

    def crop(self, flat: Tensor) -> Tensor:
        """Drop the margins: (batch, maps, height·pitch) to (batch, maps, height·width)."""
        return flat.unflatten(-1, (self.height, self.pitch))[..., : self.width].flatten(-2)


def windows(maps: Tensor, grid: Grid) -> Tensor:
    """Return the neighbourhood of each position: (batch, size·size·maps, height·width)."""
    (batch, count, _), n = maps.shape, grid.size
    shape = (batch, n, n, count, grid.height, grid.width)
    strides = (count * grid.length, grid.pitch, 1, grid.length, grid.pitch, 1)
    return grid.embed(maps).as_strided(shape, strides).reshape(batch, n * n * count, -1)


def convolve(maps: Tensor, kernel: Tensor, grid: Grid) -> Tensor:
    """Zero-padded correlation with a kernel (out, in, size, size).

    Args:
        maps: (batch, in, height·width).
        kernel: (out, in, size, size).
        grid: of the maps and the kernel.

    Returns:
        (batch, out, height·width).
    """
    batch, out, n = len(maps), len(kernel), grid.size
    matrix = kernel.permute(3, 2, 0, 1).reshape(n * n * out, -1)
    taps = grid.embed(torch.bmm(matrix.expand(batch, -1, -1), maps))
    columns = _shifted_sum(taps.view(batch, n, n * out, -1), 1)
    return grid.crop(_shifted_sum(columns.view(batch, n, out, -1), grid.pitch))


def convolve_backward(
    grad: Tensor, maps: Tensor, kernel: Tensor, grid: Grid
) -> tuple[Tensor, Tensor]:
    """Gradients of :func:`convolve` with respect to the maps and to the kernel."""
    out, n, around = len(kernel), grid.size, windows(grad, grid)
    flipped = kernel.flip(2, 3).permute(1, 2, 3, 0).reshape(-1, n * n * out)
    grad_kernel = torch.bmm(around, maps.mT).sum(0).view(n, n, out, -1)
    grad_maps = torch.bmm(flipped.expand(len(maps), -1, -1), around)
    return grad_maps, grad_kernel.permute(2, 3, 0, 1).flip(2, 3)


def spectrum(image: Tensor, grid: Grid) -> Tensor:
    """Local spectrum of an image (batch, 1, height·width), like ``frequency.local_spectrum``.

    Returns:
        (batch, size², height·width).
    """
    batch, n = len(image), grid.size
    basis = constant(dct_basis, n, like=image).expand(batch, -1, -1)
    lines = grid.embed(image).as_strided((batch, n, grid.reach), (grid.length, grid.pitch, 1))
    rows = torch.bmm(basis, lines.contiguous())
    shape = (batch, n, n, grid.height, grid.width)
    columns = rows.as_strided(shape, (n * grid.reach, 1, grid.reach, grid.pitch, 1))
    return torch.bmm(basis, columns.reshape(batch, n, -1)).view(batch, n * n, -1)


def spectrum_backward(grad: Tensor, grid: Grid) -> Tensor:
    """Gradient of :func:`spectrum` with respect to the image."""
    batch, n = len(grad), grid.size
    flipped = constant(dct_basis, n, like=grad).flip(1).mT.expand(batch, -1, -1)
    columns = grid.embed(torch.bmm(flipped, grad.view(batch, n, -1)).view(batch, n * n, -1))
    rows = torch.bmm(flipped, _shifted_sum(columns.view(batch, n, n, -1), 1))
    return grid.crop(_shifted_sum(rows.view(batch, n, 1, -1), grid.pitch))


def _shifted_sum(maps: Tensor, step: int) -> Tensor:
    """Sum maps (batch, taps, rows, length) over the taps, tap i moved by i·step."""
    batch, taps, rows, length = maps.shape
    shape = (batch, taps, rows, length - (taps - 1) * step)
    strides = (taps * rows * length, rows * length + step, length, 1)
    return maps.as_strided(shape, strides).sum(1)
