"""Backbones of torchvision."""

from __future__ import annotations

import math
from typing import Any

from torch import Tensor, nn

from hdf_modules.attention.layout import Layout
from hdf_modules.backbones.probe import observe, sample
from hdf_modules.backbones.registry import Found, register_adapter
from hdf_modules.backbones.stage import Stage


def _clip(model: nn.Module, num_frames: int) -> Tensor:
    """Return a clip that is small, as these networks take any size."""
    return sample(1, 3, num_frames, 64, 64)


def _pooled_clip(model: Any, num_frames: int) -> Tensor:
    """Return a clip just large enough for S3D's last pooling, which is 7×7 as it is built."""
    side = getattr(model.avgpool, "kernel_size", (1, 2, 2))[-1]
    return sample(1, 3, num_frames, 32 * side, 32 * side)


def _image(model: nn.Module, num_frames: int) -> Tensor:
    return sample(1, 3, 64, 64)


def _mvit_clip(model: Any, num_frames: int) -> Tensor:
    """Return a clip of the one size that the position embedding was made for."""
    strides = model.conv_proj.stride
    height, width = (
        n * s for n, s in zip(model.pos_encoding.spatial_size, strides[1:], strict=True)
    )
    return sample(1, model.conv_proj.in_channels, num_frames, height, width)


@register_adapter("torchvision.models.resnet.ResNet", example=_image)
def resnet(model: Any, num_frames: int, example: Any) -> list[Stage]:
    """ResNets of images, ``layer1`` to ``layer4``."""
    width = model.fc.in_features
    return [Stage(f"layer{i}", width * 2**i // 16, "(b t) c h w") for i in range(1, 5)]


@register_adapter("torchvision.models.video.*.VideoResNet", example=_clip)
def video_resnet(model: nn.Module, num_frames: int, example: Any) -> list[Stage]:
    """r3d_18, mc3_18, r2plus1d_18: ``layer1`` to ``layer4``; r3d and r2plus1d halve time."""
    return [Stage(f"layer{i}", 32 * 2**i) for i in range(1, 5)]


@register_adapter("torchvision.models.video.s3d.S3D", example=_pooled_clip)
def s3d(model: nn.Module, num_frames: int, example: Any) -> list[Stage]:
    """Before each pooling and at the end."""
    return [Stage(f"features.{i}", c) for i, c in ((3, 192), (6, 480), (12, 832), (15, 1024))]


@register_adapter("torchvision.models.video.swin_transformer.SwinTransformer3d", example=_clip)
def swin3d(model: Any, num_frames: int, example: Any) -> list[Stage]:
    """The groups of blocks; patch merging stands between them."""
    width = model.patch_embed.proj.out_channels
    return [Stage(f"features.{2 * i}", width * 2**i, "b t h w c") for i in range(4)]


@register_adapter("torchvision.models.video.mvit.MViT", example=_mvit_clip)
def mvit(model: Any, num_frames: int, example: Any) -> Found:
    """The last block of each resolution.

    The classifier reads the class token alone, so that after the very last block attention would
    be lost: the block before is taken.
    """
    names = [f"blocks.{i}" for i in range(len(model.blocks))]
    seen = observe(model, example, names)
    outputs = {name: calls[0] for name, calls in seen.outputs.items()}
    sizes = [tuple(outputs[name][1]) for name in names]
    ends = [i for i in range(len(names)) if i + 1 == len(names) or sizes[i] != sizes[i + 1]]
    ends[-1] -= 1
    stages = []
    for end in ends:
        tokens, size = outputs[names[end]]
        prefix = tokens.shape[1] - math.prod(size)
        layout = Layout("b (t h w) c", prefix_tokens=prefix)
        stages.append(Stage(names[end], tokens.shape[2], layout))
    return Found(stages, seen)
