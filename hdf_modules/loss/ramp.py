"""A level that moves over training: how sharp a worst case is, how far a group's weight steps."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from hdf_modules.errors import at_least
from hdf_modules.loss.memory import Known


class Ramp(nn.Module):
    """A level that changes linearly over the training calls and stays at its end.

    Args:
        start: the level of the first call.
        end: the level after ``steps`` calls.
        steps: how many calls it takes; those taken are a buffer.

    Example:
        >>> ramp = Ramp(1.0, 0.5, steps=2)
        >>> [ramp(advance=True) for _ in range(4)]
        [1.0, 0.75, 0.5, 0.5]
    """

    steps_taken: Tensor

    def __init__(self, start: float, end: float, *, steps: int) -> None:
        super().__init__()
        self.start, self.end, self.steps = start, end, at_least("steps", steps, 0)
        self.remembers = self.steps > 0
        self.register_buffer("steps_taken", torch.tensor(0))
        self._known = Known()

    def forward(self, advance: bool) -> float:
        """Return the level of this step."""
        if self.steps == 0:
            return self.end
        return self.start + (self.end - self.start) * self.progress(advance)

    def progress(self, advance: bool) -> float:
        """Return the share of the ramp that is done, and count this step if ``advance``."""
        if self.steps == 0:
            return 1.0
        taken = self._known.read(self.steps_taken)
        if advance:
            self.steps_taken += 1
            taken += 1
            self._known.write(self.steps_taken, taken)
        return min(taken - advance, self.steps) / self.steps

    def extra_repr(self) -> str:
        """Return the options as the constructor takes them."""
        return f"{self.start}, {self.end}, steps={self.steps}"


Level = float | Ramp


def as_ramp(level: Any, check: Callable[[Any], float]) -> Ramp:
    """Return a level as a ramp whose both ends are checked."""
    ramp = level if isinstance(level, Ramp) else Ramp(level, level, steps=0)
    ramp.start, ramp.end = check(ramp.start), check(ramp.end)
    return ramp
