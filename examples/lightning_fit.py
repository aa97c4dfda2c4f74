"""The library in Lightning: optimisation by hand, because SAM takes two passes.

    python lightning_fit.py --precision bf16-mixed --clip-grad 1

Needs the package and lightning alone: it draws its own clips, as quickstart.py does. The lines
marked with + are what SAM adds to a module that optimises by hand.
"""

from __future__ import annotations

import argparse
from typing import Any

import lightning
import torch
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


class Recogniser(lightning.LightningModule):
    """A small video network with attention, the heterogeneity-aware loss and SAM."""

    def __init__(self, clip_grad: float) -> None:
        super().__init__()
        self.automatic_optimization = False
        self.clip_grad = clip_grad
        head = nn.Sequential(nn.AdaptiveAvgPool3d(1), nn.Flatten(), nn.Linear(32, len(MOTIONS)))
        network = nn.Sequential(block(1, 16), block(16, 32), *head)
        stages = [Stage("0", channels=16), Stage("1", channels=32)]
        self.model = with_features(attach(network, FRAMES, stages=stages))
        self.criterion = HeterogeneityAwareLoss()

    def configure_optimizers(self) -> torch.optim.Optimizer:
        """AdamW under SAM."""
        return SAM(torch.optim.AdamW(self.parameters(), lr=3e-3), model=self.model)  # +

    def training_step(self, batch: list[Tensor], _: int) -> None:
        """Both passes, clipping, the step."""
        sam: Any = self.optimizers()
        sam.zero_grad()
        loss = self.loss(batch)
        self.manual_backward(loss)
        scaler = getattr(self.trainer.precision_plugin, "scaler", None)  # + of 16-mixed
        with sam.ascend(self.criterion, scaler):  # +
            self.manual_backward(self.loss(batch))  # +
        if scaler is not None:
            scaler.unscale_(sam.optimizer)
        nn.utils.clip_grad_norm_(self.parameters(), self.clip_grad)
        sam.step()
        self.log_dict({"loss": loss.detach(), "gradient_norm": sam.grad_norm}, prog_bar=True)
        self.log("lambda_ce", self.criterion.terms["lambda_ce"])

    def loss(self, batch: list[Tensor]) -> Tensor:
        """One forward pass."""
        clips, labels = batch
        logits, features = self.model(clips)
        return self.criterion(logits, labels, features)

    def validation_step(self, batch: list[Tensor], _: int) -> None:
        """Accuracy, which is the WAR of the field."""
        clips, labels = batch
        right = self.model(clips)[0].argmax(1) == labels
        self.log("val_war", 100 * right.float().mean(), batch_size=len(right), prog_bar=True)


def main(arguments: list[str] | None = None, **trainer_options: Any) -> lightning.Trainer:
    """Run the command line; more options go to the trainer."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--clips", type=int, default=400, help="training clips")
    parser.add_argument("--epochs", type=int, default=8)
    parser.add_argument("--precision", default="32-true", help="as Lightning names it")
    parser.add_argument("--clip-grad", type=float, default=float("inf"), help="largest norm")
    options = parser.parse_args(arguments)
    lightning.seed_everything(0)
    train, val = DataLoader(draw(options.clips), 16, shuffle=True), DataLoader(draw(200), 100)
    trainer = lightning.Trainer(
        max_epochs=options.epochs, precision=options.precision, **trainer_options
    )
    trainer.fit(Recogniser(options.clip_grad), train, val)
    return trainer


if __name__ == "__main__":
    main()
