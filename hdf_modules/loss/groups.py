"""Group DRO: a mixture of the groups that follows the worst."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor, nn

from hdf_modules.errors import HDFError
from hdf_modules.loss.per_sample import Samples
from hdf_modules.loss.schedule import Schedule


class GroupWeights(nn.Module):
    """Group DRO: exponentiated gradient ascent on the mixture of the groups.

    Sagawa et al., 2020 (arXiv:1911.08731), Algorithm 1, in log space: with l_g the mean loss of
    group g, log q ← log_softmax(log q + step·(l_g + adjustment_g)); a sample of g weighs q_g / n_g.
    Deviations from the released code: a group that is absent from the batch keeps its q (there it
    counts as loss 0); the weights of a batch are normalised over the groups present, so that
    the scale of the loss does not depend on which they are; q grows with the groups seen, a new
    group entering with the share 1/G.

    Args:
        step: the step size ≥ 0 (0.01 in the paper's experiments); where it starts and ends is a
            buffer.
        adjustment: (G,), added to the groups' losses in the update, C/√(size of the group) in
            the paper's section 3.3; 0 for groups beyond. A buffer.
    """

    log_q: Tensor
    adjustment: Tensor
    step_sizes: Tensor

    def __init__(self, step: Schedule, adjustment: Tensor | None = None) -> None:
        super().__init__()
        adjustment = torch.empty(0) if adjustment is None else torch.as_tensor(adjustment)
        if adjustment.ndim != 1 or not adjustment.is_floating_point():
            found = f"shape {tuple(adjustment.shape)}, {adjustment.dtype}"
            raise HDFError("adjustment", "a floating point tensor, a value per group", found)
        if not bool(adjustment.isfinite().all()):
            raise HDFError("adjustment", "finite values", adjustment.tolist())
        self.step = step
        self.register_buffer("step_sizes", torch.tensor([step.start, step.end]))
        self.register_buffer("adjustment", adjustment.clone())
        self.register_buffer("log_q", torch.empty(0))

    def forward(self, samples: Samples, advance: bool) -> Tensor:
        """Return the weights of the samples; with ``advance``, update q first."""
        losses, groups = samples.losses, samples.groups
        if groups is None:
            raise HDFError("groups", "group ids (B,) for weighting='group'", None)
        if len(losses) == 0:
            return losses
        log_q = self._grown(int(groups.max()) + 1).to(losses)
        counts = torch.bincount(groups, minlength=len(log_q)).to(losses.dtype)
        present = counts > 0
        if advance:
            means = torch.zeros_like(counts).index_add(0, groups, losses) / counts.clamp(min=1)
            means += self._adjustments(len(log_q)).to(losses)
            start, end = self.step_sizes.to(losses)
            step = torch.lerp(start, end, self.step.progress(advance))
            before = log_q[present]
            after = before + step * means[present]
            log_q[present] = after.log_softmax(0) + before.logsumexp(0)
            self.log_q = log_q
        q = torch.zeros_like(counts).masked_scatter(present, log_q[present].softmax(0))
        return (q / counts.clamp(min=1))[groups]

    def _grown(self, size: int) -> Tensor:
        """Return a copy of log q with at least ``size`` groups."""
        old, new = len(self.log_q), max(size, len(self.log_q))
        log_q = self.log_q.new_full((new,), -math.log(new))
        log_q[:old] = self.log_q + math.log(max(old, 1) / new)
        return log_q

    def _adjustments(self, size: int) -> Tensor:
        padding = self.adjustment.new_zeros(max(size - len(self.adjustment), 0))
        return torch.cat([self.adjustment, padding])[:size]

    def _load_from_state_dict(self, state_dict: dict[str, Any], prefix: str, *args: Any) -> None:
        for name in ("log_q", "adjustment"):  # take on the length: a fresh module saw no group
            stored = state_dict.get(prefix + name)
            if stored is not None:
                setattr(self, name, torch.empty_like(stored, device=self.log_q.device))
        super()._load_from_state_dict(state_dict, prefix, *args)
