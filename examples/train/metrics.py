"""WAR, UAR and the confusion matrix, by torchmetrics."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

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


def calibration(found: Predictions, bins: int = 10) -> tuple[list[tuple[float, float, int]], float]:
    """How often the model is right when it is this sure, and the expected calibration error.

    Returns:
        Mean confidence, accuracy and number of clips of each bin of confidence that holds any; and
        the mean distance of the two over the clips, in percent.

    Example:
        >>> sure = torch.tensor([[0.9, 0.1], [0.9, 0.1]]).log()
        >>> labels = torch.tensor([0, 1])
        >>> table, error = calibration(Predictions(labels, labels, sure, sure))
        >>> [(round(said, 2), right, clips) for said, right, clips in table], round(error, 1)
        ([(0.9, 0.5, 2)], 40.0)
    """
    said, predicted = found.logits.double().softmax(1).max(1)
    right, place = (predicted == found.labels).double(), (said * bins).long().clamp(max=bins - 1)
    parts = [place == each for each in place.unique().tolist()]
    table = [(float(said[p].mean()), float(right[p].mean()), int(p.sum())) for p in parts]
    apart = sum(clips * abs(sure - share) for sure, share, clips in table)
    return table, 100 * apart / len(said)


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


def tables(found: Predictions, classes: tuple[str, ...], groups: tuple[str, ...]) -> dict[str, Any]:
    """Everything a report says about a set of clips, as plain values."""
    said, true, count = found.predicted, found.labels, len(classes)
    recall = recalls(said, true, count).tolist()
    return scores(said, true, count) | {
        "classes": list(classes),
        "recall": [None if math.isnan(value) else 100 * value for value in recall],
        "groups": by_group(found, groups, count),
        "confusion": confusion(said, true, count).tolist(),
        "labels": true.tolist(),
        "predicted": said.tolist(),
        "group_of": found.groups.tolist(),
    }
