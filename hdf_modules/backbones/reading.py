"""Which axis is which, read from what moves: the layout of a tensor by perturbation.

A clip is repeated five times on the batch axis: as it is, as it is again, and with its first half
of frames, of rows, of columns changed. Of all layouts that a tensor could have, the right one sees
each change where it was made: in its first frames, its upper rows, its left columns. Class tokens,
prompts, windows and tubelets need no rule of their own.
"""

from __future__ import annotations

from collections.abc import Iterator
from functools import lru_cache
from itertools import permutations
from typing import Any, NamedTuple

import torch
from torch import Tensor

from hdf_modules.attention.layout import Layout
from hdf_modules.backbones.probe import sample
from hdf_modules.errors import HDFError

COPIES = 5  # twice as it is, then changed in time, height, width
CLEAR = 0.3  # contrast from which a change counts as seen in its place
_PLAIN = 0.5  # contrast from which a reading stands against the place before
_EVEN = 0.3  # relative deviation over the positions, up to which a change counts as spread


class Clip(NamedTuple):
    """Where a model's input keeps its axes, and how long they are: one clip, or one frame."""

    time: int
    """The axis of the frames; axis 0 where they are consecutive images of the batch."""
    height: int
    frames: int
    rows: int
    columns: int


class Reading(NamedTuple):
    """What a tensor's layout is, and how clearly the changes show in their places."""

    layout: Layout
    channels: int
    frames: int
    grid: tuple[int, int]
    clarity: float
    even: bool
    """Whether the change that shows least moves all positions alike."""


def clip_of(x: Tensor, num_frames: int) -> Clip | None:
    """Find the axes of an input by their lengths; ``None`` if it does not look like a clip.

    Args:
        x: (b, c, t, h, w), (b, t, c, h, w), (b, t, h, w, c), (b t, c, h, w), (b t, h, w, c) or,
            frames folded into the channels, (b, t c, h, w).
        num_frames: T of a clip.
    """
    shape, colours = tuple(x.shape), (3, 1, 2, 4)
    if x.ndim == 5:
        # The frames are as many as said, or the channels few; where both fit, channels first.
        orders = [(2, 3, 1), (1, 3, 2), (1, 2, 4)]  # time, height, channels
        orders.sort(key=lambda axes: (shape[axes[2]] not in colours, shape[axes[0]] != num_frames))
        time, height, channels = orders[0]
        if shape[channels] not in colours:
            return None
        return Clip(time, height, shape[time], shape[height], shape[height + 1])
    if x.ndim != 4:
        return None
    folded = shape[1] not in colours and shape[1] % num_frames == 0
    if folded and shape[1] // num_frames in colours:
        return Clip(1, 2, num_frames, *shape[2:])
    height = 2 if shape[1] in colours or shape[3] not in colours else 1
    return Clip(0, height, shape[0], shape[height], shape[height + 1])


