"""Convolutions and local spectra of single maps, for processors: one matrix product each.

Convolution libraries are slow where one side has a single channel. Here all maps of a batch lie in
one flat row with zeros between them, so that moving a map by a row or a column is moving the row by
a constant, and a convolution is a matrix product and two sums over shifted views.

Maps are (maps, batch·height·width) throughout: one product serves the whole batch.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from hdf_modules.functional.constants import constant
from hdf_modules.functional.frequency import dct_basis


class Grid(NamedTuple):
    """A batch of maps, and the size of the square neighbourhood that is looked at."""

    batch: int
    height: int
    width: int
    size: int

    @classmethod
    def of(cls, maps: Tensor, size: int) -> Grid:
        """Grid of maps (batch, height, width)."""
        batch, height, width = maps.shape
        return cls(batch, height, width, size)

    @property
    def half(self) -> int:
        """Reach of the neighbourhood."""
        return self.size // 2

    @property
    def pitch(self) -> int:
        """Distance of two rows: one margin serves the row before it and the row behind it."""
        return self.width + self.half

    @property
    def span(self) -> int:
        """Length of all maps with a margin behind each row and each map."""
        return self.batch * (self.height + self.half) * self.pitch

    @property
    def length(self) -> int:
        """Length of the flat row, with the margins before the first and behind the last map."""
        return self.span + 2 * self.half * (self.pitch + 1)

    @property
    def strides(self) -> tuple[int, int, int]:
        """Strides of (batch, height, width) in the flat row."""
        return (self.height + self.half) * self.pitch, self.pitch, 1

    def embed(self, maps: Tensor) -> Tensor:
        """Lay maps (maps, batch·height·width) out with margins: (maps, length)."""
        flat = maps.new_zeros(maps.shape[0], self.length)
        shape, strides = (len(maps), *self[:3]), (self.length, *self.strides)
        inside = flat.as_strided(shape, strides, self.half * (self.pitch + 1))
        inside.copy_(maps.view(shape))
        return flat

    def crop(self, flat: Tensor) -> Tensor:
        """Drop the margins: (maps, span) to (maps, batch·height·width)."""
        inside = flat.as_strided((len(flat), *self[:3]), (flat.shape[-1], *self.strides))
        return inside.reshape(len(flat), -1)


def windows(maps: Tensor, grid: Grid) -> Tensor:
    """Return the neighbourhood of each position: (size·size·maps, batch·height·width)."""
    n, flat = grid.size, grid.embed(maps)
    shape = (n, n, len(maps), *grid[:3])
    strides = (grid.pitch, 1, grid.length, *grid.strides)
    return flat.as_strided(shape, strides).reshape(n * n * len(maps), -1)


def convolve(maps: Tensor, kernel: Tensor, grid: Grid) -> Tensor:
    """Zero-padded correlation: (in, N) and (out, in, size, size) to (out, N), N all positions."""
    out, n = len(kernel), grid.size
    taps = kernel.permute(3, 2, 0, 1).reshape(n * n * out, -1) @ maps
    rows = _shifted_sum(grid.embed(taps).view(n, n * out, -1), 1)
    return grid.crop(_shifted_sum(rows.view(n, out, -1), grid.pitch))


def convolve_backward(
    grad: Tensor, maps: Tensor, kernel: Tensor, grid: Grid
) -> tuple[Tensor, Tensor]:
    """Gradients of :func:`convolve` with respect to the maps and to the kernel."""
    out, n = len(kernel), grid.size
    around = windows(grad, grid)
    flipped = kernel.flip(2, 3).permute(2, 3, 0, 1).reshape(n * n * out, -1)
    grad_kernel = (around @ maps.mT).view(n, n, out, -1).permute(2, 3, 0, 1).flip(2, 3)
    return flipped.mT @ around, grad_kernel


def spectrum(image: Tensor, grid: Grid) -> Tensor:
    """Local spectrum of an image (1, N): (size², N), as ``frequency.local_spectrum`` orders it."""
    n, basis = grid.size, constant(dct_basis, grid.size, like=image)
    reach = grid.span + 2 * grid.half
    rows = basis @ grid.embed(image).as_strided((n, reach), (grid.pitch, 1)).contiguous()
    shape, strides = (n, n, *grid[:3]), (1, reach, *grid.strides)
    return (basis @ rows.as_strided(shape, strides).reshape(n, -1)).view(n * n, -1)


def spectrum_backward(grad: Tensor, grid: Grid) -> Tensor:
    """Gradient of :func:`spectrum` with respect to the image, (1, N)."""
    n, basis = grid.size, constant(dct_basis, grid.size, like=grad)
    flipped = basis.flip(1).mT
    columns = (flipped @ grad.view(n, -1)).view(n * n, -1)
    rows = flipped @ _shifted_sum(grid.embed(columns).view(n, n, -1), 1)
    return grid.crop(_shifted_sum(rows.view(n, 1, -1), grid.pitch))


def _shifted_sum(maps: Tensor, step: int) -> Tensor:
    """Sum maps (taps, rows, length), tap i moved by i·step: (rows, length − (taps − 1)·step)."""
    taps, rows, length = maps.shape
    kept = length - (taps - 1) * step
    strides = (rows * length + step, length, 1)
    return torch.sum(maps.as_strided((taps, rows, kept), strides), 0)
