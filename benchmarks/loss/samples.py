"""What single samples get: their worst-case weights, and how many of them a positive."""

from __future__ import annotations

import math
from argparse import Namespace

import torch
from torch import Tensor

from benchmarks.measure import case, interleaved, medians
from benchmarks.record import Rows
from examples.train.data.expressions import DFEW_MIX
from hdf_modules.functional import dro_weights
from hdf_modules.loss.memory import FeatureMemory

BATCH, BATCHES = 8, 500


def bisection(losses: Tensor, objective: str, radius: float) -> Tensor:
    """What a solver without closed form does: bisect η or log 1/τ, 60 steps, in float64."""
    losses = losses.double() - losses.max()
    n, width = len(losses), -float(losses.min())
    low, high = (-40.0, 40.0) if objective == "kl-ball" else (-width * (1 + n), 0.0)
    for _ in range(60):
        middle = (low + high) / 2
        if objective == "kl-ball":
            weights = (losses * math.exp(middle)).softmax(0)
            spread = float((weights * (weights * n).clamp(min=1e-300).log()).sum())
        else:
            weights = (losses - middle).clamp(min=0)
            weights = weights / weights.sum()
            spread = float(((n * weights - 1) ** 2).sum() / (2 * n))
        low, high = (middle, high) if spread < radius else (low, middle)
    return weights


def weight_rows(options: Namespace) -> Rows:
    rows = []
    for n in (32, 1024, 65536):
        losses = torch.randn(n, generator=torch.Generator().manual_seed(n)).double()
        for objective in ("chi2", "kl-ball"):
            solvers = {"exact": dro_weights, "bisection": bisection}
            cases = {name: case(s, losses, objective, 0.5) for name, s in solvers.items()}
            ms = medians(interleaved(cases, "cpu", 25, calls=1))
            gap = dro_weights(losses, objective, 0.5) - bisection(losses, objective, 0.5)
            difference = float(gap.abs().max() * n)  # relative to the uniform weight
            rows.append({"n": n, "objective": objective, **ms, "difference": difference})
    return rows


def positive_rows(options: Namespace) -> Rows:
    torch.manual_seed(0)
    drawn = torch.multinomial(torch.tensor(DFEW_MIX), BATCH * BATCHES, replacement=True)
    rows = []
    for size in (0, 8, 32, 128, 512):
        memory, found = FeatureMemory(size), torch.zeros(len(DFEW_MIX))
        for labels in drawn.split(BATCH):
            past = memory(torch.zeros(BATCH, 1), labels, advance=True)
            keys = labels if past is None else torch.cat([labels, past[1]])
            satisfied = (labels[:, None] == keys).sum(1) > 1  # more than itself
            found += torch.bincount(labels[satisfied], minlength=len(found))
        rarest = int(torch.tensor(DFEW_MIX).argmin())
        share = found.sum() / len(drawn)
        of_rarest = found[rarest] / (drawn == rarest).sum()
        rows.append({"memory": size, "share": float(share), "rarest": float(of_rarest)})
    return rows
