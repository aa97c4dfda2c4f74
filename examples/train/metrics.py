"""WAR, UAR and the confusion matrix, by torchmetrics."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor
from torchmetrics.functional.classification import (
    multiclass_accuracy,
    multiclass_confusion_matrix,
    multiclass_recall,
)


@dataclass
class Predictions:
    """What a model said about a set of clips, in the order of the set."""

    labels: Tensor
    groups: Tensor
    logits: Tensor
    features: Tensor

    @property
    def predicted(self) -> Tensor:
        return self.logits.argmax(1)


def scores(predicted: Tensor, labels: Tensor, num_classes: int) -> dict[str, float]:
    """WAR (accuracy) and UAR (mean recall of the classes that occur), in percent.

    Example:
        >>> said, true = torch.tensor([0, 0, 0, 1]), torch.tensor([0, 0, 1, 1])
        >>> scores(said, true, num_classes=3)
        {'war': 75.0, 'uar': 75.0}
    """
    recall = recalls(predicted, labels, num_classes)
    war = multiclass_accuracy(predicted, labels, num_classes, average="micro")
    return {"war": 100 * float(war), "uar": 100 * float(recall.nanmean())}


def recalls(predicted: Tensor, labels: Tensor, num_classes: int) -> Tensor:
    """Recall of each class; NaN for a class that does not occur."""
    recall = multiclass_recall(predicted, labels, num_classes, average=None)
    occurs = torch.bincount(labels, minlength=num_classes) > 0
    return torch.where(occurs, recall, torch.nan)


def confusion(predicted: Tensor, labels: Tensor, num_classes: int) -> Tensor:
    """Counts, true class by row."""
    return multiclass_confusion_matrix(predicted, labels, num_classes)


def by_group(
    found: Predictions, names: tuple[str, ...], num_classes: int
) -> dict[str, dict[str, float]]:
    """Scores within each group that occurs."""
    table = {}
    for group, name in enumerate(names):
        mine = found.groups == group
        if mine.any():
            part = scores(found.predicted[mine], found.labels[mine], num_classes)
            table[name] = part | {"clips": int(mine.sum())}
    return table
