"""Levels that change in the course of a training."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn

from hdf_modules.errors import HDFError

Level = float | tuple[float, float, int] | None


class Schedule(nn.Module):
    """A level, constant or ramped linearly: (start, end, steps); the steps taken are a buffer.

    Args:
        check: returns a level as a float, or raises.
        level: a level, or the two between which it ramps and the number of steps that it takes.

    Raises:
        HDFError: for a level that ``check`` refuses, or a negative number of steps.
    """

    steps_taken: Tensor

    def __init__(self, check: Callable[[float | None], float], level: Level) -> None:
        super().__init__()
        start, end, self.steps = level if isinstance(level, tuple) else (level, level, 0)
        self.start, self.end = check(start), check(end)
        if self.steps < 0:
            raise HDFError("level", "(start, end, steps) with steps >= 0", level)
        self.register_buffer("steps_taken", torch.tensor(0))

    def forward(self, advance: bool) -> float:
        """Return the level of this step."""
        return self.start + (self.end - self.start) * self.progress(advance)

    def progress(self, advance: bool) -> float:
        """Return the share of the ramp that is done, and count this step if ``advance``."""
        if self.steps == 0:
            return 1.0
        taken = min(int(self.steps_taken), self.steps)
        if advance:
            self.steps_taken += 1
        return taken / self.steps
