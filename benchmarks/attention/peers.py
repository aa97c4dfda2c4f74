"""Modules that are put at the same places as ours, each with the layout that the place has."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor, nn

from benchmarks.attention.literal import LiteralAttention
from hdf_modules import DistributionalAttention
from hdf_modules.attention.layout import Layout


class InLayout(nn.Module):
    """A block that wants one arrangement of the axes, behind a stage that has another.

    Args:
        block: maps a tensor in ``arrangement`` to one of the same shape.
        arrangement: einops pattern; axes that are neighbours in both cost no copy.
        num_frames: T.
        layout: of the stage.
    """

    def __init__(self, block: nn.Module, arrangement: str, num_frames: int, layout: Layout) -> None:
        super().__init__()
        self.block, self.arrangement = block, arrangement
        self.num_frames, self.layout = num_frames, layout

    def forward(
        self, x: Tensor, num_frames: int | None = None, grid: tuple[int, int] | None = None
    ) -> Tensor:
        layout = self.layout
        sizes = layout.sizes(x, num_frames or self.num_frames, grid)
        before, after = layout.prefix_tokens, layout.suffix_tokens
        if not before + after:
            inner = rearrange(x, f"{layout.pattern} -> {self.arrangement}", **sizes)
            return rearrange(self.block(inner), f"{self.arrangement} -> {layout.pattern}", **sizes)
        axis = layout.token_axis or 0
        tokens = x.shape[axis] - before - after
        first, inner, last = x.split([before, tokens, after], axis)
        inner = rearrange(inner, f"{layout.pattern} -> {self.arrangement}", **sizes)
        inner = rearrange(self.block(inner), f"{self.arrangement} -> {layout.pattern}", **sizes)
        return torch.cat([first, inner, last], axis)


class NonLocal(nn.Module):
    """Embedded-Gaussian non-local block (Wang et al. 2018), keys pooled 2×2, half the channels."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.query = nn.Conv3d(channels, channels // 2, 1)
        self.key_value = nn.Conv3d(channels, 2 * (channels // 2), 1)
        self.out = nn.Conv3d(channels // 2, channels, 1)

    def forward(self, x: Tensor) -> Tensor:
        pooled = F.max_pool3d(x, (1, 2, 2), ceil_mode=True)
        query = self.query(x).flatten(2).mT
        key, value = self.key_value(pooled).flatten(2).mT.chunk(2, -1)
        mixed = F.scaled_dot_product_attention(query, key, value)
        return x + self.out(mixed.mT.unflatten(-1, x.shape[2:]))


class TemporalShift(nn.Module):
    """Temporal shift (Lin et al. 2019): an eighth of the channels from either neighbour."""

    def forward(self, x: Tensor) -> Tensor:
        eighth = max(1, x.shape[1] // 8)
        forth, back, stay = x.split([eighth, eighth, x.shape[1] - 2 * eighth], 1)
        forth = F.pad(forth[:, :, 1:], (0, 0, 0, 0, 0, 1))
        back = F.pad(back[:, :, :-1], (0, 0, 0, 0, 1, 0))
        return torch.cat([forth, back, stay], 1)


def _timm(name: str) -> Callable[[int], nn.Module]:
    def build(channels: int) -> nn.Module:
        from timm.layers import create_attn  # noqa: PLC0415

        return create_attn(name, channels)

    return build


_BLOCKS: dict[str, tuple[Callable[[int], nn.Module], str]] = {
    "literal": (LiteralAttention, "b t c h w"),
    "SE": (_timm("se"), "image"),
    "CBAM": (_timm("cbam"), "image"),
    "ECA": (_timm("eca"), "image"),
    "non-local": (NonLocal, "b c t h w"),
    "temporal shift": (lambda _: TemporalShift(), "b c t h w"),
}


def _build(name: str, channels: int, num_frames: int, layout: Layout) -> nn.Module:
    block, arrangement = _BLOCKS[name]
    if arrangement == "image":  # a clip as one high image where its frames are not folded
        arrangement = "(b t) c h w" if "(b t)" in layout.pattern else "b c (t h) w"
    return InLayout(block(channels), arrangement, num_frames, layout)


FACTORIES: dict[str, Callable[..., nn.Module]] = {
    "ours": DistributionalAttention,
    **{name: partial(_build, name) for name in _BLOCKS},
}
