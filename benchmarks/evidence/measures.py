"""WAR, UAR and recalls of a pool of clips, and the degradation by corruption; in percent."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from torch import Tensor

from benchmarks.evidence.clips import Pool
from benchmarks.evidence.corruptions import CORRUPTIONS, SEVERITIES
from examples.train.metrics import Predictions, recalls


def measures(found: Predictions, pool: Pool) -> dict[str, Any]:
    """WAR, UAR, recall of each class, UAR of each source and of each group of people.

    The clips hold as many of each class; WAR weights the recalls by the pool's mix, so it is the
    accuracy on clips in that mix.
    """
    classes = len(pool.classes)
    recall = 100 * recalls(found.predicted, found.labels, classes).numpy()

    def uar(mine: Tensor) -> float:
        part = recalls(found.predicted[mine], found.labels[mine], classes)
        return round(float(100 * part.nanmean()), 2)

    cohorts = sorted({name for names in pool.cohorts for name in names})
    return {
        "war": round(float(recall @ np.array(pool.mix)), 2),
        "uar": round(float(recall.mean()), 2),
        "recall": dict(zip(pool.classes, recall.round(2).tolist(), strict=True)),
        "sources": {name: uar(found.groups == group) for group, name in enumerate(pool.groups)},
        "cohorts": {
            name: uar(torch.tensor([name in names for names in pool.cohorts])) for name in cohorts
        },
    }


def cosines(found: Predictions) -> dict[str, float]:
    """Mean cosine of the features of two clips, of the same class and of two."""
    unit = torch.nn.functional.normalize(found.features, dim=1)
    similarity = unit @ unit.T
    same = found.labels[:, None] == found.labels
    pairs = same & ~torch.eye(len(same), dtype=torch.bool)
    means = {"same": similarity[pairs].mean(), "other": similarity[~same].mean()}
    return {name: round(float(mean), 3) for name, mean in means.items()}


def degradation(uar: Callable[[str, int], float]) -> dict[str, Any]:
    """UAR of clean clips, of each corruption at each severity, and the mean loss.

    Args:
        uar: from corruption and severity to the UAR of the same clips; severity 0 is clean.
    """
    clean = uar(next(iter(CORRUPTIONS)), 0)
    table = {name: [uar(name, severity) for severity in SEVERITIES] for name in CORRUPTIONS}
    mean = float(np.mean(list(table.values())))
    return {"clean": clean, "uar": table, "mean": round(mean, 2), "loss": round(clean - mean, 2)}
