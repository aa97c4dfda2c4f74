"""Where a tensor keeps batch, time, channels, height and width, as an einops-style pattern.

Everything the library does to a feature map is written for one view, ``b t c h w``; a layout turns
the user's tensor into that view without a copy, and turns a gate ``b t h w`` into something that
broadcasts against the user's tensor as it lies in memory.
"""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import SymInt, Tensor

from hdf_modules.errors import HDFError, at_least, former_keywords

_FOLDABLE = ({"b", "t"}, {"h", "w"}, {"t", "h", "w"})
_NO_PICTURE = (
    "view what is no picture any more, as behind an LSTM, with h = w = 1, in a Stage by unpack and "
    "pack"
)


def is_grid(value: Any) -> bool:
    """Whether ``value`` is a pair of positive integers."""
    pair = isinstance(value, Sequence) and len(value) == 2
    return pair and all(isinstance(side, int | SymInt) and side >= 1 for side in value)


def kind_of(x: Any) -> str:
    """Say what x is instead."""
    if not isinstance(x, Tensor):
        return type(x).__name__
    kind = "nested " if x.is_nested else f"{x.layout} " * (x.layout != torch.strided)
    return f"a {kind}tensor of {x.dtype}"


class Sizes(NamedTuple):
    """Lengths of the axes."""

    b: int
    t: int
    c: int
    h: int
    w: int


