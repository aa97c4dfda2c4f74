"""The parts of the loss's benchmark about single samples: their weights and their positives."""

from __future__ import annotations

import argparse
import math
import statistics
import time
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from examples.train.data.expressions import DFEW_MIX
from hdf_modules.functional import dro_weights
from hdf_modules.loss.memory import FeatureMemory

BATCH, BATCHES = 8, 500

Rows = list[dict[str, Any]]


def seconds(device: str, work: Callable[..., Any], *arguments: Any) -> float:
    start = time.perf_counter()
    work(*arguments)
    if device == "cuda":
        torch.cuda.synchronize()
    return time.perf_counter() - start


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


def weight_rows(options: argparse.Namespace) -> Rows:
    rows = []
    for n in (32, 1024, 65536):
        losses = torch.randn(n, generator=torch.Generator().manual_seed(n)).double()
        for objective in ("chi2", "kl-ball"):
            times: dict[str, list[float]] = {"exact": [], "bisection": []}
            for _ in range(25):
                for name, solve in (("exact", dro_weights), ("bisection", bisection)):
                    times[name].append(seconds("cpu", solve, losses, objective, 0.5))
            gap = dro_weights(losses, objective, 0.5) - bisection(losses, objective, 0.5)
            row = {name: 1e3 * statistics.median(each) for name, each in times.items()}
            difference = float(gap.abs().max() * n)  # relative to the uniform weight
            rows.append({"n": n, "objective": objective, **row, "difference": difference})
    return rows


def positive_rows(options: argparse.Namespace) -> Rows:
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
