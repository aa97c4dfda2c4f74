"""Tensors that depend on sizes alone."""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar

import torch
from torch import Tensor

MOST = 1024  # that are kept for later calls, where they are
may_keep = ContextVar("may_keep", default=True)


@contextmanager
def nothing_kept() -> Iterator[None]:
    """Keep no constant: for operators whose memory a compiler's graph uses again after the call."""
    before = may_keep.set(False)
    try:
        yield
    finally:
        may_keep.reset(before)


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


def channel_bins(
    channels: int, bins: int, dtype: torch.dtype, device: torch.device
) -> tuple[Tensor, Tensor]:
    """Return the channels of each bin, and the matrix that averages over them.

    Returns:
        Indices (bins, width), where a bin narrower than the widest repeats its last channel, and
        weights (channels, bins), columns of which sum to one.
    """
    index, channel = torch.arange(bins, device=device), torch.arange(channels, device=device)
    first = index * channels // bins
    end = ((index + 1) * channels + bins - 1) // bins
    width = max(-(-(i + 1) * channels // bins) - i * channels // bins for i in range(bins))
    members = (first[:, None] + torch.arange(width, device=device)).minimum(end[:, None] - 1)
    inside = (channel[:, None] >= first) & (channel[:, None] < end)
    return members, inside.to(dtype) / (end - first).to(dtype)