def changed(x: Tensor, clip: Clip) -> Tensor:
    """Return the five versions of one clip, on axis 0."""
    # Another picture of the same size and brightness.
    other = (sample(*x.shape).to(x) - x).flip(clip.height, clip.height + 1)
    versions = [x, x]
    for axis in (clip.time, clip.height, clip.height + 1):
        length = -(-x.shape[axis] // 2)
        version = x.clone()
        version.narrow(axis, 0, length).copy_(other.narrow(axis, 0, length))
        versions.append(version)
    return torch.cat(versions)


def read(x: Tensor, clip: Clip, before: Reading | None = None) -> Reading | None:
    """Return the layout in which the changes are where they were made, or ``None``.

    Deep inside a network a change has spread over all positions and little is left to see. There
    the axes are taken to be as in the place before, unless another order is much clearer.

    Args:
        x: a module's output for what `changed` gives.
        clip: the input's axes.
        before: what was read at the place before.
    """
    if not 3 <= x.ndim <= 5 or not x.is_floating_point():
        return None
    found = _best(x, clip, None)
    if found is None:
        return None
    if before is not None and len(before.layout.groups) == x.ndim:
        same = _best(x, clip, before.layout)
        if same is not None and _goes_on(same, before, found):
            return same
    return found if found.clarity >= CLEAR else None


def _goes_on(same: Reading, before: Reading, found: Reading) -> bool:
    """Whether the axes are as before, though another reading may be clearer."""
    grows = any(now > then for now, then in zip(same.grid, before.grid, strict=True))
    if grows or same.frames > before.frames:
        return False
    # Tokens can be reordered without a trace in their shape, so their changes must have spread.
    spread = same.even if same.layout.token_axis is not None else found.clarity < _PLAIN
    return spread or same.clarity >= found.clarity / 2


def _best(x: Tensor, clip: Clip, like: Layout | None) -> Reading | None:
    """Return the clearest reading, of all or of those like a layout."""
    best: Reading | None = None
    for groups, batch, tokens in _patterns(x.ndim):
        dim, channels = groups.index(batch), groups.index("c")
        frames = _frames(x.shape[dim], batch, clip)
        if frames is None:
            continue
        moved = _moved(x, dim, channels, batch)
        if moved is None:
            continue
        for layout, time in _layouts(groups, tokens, tuple(x.shape), clip):
            if like is not None and not _alike(layout, like):
                continue
            try:
                bound = layout.bind(moved, time or frames, layout.grid)
            except HDFError:
                continue
            _, t, _, h, w = bound.sizes
            if t > clip.frames or t * h * w == 1 or not _is_grid(h, w, clip):
                continue
            clarity, even = _clarity(bound.clip_view(moved)[:, :, 0])
            if best is None or clarity > best.clarity + 1e-6:
                best = Reading(layout, x.shape[channels], t, (h, w), clarity, even)
    return best


def _is_grid(height: int, width: int, clip: Clip) -> bool:
    """Whether a picture of the clip could shrink to this, by strides, padding and cutting."""
    if height > 2 * clip.rows or width > 2 * clip.columns:
        return False
    skew = height * clip.columns / (width * clip.rows)
    return 0.5 <= skew <= 2 or abs(height * clip.columns - width * clip.rows) <= clip.rows


def _alike(layout: Layout, other: Layout) -> bool:
    names = ("pattern", "prefix_tokens", "suffix_tokens")
    return all(getattr(layout, name) == getattr(other, name) for name in names)


def _frames(length: int, batch: str, clip: Clip) -> int | None:
    """Return the number of frames if an axis of this length can hold the batch, else ``None``."""
    if batch != "b":
        return length // COPIES if length % COPIES == 0 else None
    one_image = clip.time == 0 and clip.frames == 1  # of a model of images: time is in the batch
    return clip.frames if length == COPIES and not one_image else None


def _moved(x: Tensor, dim: int, channels: int, batch: str) -> Tensor | None:
    """Return how far each version moved from the first, with one channel.

    ``None`` if the axis does not hold the versions: nothing moves, or what is the same does.
    """
    split = (-1, COPIES) if batch == "(t b)" else (COPIES, -1)
    versions = x.detach().float().unflatten(dim, split)
    axis = dim + (batch == "(t b)")
    first = versions.narrow(axis, 0, 1)
    mean = channels + (channels > dim)
    moved = (versions - first).abs().mean(mean, keepdim=True)
    same, most = moved.select(axis, 1).amax(), moved.amax()
    if not bool(most > 0) or bool(same > 1e-3 * most):
        return None
    return moved.flatten(dim, dim + 1)


def _clarity(moved: Tensor) -> tuple[float, bool]:
    """Return the least contrast with which the changes stand in their places, −1 to 1.

    And whether that change moves all positions about alike.

    Args:
        moved: (5, t, h, w), the versions in the order of `changed`.
    """
    contrasts: list[tuple[float, bool]] = []
    for axis, response in enumerate(moved[2:]):
        length = response.shape[axis]
        if length < 2:
            continue
        profile = response.mean([i for i in range(3) if i != axis])
        inside = (length / 2 - torch.arange(length)).clamp(0, 1).to(profile)
        first = (profile * inside).sum() / inside.sum()
        second = (profile * (1 - inside)).sum() / (1 - inside).sum()
        contrast = float((first - second) / (first + second).clamp_min(1e-30))
        contrasts.append((contrast, bool(response.std() < _EVEN * response.mean())))
    return min(contrasts)


def _layouts(
    groups: tuple[str, ...], tokens: str | None, shape: tuple[int, ...], clip: Clip
) -> Iterator[tuple[Layout, int | None]]:
    """Yield the layouts of a pattern that a shape could have, with T where tokens hold it."""
    pattern = " ".join(groups)
    if tokens is None:
        yield Layout(pattern), None
        return
    count = shape[groups.index(tokens)]
    for time in _times(clip.frames) if "t" in tokens else (None,):
        for height, width in _grids(clip.rows, clip.columns):
            grid = (time or 1) * height * width
            extra = count - grid
            few = extra <= (grid // 4 if height * width > 1 else 0)
            for prefix in range(extra + 1 if few else 0):
                yield Layout(pattern, prefix, extra - prefix, (height, width)), time


@lru_cache
def _patterns(ndim: int) -> list[tuple[tuple[str, ...], str, str | None]]:
    """Return all patterns of so many dimensions: groups, the batch's, the tokens'.

    The usual ones come first, as where a length is 1 several fit.
    """
    found = []
    for batch in ("b", "(b t)", "(t b)"):
        spaces: list[tuple[str, ...]] = [("h", "w"), ("(h w)",)]
        spaces += [("(t h w)",), ("(h w t)",)] * (batch == "b")
        for space in spaces:
            alone = ["t"] if "t" not in batch + "".join(space) else []
            blocks: list[Any] = [(batch,), *[(t,) for t in alone], ("c",), space]
            tokens = space[0] if len(space) == 1 else None
            for order in permutations(blocks):
                groups = tuple(group for block in order for group in block)
                if len(groups) == ndim:
                    found.append((groups, batch, tokens))
    return found


@lru_cache
def _times(frames: int) -> list[int]:
    """Return the lengths that so many frames may have behind strides, longest first."""
    return sorted({-(-frames // k) for k in range(1, frames + 1)} | {max(1, frames // 2)})[::-1]


@lru_cache
def _grids(rows: int, columns: int) -> list[tuple[int, int]]:
    """Return the grids that a picture may have behind strides, padded up or cut down."""
    both = {
        grid
        for stride in range(1, max(rows, columns) + 1)
        for grid in (
            (-(-rows // stride), -(-columns // stride)),
            (rows // stride, columns // stride),
        )
    }
    return sorted((grid for grid in both if min(grid) >= 1), reverse=True)
