"""An image model on video: frames folded into the batch, logits averaged over time."""

from __future__ import annotations

import timm
from einops import rearrange, reduce
from torch import Tensor, nn


class FrameModel(nn.Module):
    """Any timm model on the frames of a clip; the features of the frames are averaged.

    Args:
        name: of the timm model.
        num_classes: outputs.
        num_frames: frames per clip.
        pretrained: load the published weights.
    """

    def __init__(
        self, name: str, num_classes: int, num_frames: int, pretrained: bool = False
    ) -> None:
        super().__init__()
        self.num_frames = num_frames
        self.backbone = timm.create_model(name, pretrained=pretrained, num_classes=0)
        self.head = nn.Linear(self.backbone.num_features, num_classes)

    def forward(self, x: Tensor) -> Tensor:
        frames = self.backbone(rearrange(x, "b c t h w -> (b t) c h w"))
        return self.head(reduce(frames, "(b t) d -> b d", "mean", t=self.num_frames))
