"""How often the host waits for the device in a step of the loss, alone and inside SAM."""

from __future__ import annotations

from argparse import Namespace
from collections.abc import Callable
from typing import Any
from unittest.mock import patch

import torch
from torch import nn

from benchmarks.record import Rows
from benchmarks.waits import counted
from hdf_modules import SAM, HeterogeneityAwareLoss
from hdf_modules.loss import KL, Chi2, CVaR, GroupDRO, KLBall, Ramp, RobustContrastive, Trim, dro

N, K, D = 32, 7, 16
# What the loss is made of, and how the batch differs from class ids.
SETTINGS: dict[str, tuple[Callable[[], HeterogeneityAwareLoss], str]] = {
    "plain": (HeterogeneityAwareLoss, ""),
    "memory": (lambda: _contrasting(memory=64), ""),
    "memory, across groups": (lambda: _contrasting(memory=64, across_groups=True), "groups"),
    "soft labels": (HeterogeneityAwareLoss, "soft"),
    "soft labels, memory, across groups": (
        lambda: _contrasting(memory=64, across_groups=True),
        "soft groups",
    ),
    "ignored labels": (lambda: HeterogeneityAwareLoss(nn.CrossEntropyLoss(ignore_index=0)), ""),
    "kl, ramp": (lambda: HeterogeneityAwareLoss(weighting=KL(Ramp(2.0, 1.0, steps=9))), ""),
    "kl-ball": (lambda: HeterogeneityAwareLoss(weighting=KLBall()), ""),
    "chi2": (lambda: HeterogeneityAwareLoss(weighting=Chi2()), ""),
    "cvar, trim": (lambda: HeterogeneityAwareLoss(weighting=Trim(CVaR(), 0.1)), ""),
    "group": (lambda: HeterogeneityAwareLoss(weighting=GroupDRO()), "groups"),
    "group by class": (
        lambda: HeterogeneityAwareLoss(weighting=GroupDRO(by_class=True)),
        "groups",
    ),
}


def _contrasting(**options: Any) -> HeterogeneityAwareLoss:
    return HeterogeneityAwareLoss(contrastive=RobustContrastive(**options))


class Net(nn.Module):
    """Logits and features, behind dropout and running statistics."""

    def __init__(self) -> None:
        super().__init__()
        self.body = nn.Sequential(nn.Linear(D, D), nn.BatchNorm1d(D), nn.ReLU(), nn.Dropout(0.1))
        self.head = nn.Linear(D, K)

    def forward(self, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        features = self.body(x)
        return self.head(features), features


def stepper(name: str, device: str, *, sam: bool = True, **options: Any) -> Callable[[], None]:
    """Return what takes one training step in a setting; where there is no SAM, λ follows g too."""
    build, kind = SETTINGS[name]
    torch.manual_seed(0)
    model, criterion = Net().to(device), build().to(device)
    x, target = torch.randn(N, D, device=device), torch.arange(N, device=device) % K
    groups = torch.arange(N, device=device) % 3 if "groups" in kind else None
    if "soft" in kind:
        target = nn.functional.one_hot(target, K) * 0.9 + 0.1 / K
    base = torch.optim.SGD(model.parameters(), lr=0.1)
    optimizer: Any = SAM(base, model=model, criterion=criterion, **options) if sam else base

    def closure() -> torch.Tensor:
        optimizer.zero_grad()
        logits, features = model(x)
        loss: torch.Tensor = criterion(logits, target, features, groups)
        loss.backward()
        return loss

    def step() -> None:
        # On a processor too, the way that devices take.
        with patch.object(dro, "_waits", lambda losses: True):
            if sam:
                optimizer.step(closure)
                return
            closure()
            optimizer.step()

    return step


def wait_rows(options: Namespace) -> Rows:
    """Waits of the third step, by name."""
    rows = []
    for name in SETTINGS:
        found = {}
        for kind in ("loss", "loss and SAM"):
            step = stepper(name, options.device, sam=kind != "loss")
            step()
            step()
            found[kind] = dict(counted(step))
        rows.append({"setting": name, **found})
    return rows
