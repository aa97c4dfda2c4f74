"""The four kinds of backbone that everything around a model is tried on, attached, and small."""

from __future__ import annotations

import timm
import torch
from timm.models.swin_transformer import SwinTransformer
from torch import nn
from torchvision.models.video.resnet import BasicBlock, BasicStem, Conv3DSimple, VideoResNet

from hdf_modules import attach, detach
from hdf_modules.backbones.hooks import ties

FRAMES = 4
CLASSES = 5


def cnn() -> nn.Module:
    """Return a ResNet of images."""
    return timm.create_model("test_resnet", num_classes=CLASSES)


def nhwc() -> nn.Module:
    """Return a Swin transformer, whose maps have their channels last."""
    return SwinTransformer(
        img_size=32,
        patch_size=4,
        window_size=4,
        embed_dim=16,
        depths=(1, 1),
        num_heads=(1, 2),
        num_classes=CLASSES,
    )


def vit() -> nn.Module:
    """Return a vision transformer with a class token."""
    return timm.create_model("test_vit", img_size=32, num_classes=CLASSES)


def video() -> nn.Module:
    """Return an R3D network with one block in each stage."""
    return VideoResNet(BasicBlock, [Conv3DSimple] * 4, [1, 1, 1, 1], BasicStem, CLASSES)


KINDS = {"cnn": cnn, "nhwc": nhwc, "vit": vit, "video": video}


def clips(kind: str, device: torch.device | str, count: int = 2) -> torch.Tensor:
    """Return clips as the model takes them, frames folded where it sees images."""
    if kind == "video":
        return torch.rand(count, 3, FRAMES, 16, 16, device=device)
    return torch.rand(count * FRAMES, 3, 32, 32, device=device)


def attached(
    kind: str, device: torch.device | str, strength: float = 0.1, last: int | None = None
) -> nn.Module:
    """Return an attached model in evaluation mode, its attention at work.

    ``last`` keeps that many places alone, for what costs seconds a place.
    """
    model = attach(KINDS[kind]().to(device), FRAMES).eval()
    if last:
        stages = [tie.stage for tie in ties(model)][-last:]
        model = attach(detach(model), FRAMES, stages=stages)
    for tie in ties(model):
        nn.init.constant_(tie.dam.strength, strength)
    return model
