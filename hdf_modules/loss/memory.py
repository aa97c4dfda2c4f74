"""What the loss remembers of earlier batches: states that grow, and a memory of samples."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from hdf_modules.errors import HDFError, at_least, check_features, check_groups, check_labels
from hdf_modules.sam.second_pass import SECOND_PASS

_KEPT = ("features", "target", "groups")


class Growing(nn.Module):
    """A module with tensors that change their shape: saved and moved like buffers, but not buffers.

    What walks over the buffers of a model writes into them in place (``AveragedModel``) or expects
    the same shapes everywhere (``DistributedDataParallel``).

    Attributes:
        grown: names of these tensors, which are plain attributes.
    """

    grown: tuple[str, ...] = ()

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Any:
        for name in self.grown:
            setattr(self, name, fn(getattr(self, name)))
        return super()._apply(fn, recurse)

    def _save_to_state_dict(self, destination: Any, prefix: str, keep_vars: bool) -> None:
        super()._save_to_state_dict(destination, prefix, keep_vars)
        for name in self.grown:
            destination[prefix + name] = getattr(self, name)

    def _load_from_state_dict(self, state_dict: dict[str, Any], prefix: str, *args: Any) -> None:
        missing, unexpected = args[2], args[3]
        for name in self.grown:  # the stored length, width and type
            if prefix + name in state_dict:
                device = getattr(self, name).device
                setattr(self, name, state_dict[prefix + name].detach().to(device, copy=True))
            else:
                missing.append(prefix + name)
        super()._load_from_state_dict(state_dict, prefix, *args)
        unexpected[:] = [key for key in unexpected if key.removeprefix(prefix) not in self.grown]


class Known:
    """The number in a buffer, as this process wrote it last: to read it, a host would wait.

    Where anyone else wrote the buffer, or put another in its place, it is read again; so it is when
    it was written in a second pass of a SAM, which takes that back without a trace.
    """

    def __init__(self) -> None:
        self._written: tuple[Tensor, int, int] | None = None

    def read(self, buffer: Tensor) -> int:
        """Return the number."""
        if self._written is not None:
            written, version, value = self._written
            if written is buffer and version == buffer._version:
                return value
        return int(buffer)

    def write(self, buffer: Tensor, value: int) -> None:
        """Note what was just written."""
        self._written = None if SECOND_PASS.get() else (buffer, buffer._version, value)

    def __deepcopy__(self, memo: Any) -> Known:
        """Know nothing of another buffer."""
        return Known()

    def __reduce__(self) -> Any:
        """Know nothing in another process."""
        return Known, ()


class FeatureMemory(Growing):
    """The last ``size`` samples: first in, first out (XBM, Wang et al., 2020).

    The newest batch is kept apart: it becomes visible with the next one, so that a second pass over
    a batch (SAM) sees what the first pass saw, and never the batch's own copy.

    Args:
        size: how many samples to remember.
    """

    grown = (*_KEPT, "newest")

    def __init__(self, size: int) -> None:
        super().__init__()
        self.size = at_least("memory", size, 0)
        self.remembers = self.size > 0
        self.features = torch.empty(0, 0)
        self.target = self.groups = torch.empty(0, dtype=torch.int64)
        self.newest, self._known = torch.tensor(0), Known()

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
            self.newest = torch.full((), len(rows[0]), device=rows[0].device)
            self._known.write(self.newest, len(rows[0]))
        return past

    def _count(self, advance: bool) -> int:
        """Return the number of rows in view: a repeated batch does not see itself."""
        return len(self.features) - (0 if advance else self._known.read(self.newest))

    @staticmethod
    def _check(name: str, old: Tensor, new: Tensor) -> None:
        if old.shape[1:] != new.shape[1:] or old.is_floating_point() != new.is_floating_point():
            raise HDFError(
                name,
                f"rows of shape {tuple(old.shape[1:])}, {old.dtype}, as in the memory",
                f"{tuple(new.shape[1:])}, {new.dtype}",
                "keep one kind of target, hard or soft, while a memory is used",
            )


def check_memory(
    memory: tuple[Tensor, ...], anchors: Tensor, target: Tensor, groups: Tensor | None
) -> None:
    """Check that a memory fits the batch: its features, targets, and groups if there are groups."""
    features, labels, *past = memory
    if len(past) != (groups is not None):
        expected = "features and targets, and groups if there are groups"
        raise HDFError("memory", expected, f"{len(memory)} tensors")
    check_features(features)
    check_labels(labels, len(features))
    for ids in past:
        check_groups(ids, len(features))
    if features.shape[1] != anchors.shape[1] or labels.shape[1:] != target.shape[1:]:
        found = f"features {tuple(features.shape)}, targets {tuple(labels.shape)}"
        expected = f"features (M, {anchors.shape[1]}), targets (M, *{tuple(target.shape[1:])})"
        raise HDFError("memory", expected, found)
