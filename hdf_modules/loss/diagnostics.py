"""What the weights of a batch look like."""

from __future__ import annotations

from torch import Tensor

from hdf_modules.loss.per_sample import Samples


def concentration(weights: Tensor) -> dict[str, Tensor]:
    """Effective sample size (Σw)²/Σw² (Kish, 1965) and the largest weight."""
    squares = weights.square().sum()
    size = weights.sum().square() / squares.where(squares > 0, 1)
    largest = weights.max() if len(weights) else weights.sum()
    return {"effective_sample_size": size, "largest_weight": largest}


def shares(weights: Tensor, samples: Samples) -> dict[str, Tensor]:
    """Share of the weight per class (soft labels: in proportion) and per group."""
    found = {}
    if samples.labels is not None:
        found["class"] = _share(weights, samples.labels)
    if samples.groups is not None:
        found["group"] = _share(weights, samples.groups)
    return found


def _share(weights: Tensor, labels: Tensor) -> Tensor:
    if labels.ndim == 2:
        mass = weights @ labels.to(weights)
    else:
        size = int(labels.max()) + 1 if len(labels) else 0
        mass = weights.new_zeros(size).index_add(0, labels, weights)
    total = mass.sum()
    return mass / total.where(total > 0, 1)
