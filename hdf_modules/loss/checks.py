"""Checks of what the loss and its functions are given."""

from __future__ import annotations

import torch
from torch import Tensor

from hdf_modules.errors import HDFError

MAX_GROUPS = 2**16


def check_features(features: Tensor) -> None:
    """Raise unless ``features`` is a floating point matrix."""
    if features.ndim != 2 or not features.is_floating_point():
        found = f"shape {tuple(features.shape)}, {features.dtype}"
        raise HDFError("features", "a floating point tensor of shape (N, D)", found)


def check_labels(target: Tensor, length: int) -> None:
    """Raise unless ``target`` holds class ids (length,) or soft labels (length, K)."""
    integer = not (target.is_floating_point() or target.is_complex() or target.dtype == torch.bool)
    soft = target.is_floating_point() and target.ndim == 2
    if not (integer and target.ndim == 1) and not soft:
        found = f"shape {tuple(target.shape)}, {target.dtype}"
        expected = "integer class ids (N,) or floating point soft labels (N, K)"
        raise HDFError("target", expected, found)
    if len(target) != length:
        raise HDFError("target", f"{length} labels, one for each feature", len(target))


def check_groups(groups: Tensor, length: int) -> None:
    """Raise unless ``groups`` holds ``length`` group ids in range."""
    if groups.ndim != 1 or groups.is_floating_point() or groups.is_complex():
        found = f"{tuple(groups.shape)}, {groups.dtype}"
        raise HDFError("groups", "integer ids of shape (B,)", found)
    if len(groups) != length:
        raise HDFError("groups", f"{length} ids, one for each sample", len(groups))
    outside = groups[(groups < 0) | (groups >= MAX_GROUPS)]
    if len(outside):
        expected = f"ids in 0 .. {MAX_GROUPS - 1}"
        raise HDFError("groups", expected, int(outside[0]), "number the groups from 0")


def check_block_size(block_size: int | None) -> None:
    """Raise unless ``block_size`` can be the side of a tile."""
    if block_size is not None and block_size < 1:
        raise HDFError("block_size", "an integer >= 1 or None", block_size)
