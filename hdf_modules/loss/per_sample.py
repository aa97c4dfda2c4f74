"""Any classification loss as one value per sample, with what its own mean needs."""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import dataclass, fields, replace

import torch
from torch import Tensor, nn

from hdf_modules.errors import HDFError


@dataclass(frozen=True)
class Samples:
    """What the loss knows about the samples of a batch, a row each.

    Attributes:
        losses: one value per sample, class weights included, float32 at least.
        elements: how many elements of the target each value is the mean of; 0 if it is ignored.
        normalizer: what each sample adds to the denominator of the base loss's mean, so that
            this mean is Σ losses·elements / Σ normalizer.
        labels: class ids or soft labels, where the target is either.
        groups: group ids, where given.
        features: normalised features, where given.
    """

    losses: Tensor
    elements: Tensor
    normalizer: Tensor
    labels: Tensor | None = None
    groups: Tensor | None = None
    features: Tensor | None = None

    def __getitem__(self, rows: Tensor | slice) -> Samples:
        """Select rows of everything."""
        values = {field.name: getattr(self, field.name) for field in fields(self)}
        return replace(self, **{k: v[rows] for k, v in values.items() if v is not None})


def concentration(weights: Tensor) -> dict[str, Tensor]:
    """Effective sample size (Σw)²/Σw² (Kish, 1965) and the largest weight."""
    squares = weights.square().sum()
    size = weights.sum().square() / squares.where(squares > 0, 1)
    largest = weights.max() if len(weights) else weights.sum()
    return {"effective_sample_size": size, "largest_weight": largest}


def shares_of(weights: Tensor, samples: Samples) -> dict[str, Tensor]:
    """Share of the weight per class (soft labels: in proportion) and per group."""
    found = {}
    for name, labels in (("class", samples.labels), ("group", samples.groups)):
        if labels is None:
            continue
        if labels.ndim == 2:
            mass = weights @ labels.to(weights)
        else:
            size = int(labels.max()) + 1 if len(labels) else 0
            mass = weights.new_zeros(size).index_add(0, labels, weights)
        total = mass.sum()
        found[name] = mass / total.where(total > 0, 1)
    return found


class PerSampleLoss(nn.Module):
    """A base loss without its reduction.

    Args:
        base: a module with a ``reduction`` (every loss of ``torch.nn``), deep-copied so that the
            original stays as it is; or any callable (logits, target) → losses of shape (B,).
            Losses of several elements per sample are averaged over them, or summed where the base
            says ``reduction="batchmean"``.

    Raises:
        HDFError: if the base returns anything but one value per sample.
    """

    base: Callable[[Tensor, Tensor], Tensor]

    def __init__(self, base: Callable[[Tensor, Tensor], Tensor]) -> None:
        super().__init__()
        self.sums = getattr(base, "reduction", None) == "batchmean"
        self.reducible = isinstance(base, nn.Module) and hasattr(base, "reduction")
        if self.reducible:
            base = copy.deepcopy(base)
            base.reduction = "none"  # type: ignore[attr-defined]
        self.base = base

    def forward(self, logits: Tensor, target: Tensor) -> Samples:
        """Return losses, elements and normalizer of all samples; ignored ones have 0 of each."""
        self._check_ids(logits, target)
        raw = self._raw(logits, target)
        counted = self._counted(raw, target)
        normalizer = (self._class_weights(raw, target) * counted).flatten(1).sum(1)
        # An ignored target may give inf or NaN in a third party's loss: it must not reach the sum.
        total = raw.where(counted, 0).flatten(1).sum(1)
        elements = counted.flatten(1).sum(1).to(raw.dtype)
        if self.sums:
            elements = normalizer = torch.ones_like(total)
        return Samples(total / elements.clamp(min=1), elements, normalizer)

    def _check_ids(self, logits: Tensor, target: Tensor) -> None:
        """Find class ids out of range, which on a GPU would end the process without a word."""
        base = self.base
        hard = target.dtype == torch.long and target.numel() > 0 and logits.ndim > 1
        if not (hard and isinstance(base, nn.CrossEntropyLoss | nn.NLLLoss)):
            return
        ids = target[target != base.ignore_index]
        wrong = ids[(ids < 0) | (ids >= logits.shape[1])]
        if len(wrong):
            expected = f"class ids in 0 .. {logits.shape[1] - 1}, as logits have classes"
            hint = "number the classes from 0, or mark what to leave out by the base's ignore_index"
            raise HDFError("target", expected, int(wrong[0]), hint)

    def _raw(self, logits: Tensor, target: Tensor) -> Tensor:
        raw = self.base(logits, target)
        found = f"shape {tuple(raw.shape)}" if isinstance(raw, Tensor) else type(raw).__name__
        if not isinstance(raw, Tensor) or raw.ndim == 0 or len(raw) != len(target):
            raise HDFError(
                "base",
                f"a loss that returns one value per sample, shape ({len(target)},)",
                found,
                "do not average in it: return the losses before .mean(), or set its reduction",
            )
        if raw.ndim > 1 and not self.reducible:
            raise HDFError("base", f"shape ({len(target)},)", found, "average over the other axes")
        if not raw.is_floating_point():
            raise HDFError("base", "floating point losses", raw.dtype)
        return raw.to(torch.promote_types(raw.dtype, torch.float32)).reshape(*raw.shape, 1)

    def _counted(self, raw: Tensor, target: Tensor) -> Tensor:
        """Mask of the elements whose target is not ``ignore_index``."""
        ignored = getattr(self.base, "ignore_index", None)
        if ignored is None or target.is_floating_point() or target.shape != raw.shape[:-1]:
            return torch.ones_like(raw, dtype=torch.bool)
        return (target != ignored)[..., None]

    def _class_weights(self, raw: Tensor, target: Tensor) -> Tensor:
        """Class weights as the mean of torch's own losses divides by them: of class ids only."""
        base = self.base
        if not isinstance(base, nn.CrossEntropyLoss | nn.NLLLoss):
            return torch.ones_like(raw)
        if base.weight is None or target.is_floating_point():
            return torch.ones_like(raw)
        ids = target.where(target != base.ignore_index, 0)
        return base.weight.to(raw.dtype)[ids][..., None]
