"""Train on the drawn face clips with Lightning: manual optimisation, because SAM takes two passes.

    python examples/lightning_fit.py --precision bf16-mixed --clip-grad 1

The lines marked with + are what SAM adds to a module that optimises by hand.
"""

from __future__ import annotations

import argparse
from typing import Any

import lightning
import torch
from torch import Tensor
from torch.utils.data import DataLoader

from examples.train import models
from examples.train.data.clips import ClipDataset
from examples.train.data.expressions import CLASSES
from examples.train.data.synthetic import SyntheticClips
from hdf_modules import SAM, HeterogeneityAwareLoss, with_features


class Recogniser(lightning.LightningModule):
    """A small video network with attention, the heterogeneity-aware loss and SAM."""

    def __init__(self, frames: int, clip_grad: float = float("inf")) -> None:
        super().__init__()
        self.automatic_optimization = False
        self.clip_grad = clip_grad
        self.model = with_features(
            models.add_attention(models.build("small", len(CLASSES), frames), frames)
        )
        self.criterion = HeterogeneityAwareLoss(alpha=10.0)

    def configure_optimizers(self) -> torch.optim.Optimizer:
        """AdamW under SAM."""
        return SAM(torch.optim.AdamW(self.parameters(), lr=3e-3), model=self.model)  # +

    def training_step(self, batch: dict[str, Tensor], _: int) -> None:
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
        torch.nn.utils.clip_grad_norm_(self.parameters(), self.clip_grad)
        sam.step()
        self.log_dict({"loss": loss.detach(), "gradient_norm": sam.grad_norm}, prog_bar=True)
        self.log("lambda_ce", self.criterion.scaling.lambda_ce)

    def loss(self, batch: dict[str, Tensor]) -> Tensor:
        """One forward pass."""
        logits, features = self.model(batch["clip"])
        return self.criterion(logits, batch["label"], features)

    def validation_step(self, batch: dict[str, Tensor], _: int) -> None:
        """Accuracy, which is the WAR of the field."""
        right = self.model(batch["clip"])[0].argmax(1) == batch["label"]
        self.log("val_war", 100 * right.float().mean(), batch_size=len(right), prog_bar=True)


def main(arguments: list[str] | None = None, **trainer_options: Any) -> lightning.Trainer:
    """Run the command line; more options go to the trainer."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--clips", type=int, default=400, help="training clips")
    parser.add_argument("--size", type=int, default=40, help="side of the frames in pixels")
    parser.add_argument("--frames", type=int, default=16, help="frames per clip")
    parser.add_argument("--epochs", type=int, default=5)
    parser.add_argument("--batch-size", type=int, default=16)
    parser.add_argument("--precision", default="32-true", help="as Lightning names it")
    parser.add_argument("--clip-grad", type=float, default=float("inf"))
    options = parser.parse_args(arguments)
    loaders = []
    for split, length in (("train", options.clips), ("val", max(1, options.clips // 4))):
        clips, train = SyntheticClips(split, length, options.size), split == "train"
        kept = ClipDataset(clips, options.frames, training=train, cache=clips.render())
        loaders.append(DataLoader(kept, options.batch_size, shuffle=train, drop_last=train))
    trainer = lightning.Trainer(
        max_epochs=options.epochs, precision=options.precision, **trainer_options
    )
    trainer.fit(Recogniser(options.frames, options.clip_grad), *loaders)
    return trainer


if __name__ == "__main__":
    main()
