"""One training step with and without SAM."""

from __future__ import annotations

import copy
from argparse import Namespace
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import AdamW
from torchvision.models import resnet18
from torchvision.models.video import r3d_18

from benchmarks.machine import missing
from benchmarks.measure import case, interleaved, medians, ratio
from examples.train.models import SmallVideoNet
from hdf_modules import SAM

METHODS = ("plain", "twice", "peer", "sam")
PEER = "peer", "pytorch_optimizer"
RATIOS = (("twice", "plain"), ("peer", "plain"), ("sam", "plain"), ("sam", "peer"))
# Builder and input shape; on a GPU the batch is eight times as large.
MODELS: dict[str, tuple[Callable[..., nn.Module], tuple[int, ...]]] = {
    "small": (SmallVideoNet, (8, 3, 8, 40, 40)),
    "resnet18": (resnet18, (4, 3, 112, 112)),
    "r3d_18": (r3d_18, (2, 3, 4, 56, 56)),
}


def stepper(method: str, model: nn.Module, x: Tensor, y: Tensor) -> Callable[[], None]:
    """Return what takes one training step."""
    optimizer: Any = AdamW(model.parameters(), lr=1e-4)
    if method == "sam":
        optimizer = SAM(optimizer, rho=0.05, model=model)
    if method == "peer":
        from pytorch_optimizer import SAM as PEER  # noqa: PLC0415

        optimizer = PEER(model.parameters(), AdamW, rho=0.05, lr=1e-4)

    def closure() -> Tensor:
        optimizer.zero_grad()
        loss = nn.functional.cross_entropy(model(x), y)
        loss.backward()
        return loss

    def step() -> None:
        if method == "sam":
            optimizer.step(closure)
            return
        closure()
        if method == "peer":
            optimizer.step(closure)
            return
        if method == "twice":
            closure()
        optimizer.step()

    return step


def setting(name: str, device: str) -> tuple[nn.Module, Tensor, Tensor]:
    """Return a model and its batch."""
    torch.manual_seed(0)
    build, shape = MODELS[name]
    shape = (shape[0] * (8 if device == "cuda" else 1), *shape[1:])
    x, y = torch.randn(shape), torch.randint(7, shape[:1])
    return build(num_classes=7).to(device), x.to(device), y.to(device)


def step_rows(options: Namespace) -> Iterator[dict[str, Any]]:
    """One row a model; a peer that is not installed is left out."""
    left_out = PEER[:1] if missing(*PEER) else ()
    methods = [method for method in METHODS if method not in left_out]
    ratios = [pair for pair in RATIOS if not {*pair} & {*left_out}]
    for name in options.models:
        model, x, y = setting(name, options.device)
        steps = {method: case(stepper(method, copy.deepcopy(model), x, y)) for method in methods}
        times = interleaved(steps, options.device, options.rounds, calls=1)
        found = {f"{a}/{b}": ratio(times, a, b) for a, b in ratios}
        size = {"model": name, "input": list(x.shape), "rounds": options.rounds}
        yield size | {"ms": medians(times), "ratios": found}
