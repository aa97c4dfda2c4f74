"""Train on the drawn face clips with Accelerate: any number of processes, mixed precision.

    accelerate launch examples/accelerate_fit.py --mixed-precision bf16 --clip-grad 1

The lines marked with + are what SAM adds to the loop.
"""

from __future__ import annotations

import argparse
from contextlib import nullcontext
from typing import Any

import torch
from accelerate import Accelerator
from torch import Tensor, nn
from torch.utils.data import DataLoader

from examples.train import models
from examples.train.data.clips import ClipDataset
from examples.train.data.expressions import CLASSES
from examples.train.data.synthetic import SyntheticClips
from hdf_modules import SAM, HeterogeneityAwareLoss, with_features


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

    def loss_of(batch: dict[str, Tensor]) -> Tensor:
        logits, features = model(batch["clip"])
        return criterion(logits, batch["label"], features)

    sam: SAM = optimizer.optimizer  # + Accelerate wraps it; step the wrapper, ascend this one
    parallel = accelerator.num_processes > 1
    for batch in loader:
        optimizer.zero_grad()
        with accelerator.no_sync(model) if parallel else nullcontext():  # + ε of each process
            loss = loss_of(batch)
            accelerator.backward(loss)
        with sam.ascend(criterion, accelerator.scaler):  # +
            accelerator.backward(loss_of(batch))  # +
        accelerator.clip_grad_norm_(model.parameters(), clip_grad)
        optimizer.step()
    return loss.item()


@torch.no_grad()
def accuracy(accelerator: Accelerator, model: nn.Module, loader: DataLoader[Any]) -> float:
    """Share of right answers over all processes in percent, which is the WAR of the field."""
    model.eval()
    right = [
        accelerator.gather_for_metrics(model(batch["clip"])[0].argmax(1) == batch["label"])
        for batch in loader
    ]
    model.train()
    return 100 * torch.cat(right).float().mean().item()


def main(arguments: list[str] | None = None, **accelerator_options: Any) -> tuple[float, float]:
    """Run the command line; more options go to the accelerator. Returns last loss and WAR."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--clips", type=int, default=400, help="training clips")
    parser.add_argument("--size", type=int, default=40, help="side of the frames in pixels")
    parser.add_argument("--frames", type=int, default=16, help="frames per clip")
    parser.add_argument("--epochs", type=int, default=5)
    parser.add_argument("--batch-size", type=int, default=16)
    parser.add_argument("--mixed-precision", default="no", choices=("no", "bf16", "fp16"))
    parser.add_argument("--clip-grad", type=float, default=float("inf"))
    options = parser.parse_args(arguments)
    accelerator = Accelerator(mixed_precision=options.mixed_precision, **accelerator_options)
    loaders = []
    for split, length in (("train", options.clips), ("val", max(1, options.clips // 4))):
        clips, train = SyntheticClips(split, length, options.size), split == "train"
        kept = ClipDataset(clips, options.frames, training=train, cache=clips.render())
        loaders.append(DataLoader(kept, options.batch_size, shuffle=train, drop_last=train))
    net = models.build("small", len(CLASSES), options.frames)
    model = with_features(models.add_attention(net, options.frames))
    criterion = HeterogeneityAwareLoss(alpha=10.0).to(accelerator.device)
    sam = SAM(torch.optim.AdamW(model.parameters(), lr=3e-3), model=model)  # +
    model, optimizer, train_loader, val = accelerator.prepare(model, sam, *loaders)
    loss = war = float("nan")
    for epoch in range(options.epochs):
        parts = accelerator, model, criterion, optimizer, train_loader
        loss = train_epoch(*parts, clip_grad=options.clip_grad)
        war = accuracy(accelerator, model, val)
        accelerator.print(f"epoch {epoch + 1}: loss {loss:.3f}, validation WAR {war:.1f}")
    return loss, war


if __name__ == "__main__":
    main()
