"""Reading tensors that no layout describes: bags of a clip, and regions of a token grid.

Functions at module level, so that a model that uses them can be pickled.
"""

from __future__ import annotations

import torch
from einops import rearrange
from torch import Tensor

_BAGS = "(b bag) c t h w -> b (bag t) c h w"
_REGIONS = "(b nt nh nw) (t h w) c -> b (nt t) (nh h) (nw w) c"


def join_bags(x: Tensor, *, bags: int) -> Tensor:
    """Return bags of consecutive frames, (b bag) c t h w, as clips b t c h w."""
    return rearrange(x, _BAGS, bag=bags)


def split_bags(x: Tensor, gated: Tensor, *, bags: int) -> Tensor:
    """Undo :func:`join_bags`."""
    return rearrange(gated, _inverse(_BAGS), bag=bags)


def join_regions(x: Tensor, *, regions: tuple[int, int, int], size: tuple[int, int, int]) -> Tensor:
    """Return regions of tokens, each behind one messenger token, as clips b t h w c.

    Args:
        x: (batch · regions, 1 + tokens of a region, channels).
        regions: how many along time, height and width.
        size: tokens of a region along time, height and width.
    """
    return rearrange(x[:, 1:], _REGIONS, **_axes(regions, size))


def split_regions(
    x: Tensor, gated: Tensor, *, regions: tuple[int, int, int], size: tuple[int, int, int]
) -> Tensor:
    """Undo :func:`join_regions`; messenger tokens come from ``x``."""
    tokens = rearrange(gated, _inverse(_REGIONS), **_axes(regions, size))
    return torch.cat((x[:, :1], tokens), dim=1)


def _axes(regions: tuple[int, int, int], size: tuple[int, int, int]) -> dict[str, int]:
    return dict(zip(("nt", "nh", "nw", "t", "h", "w"), (*regions, *size), strict=True))


def _inverse(pattern: str) -> str:
    return " -> ".join(reversed(pattern.split(" -> ")))