@dataclass(unsafe_hash=True, repr=False)  # not frozen, for torch 2.6 to compile it
class Layout:
    """A pattern over the axes b, t, c, h, w, and the tokens beside the h×w (or t×h×w) grid.

    Args:
        pattern: each of ``b t c h w`` once; parentheses fold axes into one, as in einops:
            ``"b c t h w"``, ``"(b t) c h w"``, ``"(b t) (h w) c"``, ``"b (t h w) c"``, ….
            The channels stand alone; ``b`` may be folded with ``t``, and ``h`` with ``w`` (and
            ``t``).
        prefix_tokens: tokens before the grid on the folded axis (class token, registers).
        suffix_tokens: tokens after it (prompts).
        grid: (height, width) of a folded grid; ``None`` means square.

    Raises:
        HDFError: for a pattern or a token count that cannot be used.

    Example:
        >>> layout = Layout("(b t) (h w) c", prefix_tokens=1)  # a class token, then 14×14 patches
        >>> layout.sizes(torch.ones(32, 197, 768), num_frames=16)
        {'b': 2, 't': 16, 'c': 768, 'h': 14, 'w': 14}
    """

    pattern: str
    prefix_tokens: int = 0
    suffix_tokens: int = 0
    grid: tuple[int, int] | None = None
    groups: tuple[tuple[str, ...], ...] = field(init=False, compare=False)
    """The axes of each tensor dimension: ``"(b t) c h w"`` is ((b, t), (c,), (h,), (w,))."""
    token_axis: int | None = field(init=False, compare=False)
    """The dimension that folds height and width, if there is one."""

    axes: tuple[str, ...] = field(init=False, compare=False)
    """The axes one by one, in the tensor's order."""
    places: tuple[int, ...] = field(init=False, compare=False)
    """Where batch, time, channels, height and width are among them."""
    has_extra_tokens: bool = field(init=False, compare=False)
    """Whether there are tokens beside the grid."""

    def __post_init__(self) -> None:
        parts = re.findall(r"\([^()]*\)|[^\s()]", str(self.pattern))
        groups = tuple(tuple(part.strip("()").split()) for part in parts)
        token_axis = next((i for i, group in enumerate(groups) if {"h", "w"} <= set(group)), None)
        # Plain attributes, because torch.compile cannot enter the lock of a cached_property.
        self.groups, self.token_axis = groups, token_axis
        self.axes = tuple(axis for group in groups for axis in group)
        self.places = tuple(self.axes.index(axis) for axis in "btchw" if axis in self.axes)
        self._check_pattern()
        self._check_tokens()
        self.has_extra_tokens = self.prefix_tokens + self.suffix_tokens > 0

    def __repr__(self) -> str:
        """Return the shortest call that makes it."""
        options = {n: getattr(self, n) for n in ("prefix_tokens", "suffix_tokens", "grid")}
        said = "".join(f", {name}={value}" for name, value in options.items() if value)
        return f"Layout({self.pattern!r}{said})"

    def _check_pattern(self) -> None:
        axes = "".join(self.axes)
        balanced = "".join(f"({''.join(g)})" if len(g) > 1 else g[0] for g in self.groups if g)
        folded = [set(group) for group in self.groups if len(group) > 1]
        if (
            sorted(axes) != sorted("btchw")
            or balanced != "".join(str(self.pattern).split())
            or any(group not in _FOLDABLE for group in folded)
        ):
            raise HDFError(
                "layout",
                "a pattern with each of b, t, c, h, w once, folding only b with t and h with w "
                "(and t), such as 'b c t h w', '(b t) c h w' or 'b (t h w) c'",
                repr(self.pattern),
                _NO_PICTURE if not {"h", "w"} & set(axes) else "",
            )

    def _check_tokens(self) -> None:
        for name in ("prefix_tokens", "suffix_tokens"):
            value = at_least(name, getattr(self, name), 0)
            if value and self.token_axis is None:
                expected = f"0 in a layout without a token axis, {self.pattern!r}"
                raise HDFError(name, expected, value)
        if self.grid is not None and not is_grid(self.grid):
            raise HDFError("grid", "(height, width), both >= 1", self.grid)

    def bind(self, x: Tensor, num_frames: int, grid: tuple[int, int] | None = None) -> BoundLayout:
        """Return the layout with the axis lengths of ``x``; arguments as for `sizes`."""
        key = self, x.shape, num_frames, None if grid is None else (grid[0], grid[1])
        if type(x) is not Tensor or torch.compiler.is_compiling() or torch._C._is_tracing():
            return _bound(*key)  # sizes may be symbols
        return _remembered(*key)

    def sizes(
        self, x: Tensor, num_frames: int, grid: tuple[int, int] | None = None
    ) -> dict[str, int]:
        """Return the length of each axis of ``x``.

        Args:
            x: a tensor in this layout.
            num_frames: T where time is folded and cannot be read from the tensor.
            grid: (height, width) of this call, before the layout's own.

        Raises:
            HDFError: if the shape does not fit the layout.
        """
        return self._sizes(x.shape, num_frames, grid)._asdict()

    def _sizes(self, shape: Sequence[int], num_frames: int, grid: tuple[int, int] | None) -> Sizes:
        if len(shape) != len(self.groups):
            raise HDFError(
                "x",
                f"{len(self.groups)} dimensions, layout {self.pattern!r}",
                f"shape {tuple(shape)}",
                _NO_PICTURE if len(shape) < 4 and self.token_axis is None else "",
            )
        found: dict[str, int] = {}
        for dim, group in enumerate(self.groups):
            length = shape[dim]
            if dim == self.token_axis:
                length -= self.prefix_tokens + self.suffix_tokens
                found |= self._split_tokens(length, "t" in group, num_frames, grid or self.grid)
            elif len(group) == 2:
                if length % num_frames:
                    raise HDFError(
                        "x",
                        f"a multiple of num_frames={num_frames} on the '({' '.join(group)})' axis",
                        f"{length} (shape {tuple(shape)})",
                        "pass whole clips, or set num_frames to the clip length at this layer",
                    )
                found |= {"b": length // num_frames, "t": num_frames}
            else:
                found[group[0]] = length
        if any(found[axis] < 1 for axis in "tchw"):
            raise HDFError(
                "x", "at least one frame, channel, row and column", f"shape {tuple(shape)}"
            )
        return Sizes(**found)

    def _split_tokens(
        self, length: int, has_time: bool, num_frames: int, grid: tuple[int, int] | None
    ) -> dict[str, int]:
        """Split a folded grid: time from a given grid, else a square grid from the time."""
        if grid is None:
            time = num_frames if has_time else 1
            side = math.isqrt(max(length, 0) // time)
            grid = (side, side)
        else:
            time = length // (grid[0] * grid[1]) if has_time else 1
        height, width = grid
        if length < 1 or time * height * width != length:
            frames = f"{num_frames} frames of " if has_time else ""
            raise HDFError(
                "x",
                f"{frames}{height}×{width} tokens besides {self.prefix_tokens} prefix and "
                f"{self.suffix_tokens} suffix tokens in layout {self.pattern!r}",
                f"{length} tokens",
                "give grid=(height, width), prefix_tokens and suffix_tokens as in the model",
            )
        return {"h": height, "w": width} | ({"t": time} if has_time else {})

    def broadcast(self, gate: Tensor) -> Tensor:
        """Lay a gate (batch, time, height, width) out to multiply a tensor in this layout.

        Extra tokens get a factor of exactly one.
        """
        # Written out: the compiler of torch 2.7 cannot look into einops, which tells it not to
        # only once it has been called.
        gate = gate[:, :, None].permute(["btchw".index(axis) for axis in self.axes])
        for i, group in enumerate(self.groups):
            gate = gate.flatten(i, i + len(group) - 1)
        if self.token_axis is not None and self.has_extra_tokens:
            behind = gate.ndim - 1 - self.token_axis
            gate = F.pad(
                gate, (0, 0) * behind + (self.prefix_tokens, self.suffix_tokens), value=1.0
            )
        return gate


def as_layout(layout: str | Layout) -> Layout:
    """Return a pattern as the layout of that pattern, and a layout as it is."""
    return layout if isinstance(layout, Layout) else Layout(layout)


as_layout_keywords = former_keywords(
    **{n: f"layout=Layout(pattern, {n}=…)" for n in ("prefix_tokens", "suffix_tokens", "grid")}
)
"""Refuses the parts of a layout as keywords of what takes a layout."""


class BoundLayout(NamedTuple):
    """A layout together with the lengths of a tensor's axes, and these in the tensor's order."""

    layout: Layout
    sizes: Sizes
    unfolded: tuple[int, ...]

    def clip_view(self, x: Tensor) -> Tensor:
        """View ``x`` without extra tokens as (batch, time, channels, height, width); no copy."""
        layout = self.layout
        if layout.token_axis is not None and layout.has_extra_tokens:
            length = x.shape[layout.token_axis] - layout.prefix_tokens - layout.suffix_tokens
            x = x.narrow(layout.token_axis, layout.prefix_tokens, length)
        # einops would do; written out, it is a third of the time, and never a copy.
        if x.ndim < len(layout.axes):
            x = x.view(self.unfolded)
        return x.permute(layout.places)


def _bound(
    layout: Layout, shape: torch.Size, num_frames: int, grid: tuple[int, int] | None
) -> BoundLayout:
    sizes = layout._sizes(shape, num_frames, grid)
    lengths = dict(zip("btchw", sizes, strict=True))
    return BoundLayout(layout, sizes, tuple([lengths[axis] for axis in layout.axes]))


# Looking anew at every call is much of what attention costs one clip.
_remembered = lru_cache(maxsize=1024)(_bound)
