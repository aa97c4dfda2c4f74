"""Backbones of the examples, by name, with attention attached where it is asked for."""

from __future__ import annotations

import warnings
from collections.abc import Callable

import timm
import torch
import torch.nn.functional as F
from einops import rearrange, reduce
from torch import Tensor, nn
from torchvision.models.video import r3d_18

from hdf_modules import DistributionalAttention, HDFError, Stage, attach
from hdf_modules.errors import nearest

_X3D_WEIGHTS = "https://dl.fbaipublicfiles.com/pytorchvideo/model_zoo/kinetics/X3D_S.pyth"


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


def x3d_s(num_classes: int, pretrained: bool = False) -> nn.Module:
    """Build it with logits for outputs; the time axis keeps its length, stages have 24 to 192 maps.

    Args:
        num_classes: outputs.
        pretrained: load the weights trained on Kinetics-400, all but the classifier's.
    """
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)  # its layers call torch.jit.script
        from pytorchvideo.models.x3d import create_x3d  # noqa: PLC0415
    # the softmax that it would end with is active in training too; SiLU is its Swish, compiled
    model = create_x3d(model_num_class=num_classes, head_activation=None, inner_act=nn.SiLU)
    model.blocks[-1].pool.pool = nn.AdaptiveAvgPool3d(1)
    if pretrained:
        _load(model, torch.hub.load_state_dict_from_url(_X3D_WEIGHTS, map_location="cpu"))
    return model


def _load(model: nn.Module, checkpoint: dict[str, dict[str, torch.Tensor]]) -> None:
    own = {name: value for name, value in model.state_dict().items() if "blocks.5.proj" in name}
    model.load_state_dict(checkpoint["model_state"] | own)


def _r3d_18(num_classes: int, pretrained: bool) -> nn.Module:
    model = r3d_18(weights="DEFAULT" if pretrained else None)
    model.fc = nn.Linear(model.fc.in_features, num_classes)
    return model


_BUILDERS: dict[str, Callable[[int, bool], nn.Module]] = {
    "small": lambda num_classes, pretrained: SmallVideoNet(num_classes),
    "r3d_18": _r3d_18,
    "x3d_s": x3d_s,
}
NAMES = (*_BUILDERS, "timm/<name>")


def build(
    name: str, num_classes: int, num_frames: int = 16, *, pretrained: bool = False
) -> nn.Module:
    """Build a bare backbone that maps (batch, 3, time, height, width) to logits.

    Args:
        name: ``small``, ``r3d_18``, ``x3d_s``, or ``timm/`` and any image model of timm, whose
            frame features are averaged.
        num_classes: outputs.
        num_frames: frames per clip.
        pretrained: load the published weights (needs the network the first time).

    Raises:
        HDFError: for an unknown name.
    """
    if name.startswith("timm/"):
        return FrameModel(name.removeprefix("timm/"), num_classes, num_frames, pretrained)
    if name not in _BUILDERS:
        raise HDFError("model", "one of " + ", ".join(NAMES), repr(name), nearest(name, NAMES))
    return _BUILDERS[name](num_classes, pretrained)


def add_attention(
    model: nn.Module,
    num_frames: int,
    factory: Callable[..., nn.Module] = DistributionalAttention,
) -> nn.Module:
    """Attach distributional attention behind every stage of a backbone of this package."""
    backbone = model.backbone if isinstance(model, FrameModel) else model
    stages = getattr(model, "attention_stages", None)
    attach(backbone, num_frames, stages=stages, factory=factory)
    return model
