"""Samples of earlier batches, so that small batches find positives."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from hdf_modules.errors import HDFError, at_least

_KEPT = ("features", "target", "groups")


class FeatureMemory(nn.Module):
    """The last ``size`` samples as buffers: first in, first out (XBM, Wang et al., 2020).

    The newest batch is kept apart: it becomes visible with the next one, so that a second pass over
    a batch (SAM) sees what the first pass saw, and never the batch's own copy.

    Args:
        size: how many samples to remember.
    """

    features: Tensor
    target: Tensor
    groups: Tensor
    newest: Tensor

    def __init__(self, size: int) -> None:
        super().__init__()
        self.size = at_least("memory", size, 0)
        self.register_buffer("features", torch.empty(0, 0))
        self.register_buffer("target", torch.empty(0, dtype=torch.int64))
        self.register_buffer("groups", torch.empty(0, dtype=torch.int64))
        self.register_buffer("newest", torch.tensor(0))

    @torch.no_grad()
    def forward(self, *rows: Tensor, advance: bool) -> tuple[Tensor, ...]:
        """Return what is remembered, then take in the batch if ``advance``.

        Args:
            *rows: features and targets of the batch, and groups, every time or never.
            advance: whether the batch is a new one.
        """
        names = _KEPT[: len(rows)]
        if self.features.numel() == 0:
            for name, new in zip(names, rows, strict=True):
                setattr(self, name, new[:0].detach())
        seen = slice(max(self._count(advance) - self.size, 0), self._count(advance))
        past = tuple(
            getattr(self, name)[seen].to(new.device) for name, new in zip(names, rows, strict=True)
        )
        past = past[0].to(rows[0]), *past[1:]
        for name, old, new in zip(names, past, rows, strict=True):
            self._check(name, old, new)
            if advance:
                setattr(self, name, torch.cat([old, new.detach()]))
        if advance:
            self.newest = torch.tensor(len(rows[0]), device=rows[0].device)
        return past

    def _count(self, advance: bool) -> int:
        """Return the number of rows in view: a repeated batch does not see itself."""
        return len(self.features) - (0 if advance else int(self.newest))

    @staticmethod
    def _check(name: str, old: Tensor, new: Tensor) -> None:
        if old.shape[1:] != new.shape[1:] or old.is_floating_point() != new.is_floating_point():
            raise HDFError(
                name,
                f"rows of shape {tuple(old.shape[1:])}, {old.dtype}, as in the memory",
                f"{tuple(new.shape[1:])}, {new.dtype}",
                "keep one kind of target, hard or soft, while a memory is used",
            )

    def _load_from_state_dict(self, state_dict: dict[str, Any], prefix: str, *args: Any) -> None:
        for name in _KEPT:  # take on the stored length, width and type
            stored = state_dict.get(prefix + name)
            if stored is not None:
                setattr(self, name, torch.empty_like(stored, device=self.newest.device))
        super()._load_from_state_dict(state_dict, prefix, *args)
