"""Dense optical flow between two pictures, and what lies between them: a motion, interpolated.

Lucas and Kanade's equations (1981) from coarse to fine, in windows that shrink with the level; the
flow is smoothed after each step, as skin moves. Torch alone, many pictures at once.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor

LEVELS, STEPS = 3, 12
# In pixels of a level: of the windows that vote for a motion, and of the motion itself.
WINDOW, SMOOTH = 6.0, 3.0
# Squared gradients (of 0..1) below this are no structure: the flow there is its surroundings'.
_NOISE = 1e-4


def flow(
    first: Tensor, second: Tensor, done: Callable[[float], None] = lambda share: None
) -> Tensor:
    """Return u with ``first(p) ≈ second(p + u(p))``.

    Args:
        first: pictures (N, 3, H, W) in 0..1.
        second: as many.
        done: told after each step of the share of the work that it was.

    Returns:
        (N, 2, H, W), x and y in pixels.
    """
    found = first.new_zeros(len(first), 2, 1, 1)
    whole = STEPS * sum(4.0**-level for level in range(LEVELS))  # in steps of the finest level
    for level in reversed(range(LEVELS)):
        a, b = (_structure(_smaller(picture, 2**level)) for picture in (first, second))
        found = 2 * F.interpolate(found, a.shape[-2:], mode="bilinear")
        for _ in range(STEPS):
            found = blur(found + _step(a, warp(b, found)), SMOOTH)
            done(4.0**-level / whole)
    return found


def _step(a: Tensor, b: Tensor) -> Tensor:
    """Solve the 2×2 equations of every window for what moves ``b`` onto ``a``."""
    x, y = _slope(b, 3), _slope(b, 2)
    rest = (a - b).clamp(-0.2, 0.2)
    sums = [(p * q).sum(1, keepdim=True) for p, q in ((x, x), (x, y), (y, y), (x, rest), (y, rest))]
    xx, xy, yy, xr, yr = blur(torch.cat(sums, 1), WINDOW).split(1, 1)
    xx, yy = xx + _NOISE, yy + _NOISE
    moved = torch.cat([yy * xr - xy * yr, xx * yr - xy * xr], 1) / (xx * yy - xy * xy)
    return moved.clamp(-1, 1)


def _slope(picture: Tensor, axis: int) -> Tensor:
    return torch.gradient(picture, dim=axis)[0]


def _smaller(picture: Tensor, factor: int) -> Tensor:
    return F.avg_pool2d(picture, factor) if factor > 1 else picture


def _structure(picture: Tensor) -> Tensor:
    """Brightness less its surroundings': a smile changes the shade of a cheek."""
    grey = blur(picture.mean(1, keepdim=True), 0.8)
    return grey - blur(grey, 8.0)


def warp(picture: Tensor, motion: Tensor) -> Tensor:
    """Return ``picture(p + motion(p))``, the border repeated beyond it."""
    height, width = picture.shape[-2:]
    y, x = torch.meshgrid(torch.arange(height), torch.arange(width), indexing="ij")
    at = torch.stack([x + motion[:, 0], y + motion[:, 1]], -1).to(picture)
    at = (at + 0.5) * 2 / picture.new_tensor([width, height]) - 1
    return F.grid_sample(picture, at, padding_mode="border", align_corners=False)


def blur(picture: Tensor, sigma: float) -> Tensor:
    """Gaussian blur, the border repeated."""
    reach = min(round(3 * sigma), min(picture.shape[-2:]) - 1)
    at = torch.arange(-reach, reach + 1, dtype=picture.dtype)
    kernel = torch.exp(-at.square() / (2 * sigma**2))
    kernel, channels = kernel / kernel.sum(), picture.shape[1]
    row = kernel.expand(channels, 1, 1, -1)
    picture = F.pad(picture, (reach,) * 4, mode="replicate")
    picture = F.conv2d(picture, row, groups=channels)
    return F.conv2d(picture, row.transpose(2, 3), groups=channels)
