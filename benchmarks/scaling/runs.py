"""Training runs that write down g and λ at every step."""

from __future__ import annotations

from argparse import Namespace
from typing import Any

import torch
from torch.utils.data import DataLoader

from benchmarks.record import Rows
from examples.train.data.clips import ClipDataset
from examples.train.data.synthetic import SyntheticClips
from examples.train.models import SmallVideoNet
from hdf_modules import SAM, HeterogeneityAwareLoss, with_features
from hdf_modules.loss import GradientNorm

ALPHA, BETA, FLOOR = 10.0, 0.1, 0.1  # the floor is low, to show what g does to λ_CE
SETTINGS = ("as published", "EMA", "√P", "√(P/P₀)")
SERIES = {"gradient_norm": "g", "lambda_ce": "λ_CE", "lambda_sc": "λ_SC"}


def run_rows(options: Namespace) -> Rows:
    """One row a width and setting."""
    source = SyntheticClips("train", options.clips, options.size)
    clips = ClipDataset(source, options.frames, training=True, cache=source.render())
    reference, rows = parameters(options.widths[0]), []
    for width in options.widths:
        size = parameters(width)
        for setting in SETTINGS:
            found = balance(setting, size, reference)
            row = {"model": f"width {width}", "parameters": size, "setting": setting, **found}
            rows.append(row | {"steps": train(width, clips, options.epochs, found)})
    return rows


def network(width: int) -> SmallVideoNet:
    """Return the examples' network with this many channels in its first stage."""
    widths = tuple(round(width * factor) for factor in (1, 1.5, 3, 6))
    return SmallVideoNet(7, widths)


def parameters(width: int) -> int:
    return sum(p.numel() for p in network(width).parameters())


def balance(setting: str, size: int, reference: int) -> dict[str, float]:
    """Return the loss's options of a setting, for a model of ``size`` parameters."""
    return {
        "as published": {},
        "EMA": {"smoothing": 0.9},
        "√P": {"unit": size**0.5},
        "√(P/P₀)": {"unit": (size / reference) ** 0.5},
    }[setting]


def train(
    width: int, clips: ClipDataset, epochs: int, options: dict[str, float]
) -> dict[str, list[float]]:
    """Train one model; return g and both λ of every step, and the classification term."""
    torch.manual_seed(0)
    model = with_features(network(width))
    parts = GradientNorm(ALPHA, BETA, **{"floor": FLOOR, **options})
    criterion = HeterogeneityAwareLoss(balance=parts)
    sam = SAM(torch.optim.AdamW(model.parameters(), lr=1e-3), model=model)
    loader = DataLoader(clips, 8 if len(clips) < 64 else 16, shuffle=True, drop_last=True)
    steps: dict[str, list[float]] = {name: [] for name in (*SERIES, "classification")}
    for clips.epoch in range(epochs):
        for batch in loader:
            sam.zero_grad()
            logits, features = model(batch["clip"])
            criterion(logits, batch["label"], features).backward()
            steps["classification"].append(float(criterion.terms["classification"]))
            with sam.ascend(criterion):
                logits, features = model(batch["clip"])
                criterion(logits, batch["label"], features).backward()
            sam.step()
            now: Any = criterion.balance
            found: tuple[Any, ...] = (sam.grad_norm, now.lambda_ce, now.lambda_sc)
            for name, value in zip(SERIES, found, strict=True):
                steps[name].append(float(value))
    return {name: [float(f"{value:.7g}") for value in series] for name, series in steps.items()}
