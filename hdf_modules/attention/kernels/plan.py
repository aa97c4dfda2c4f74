"""Sizes of the kernels' tiles, and tensors that depend on sizes alone."""

from __future__ import annotations

from functools import lru_cache
from typing import Any, NamedTuple

import torch
from torch import Tensor

from hdf_modules.attention.constants import dct_basis
from hdf_modules.attention.functional import resample_time
from hdf_modules.attention.layout import Sizes
from hdf_modules.attention.weights import AttentionOptions, AttentionWeights

TILE = 2048  # values of x that a program holds at once
ENOUGH = 264  # programs: two for each processor of the largest GPUs
PATCH = 32  # most positions of a program of the frequency gate: with 64 registers run out
PART = 64  # positions of a program of the read-out's gradient
FEW = 4  # programs that share its taps: one or two run out of registers
STEP = 16  # of the inner axis of matrix products
READOUT = AttentionWeights._fields.index("frequency_readout")


class Kept(NamedTuple):
    """What forward leaves to backward, small beside x: the statistics, and what little is dear.

    Attributes:
        bins: mean and maximum of the bins, for the frames of the weights, (batch, 2, L, K).
        place: channel and position of the maximum of each bin, (batch, time, K).
        by_time: part of the factor by frame, (batch, time).
        total: sum over channels of the average over time, (batch, positions).
        spreads: mean and deviation of the maps of the spectrum, (batch, 2, n²).
        frequency: f, (batch, positions).
    """

    bins: Tensor
    place: Tensor
    by_time: Tensor
    total: Tensor
    spreads: Tensor
    frequency: Tensor


