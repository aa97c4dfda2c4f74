"""The library in Accelerate: any number of processes, mixed precision.

    accelerate launch accelerate_fit.py --mixed-precision bf16 --clip-grad 1

Needs the package and accelerate alone: it draws its own clips, as quickstart.py does. The lines
marked with + are what SAM adds to the loop.
"""

from __future__ import annotations

import argparse
from contextlib import nullcontext
from typing import Any

import torch
from accelerate import Accelerator
from accelerate.utils import set_seed
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

from hdf_modules import SAM, HeterogeneityAwareLoss, Stage, attach, with_features

MOTIONS = ((0, 0), (-1, 0), (1, 0), (0, -1), (0, 1))  # pixels per frame, down and right
FRAMES = 8


def draw(count: int, side: int = 24) -> TensorDataset:
    """Draw noisy textures (count, 1, time, height, width); the class of each is how it moves."""
    labels = torch.arange(count) % len(MOTIONS)
    textures = nn.functional.avg_pool2d(torch.randn(count, 1, side, side), 3, 1, 1)
    clips = torch.zeros(count, 1, FRAMES, side, side)
    for clip, texture, label in zip(clips, textures, labels, strict=True):
        for t in range(FRAMES):
            clip[:, t] = texture.roll([t * step for step in MOTIONS[label]], (1, 2))
    return TensorDataset(clips + 0.8 * torch.randn_like(clips), labels)


def block(inputs: int, outputs: int) -> nn.Module:
    """One stage of the network; it halves height and width."""
    convolution = nn.Conv3d(inputs, outputs, 3, stride=(1, 2, 2), padding=1, bias=False)
    return nn.Sequential(convolution, nn.BatchNorm3d(outputs), nn.ReLU())


def train_epoch(
    accelerator: Accelerator,
    model: nn.Module,
    criterion: HeterogeneityAwareLoss,
    optimizer: Any,
    loader: DataLoader[Any],
    *,
    clip_grad: float,
) -> float:
    """Train one epoch; returns the last loss."""

    def loss_of(clips: Tensor, labels: Tensor) -> Tensor:
        logits, features = model(clips)
        return criterion(logits, labels, features)

    sam: SAM = optimizer.optimizer  # + Accelerate wraps it; step the wrapper, ascend this one
    parallel = accelerator.num_processes > 1
    for batch in loader:
        optimizer.zero_grad()
        with accelerator.no_sync(model) if parallel else nullcontext():  # + ε of each process
            loss = loss_of(*batch)
            accelerator.backward(loss)
        with sam.ascend(criterion, accelerator.scaler):  # +
            accelerator.backward(loss_of(*batch))  # +
        accelerator.clip_grad_norm_(model.parameters(), clip_grad)
        optimizer.step()
    return loss.item()


@torch.no_grad()
def accuracy(accelerator: Accelerator, model: nn.Module, loader: DataLoader[Any]) -> float:
    """Share of right answers over all processes in percent, which is the WAR of the field."""
    model.eval()
    right = [
        accelerator.gather_for_metrics(model(clips)[0].argmax(1) == labels)
        for clips, labels in loader
    ]
    model.train()
    return 100 * torch.cat(right).float().mean().item()


def main(arguments: list[str] | None = None, **accelerator_options: Any) -> tuple[float, float]:
    """Run the command line; more options go to the accelerator. Returns last loss and WAR."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--clips", type=int, default=400, help="training clips")
    parser.add_argument("--epochs", type=int, default=8)
    parser.add_argument("--mixed-precision", default="no", choices=("no", "bf16", "fp16"))
    parser.add_argument("--clip-grad", type=float, default=float("inf"), help="largest norm")
    options = parser.parse_args(arguments)
    accelerator = Accelerator(mixed_precision=options.mixed_precision, **accelerator_options)
    set_seed(0)
    loaders = DataLoader(draw(options.clips), 16, shuffle=True), DataLoader(draw(200), 100)

    head = nn.Sequential(nn.AdaptiveAvgPool3d(1), nn.Flatten(), nn.Linear(32, len(MOTIONS)))
    network = nn.Sequential(block(1, 16), block(16, 32), *head)
    stages = [Stage("0", channels=16), Stage("1", channels=32)]
    model = with_features(attach(network, FRAMES, stages=stages))
    criterion = HeterogeneityAwareLoss().to(accelerator.device)
    sam = SAM(torch.optim.AdamW(model.parameters(), lr=3e-3), model=model)  # +
    model, optimizer, train, val = accelerator.prepare(model, sam, *loaders)
    loss = war = float("nan")
    for epoch in range(options.epochs):
        parts = accelerator, model, criterion, optimizer, train
        loss = train_epoch(*parts, clip_grad=options.clip_grad)
        war = accuracy(accelerator, model, val)
        accelerator.print(f"epoch {epoch + 1}: loss {loss:.3f}, held-out WAR {war:.1f}")
    return loss, war


if __name__ == "__main__":
    main()
