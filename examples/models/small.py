"""A small video network for the built-in clips: four stages of (2+1)D residual blocks."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor, nn

from hdf_modules import Stage


class Block(nn.Module):
    """A 1×3×3 and a 3×1×1 convolution beside a shortcut (Tran et al., CVPR 2018)."""

    def __init__(self, inputs: int, outputs: int, stride: int) -> None:
        super().__init__()
        steps = (1, stride, stride)
        self.space = nn.Conv3d(inputs, outputs, (1, 3, 3), steps, (0, 1, 1), bias=False)
        self.time = nn.Conv3d(outputs, outputs, (3, 1, 1), padding=(1, 0, 0), bias=False)
        self.norm1, self.norm2 = nn.BatchNorm3d(outputs), nn.BatchNorm3d(outputs)
        self.shortcut = nn.Conv3d(inputs, outputs, 1, steps, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        y = self.norm2(self.time(F.relu(self.norm1(self.space(x)))))
        return F.relu(y + self.shortcut(x))


class SmallVideoNet(nn.Module):
    """Stem, four stages that keep the time axis, average pooling, a linear classifier."""

    def __init__(self, num_classes: int, widths: tuple[int, ...] = (16, 24, 48, 96)) -> None:
        super().__init__()
        self.stem = nn.Sequential(
            nn.Conv3d(3, widths[0], (1, 5, 5), (1, 2, 2), (0, 2, 2), bias=False),
            nn.BatchNorm3d(widths[0]),
            nn.ReLU(inplace=True),
        )
        inputs = (widths[0], *widths[:-1])
        strides = (1, *(2,) * (len(widths) - 1))
        self.stages = nn.Sequential(
            *(Block(i, o, s) for i, o, s in zip(inputs, widths, strides, strict=True))
        )
        self.dropout = nn.Dropout(0.2)
        self.head = nn.Linear(widths[-1], num_classes)
        self.attention_stages = [Stage(f"stages.{i}", width) for i, width in enumerate(widths)]

    def forward(self, x: Tensor) -> Tensor:
        x = self.stages(self.stem(x))
        return self.head(self.dropout(x.mean((2, 3, 4))))