class Plan(NamedTuple):
    """How one call is cut into programs.

    Attributes:
        sizes: lengths of the axes.
        length: L, the frames that the weights are made for.
        options: of the attention.
        positions: positions of one program.
        blocks: programs of one clip.
        patch: positions of one program of the frequency gate.
        patches: programs of the frequency gate of one clip.
        slots: numbers that pass between the steps of the temporal gate of a clip.
    """

    sizes: Sizes
    length: int
    options: AttentionOptions
    positions: int
    blocks: int
    patch: int
    patches: int
    slots: int

    def of_x(self, *views: Tensor) -> dict[str, Any]:
        """Return the constants of a pass over x."""
        return {
            "FRAMES": self.sizes.t,
            "CHANNELS": self.sizes.c,
            "FLAT": all(view.stride(3) == view.stride(4) * self.sizes.w for view in views),
            "ROWS": TILE // self.positions,
            "POSITIONS": self.positions,
        }

    def of_time(self) -> dict[str, Any]:
        """Return the constants of the temporal gate."""
        _, t, c, _, _ = self.sizes
        k = self.options.bins
        rows, columns = padded(max(t, self.length)), padded(k)
        return {
            "FRAMES": t,
            "LENGTH": self.length,
            "CHANNELS": c,
            "BINS": k,
            "OVER_TIME": self.options.consistency == "time",
            "ROWS": rows,
            "COLUMNS": columns,
            "SLOTS": self.slots,
        }

    def pooling(self) -> dict[str, int]:
        """Return the channels of the widest bin, and the blocks that are pooled at once."""
        rows, columns = padded(max(self.sizes.t, self.length)), padded(self.options.bins)
        return {
            "WIDTH": widest(self.sizes.c, self.options.bins),
            "BLOCKS": min(max(4096 // (rows * columns), 1), padded(self.blocks, 1)),
        }

    def many(self) -> int:
        """Return the partial sums of each frame that are added at once."""
        rows = padded(max(self.sizes.t, self.length))
        return min(max(4096 // rows, 16), padded(self.blocks * self.sizes.c))

    def of_maps(self) -> dict[str, int]:
        """Return the constants of the spectrum."""
        size = self.options.dct_size
        return {"SIZE": size, "MAPS": padded(size**2), "POSITIONS": self.patch, "STEP": STEP}


def padded(size: int, least: int = 16) -> int:
    """Return the power of two that covers a size."""
    return max(least, 1 << (size - 1).bit_length())


def widest(channels: int, bins: int) -> int:
    """Return the channels of the widest bin; the other way around, the most bins of a channel."""
    return max(-(-(i + 1) * channels // bins) - i * channels // bins for i in range(bins))


@lru_cache(maxsize=1024)
def plan_of(sizes: Sizes, length: int, options: AttentionOptions) -> Plan:
    """Cut a call into programs."""
    positions = 16
    while positions < 64 and sizes.b * -(-sizes.h * sizes.w // (2 * positions)) >= ENOUGH:
        positions *= 2
    k, t = options.bins, sizes.t
    slots = 4 * length * k + length * (length + 2) + t + 2 * t * k * (t != length)
    size, patch = sizes.h * sizes.w, min(positions, PATCH)
    blocks, patches = -(-size // positions), -(-size // patch)
    return Plan(sizes, length, options, positions, blocks, patch, patches, slots)


def spectrum_basis(size: int, dtype: torch.dtype, device: torch.device) -> Tensor:
    """Waves of the local spectrum, (n², n²): a row for each frequency, v·n + u."""
    basis = dct_basis(size, torch.float64, device)
    waves = torch.einsum("ui,vj->vuij", basis, basis)
    return waves.reshape(size**2, size**2).to(dtype)


def resampling(before: int, after: int, dtype: torch.dtype, device: torch.device) -> Tensor:
    """Matrix (after, before) that resamples along time."""
    same = torch.eye(before, dtype=torch.float64, device=device)
    return resample_time(same[None], after)[0].to(dtype).contiguous()


def kept_of(x: Tensor, sizes: Sizes, length: int, options: AttentionOptions) -> Kept:
    """Return room for what forward leaves to backward, on the device of x."""
    (b, t, _, h, width), k, maps = sizes, options.bins, options.dct_size**2
    shapes = (b, 2, length, k), (b, t, k), (b, t), (b, h * width), (b, 2, maps), (b, h * width)
    types = [torch.int32 if name == "place" else torch.float32 for name in Kept._fields]
    return Kept._make(x.new_empty(s, dtype=d) for s, d in zip(shapes, types, strict=True))


def numbers(length: int, options: AttentionOptions) -> list[int]:
    """Return how many numbers each weight but the read-outs has, in their order."""
    k, maps = options.bins, options.dct_size**2
    table, linear = length * k, [k * k, k]
    temporal = [1, 1, table, table, length**2, *linear, *linear, *linear]
    return [*temporal, 1, 1, maps, maps, maps, 1, maps, maps, 1, 1, 1]


def shaped(
    flat: Tensor, of_readout: Tensor, weights: AttentionWeights, options: AttentionOptions
) -> list[Tensor | None]:
    """Return the gradient of each weight, of those of all but the read-out in one vector."""
    found = list(flat.split(numbers(len(weights.temporal_scale), options)))
    found.insert(READOUT, of_readout)
    found.insert(READOUT + 1, found[0])  # no second read-out
    return [None if w is None else g.view_as(w) for g, w in zip(found, weights, strict=True)]


def flat_of(
    grads: list[Tensor | None], weights: AttentionWeights, options: AttentionOptions
) -> tuple[Tensor, Tensor]:
    """Return what `shaped` takes: zeros where there is no weight."""
    rest = [*grads[:READOUT], *grads[READOUT + 2 :]]
    counts, readout = numbers(len(weights.temporal_scale), options), weights.frequency_readout
    parts = [
        readout.new_zeros(n) if g is None else g.flatten()
        for g, n in zip(rest, counts, strict=True)
    ]
    of_readout: Any = grads[READOUT]
    return torch.cat(parts), of_readout.flatten(2)[0]
