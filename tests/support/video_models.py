"""Small video models of torchvision, pytorchvideo and transformers: how to build and feed each.

Everything is the libraries' own class, layer by layer; only sizes that are arguments are small.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn
from torchvision.models import video as torchvision_video
from torchvision.models.video.mvit import MSBlockConfig, MViT

CLASSES = 7


@dataclass(frozen=True)
class VideoModel:
    """A model, its clip length, what it takes, and where attention should go.

    ``stages`` holds name, channels, layout, frames (``None``: the clip's) and prefix tokens.
    """

    build: Callable[[], nn.Module]
    num_frames: int
    sample: Callable[[], Any]
    stages: tuple[tuple[str, int, str, int | None, int], ...]


def _clip(frames: int, side: int) -> Callable[[], torch.Tensor]:
    return lambda: torch.rand(1, 3, frames, side, side)


def _video_resnet(name: str) -> Callable[[], nn.Module]:
    return lambda: getattr(torchvision_video, name)(num_classes=CLASSES)


def _layers(frames: tuple[int, ...]) -> tuple[Any, ...]:
    return tuple((f"layer{i + 1}", 64 * 2**i, "b c t h w", t, 0) for i, t in enumerate(frames))


def small_s3d() -> nn.Module:
    """Return S3D with a last pooling for images of 64×64 instead of 224×224."""
    model = torchvision_video.s3d(num_classes=CLASSES)
    model.avgpool = nn.AvgPool3d((2, 2, 2), stride=1)
    return model


def small_mvit() -> nn.Module:
    """Return MViT with five blocks in two resolutions."""
    widths = ((16, 16), (16, 32), (32, 32), (32, 32), (32, 32))
    blocks = [
        MSBlockConfig(
            num_heads=2,
            input_channels=before,
            output_channels=after,
            kernel_q=[3, 3, 3],
            kernel_kv=[3, 3, 3],
            stride_q=[1, 2, 2] if before != after else [1, 1, 1],
            stride_kv=[1, 2, 2],
        )
        for before, after in widths
    ]
    return MViT(
        spatial_size=(32, 48),
        temporal_size=8,
        block_setting=blocks,
        residual_pool=True,
        residual_with_cls_embed=False,
        rel_pos_embed=True,
        proj_after_attn=True,
        num_classes=CLASSES,
    )


def x3d(**options: Any) -> nn.Module:
    """Return pytorchvideo's X3D-XS at 8 frames of 64×64."""
    from pytorchvideo.models.x3d import create_x3d  # noqa: PLC0415 - warns

    options = {"input_clip_length": 8, "input_crop_size": 64, "head_activation": None} | options
    return create_x3d(model_num_class=CLASSES, **options)


def slow(**options: Any) -> nn.Module:
    """Return pytorchvideo's slow_r50 with a head for 4 frames of 64×64."""
    from pytorchvideo.models.resnet import create_resnet  # noqa: PLC0415 - warns

    return create_resnet(model_num_class=CLASSES, head_pool_kernel_size=(4, 2, 2), **options)


def slowfast() -> nn.Module:
    """Return pytorchvideo's slowfast_r50 with a head for 8 and 2 frames of 64×64."""
    from pytorchvideo.models.slowfast import create_slowfast  # noqa: PLC0415 - warns

    kernels = ((2, 2, 2), (8, 2, 2))
    return create_slowfast(model_num_class=CLASSES, head_pool_kernel_sizes=kernels)


def _slowfast_stages() -> tuple[Any, ...]:
    return tuple(
        (f"blocks.{i}.multipathway_blocks.{p}", 256 * 2 ** (i - 1) // 8**p, "b c t h w", t, 0)
        for i in range(1, 5)
        for p, t in enumerate((2, 8))
    )


_TINY = {
    "hidden_size": 32,
    "num_hidden_layers": 5,
    "num_attention_heads": 2,
    "intermediate_size": 48,
    "image_size": 32,
}


def hugging_face(model: str, config: str, **options: Any) -> Callable[[], nn.Module]:
    """Return a function that builds a transformers model from a tiny configuration."""

    def build() -> nn.Module:
        import transformers  # noqa: PLC0415 - slow to load

        return getattr(transformers, model)(getattr(transformers, config)(**_TINY, **options))

    return build


def _pixels(*shape: int) -> Callable[[], dict[str, torch.Tensor]]:
    return lambda: {"pixel_values": torch.rand(*shape, 3, 32, 32)}


def _tokens(
    path: str, layers: tuple[int, ...], layout: str, frames: int | None, prefix: int
) -> Any:
    return tuple((f"{path}.{i}", 32, layout, frames, prefix) for i in layers)


MODELS: dict[str, VideoModel] = {
    "r3d_18": VideoModel(_video_resnet("r3d_18"), 16, _clip(16, 32), _layers((16, 8, 4, 2))),
    "mc3_18": VideoModel(_video_resnet("mc3_18"), 4, _clip(4, 32), _layers((4, 4, 4, 4))),
    "r2plus1d_18": VideoModel(
        _video_resnet("r2plus1d_18"), 16, _clip(16, 32), _layers((16, 8, 4, 2))
    ),
    "s3d": VideoModel(
        small_s3d,
        16,
        _clip(16, 64),
        tuple(
            (f"features.{i}", c, "b c t h w", t, 0)
            for i, c, t in ((3, 192, 8), (6, 480, 8), (12, 832, 4), (15, 1024, 2))
        ),
    ),
    "swin3d_t": VideoModel(
        _video_resnet("swin3d_t"),
        8,
        _clip(8, 64),
        tuple((f"features.{2 * i}", 96 * 2**i, "b t h w c", 4, 0) for i in range(4)),
    ),
    "MViT": VideoModel(
        small_mvit,
        8,
        lambda: torch.rand(1, 3, 8, 32, 48),
        (("blocks.0", 16, "b (t h w) c", 4, 1), ("blocks.3", 32, "b (t h w) c", 4, 1)),
    ),
    "x3d": VideoModel(
        x3d,
        8,
        _clip(8, 64),
        tuple((f"blocks.{i}", 12 * 2**i, "b c t h w", 8, 0) for i in range(1, 5)),
    ),
    "slow_r50": VideoModel(
        slow,
        4,
        _clip(4, 64),
        tuple((f"blocks.{i}", 128 * 2**i, "b c t h w", 4, 0) for i in range(1, 5)),
    ),
    "slowfast_r50": VideoModel(
        slowfast,
        8,
        lambda: [torch.rand(1, 3, 2, 64, 64), torch.rand(1, 3, 8, 64, 64)],
        _slowfast_stages(),
    ),
    "VideoMAE": VideoModel(
        hugging_face(
            "VideoMAEForVideoClassification", "VideoMAEConfig", patch_size=8, num_frames=8
        ),
        8,
        _pixels(1, 8),
        _tokens("videomae.encoder.layer", (1, 2, 3, 4), "b (t h w) c", 4, 0),
    ),
    "ViViT": VideoModel(
        hugging_face(
            "VivitForVideoClassification", "VivitConfig", num_frames=8, tubelet_size=[2, 8, 8]
        ),
        8,
        _pixels(1, 8),
        _tokens("vivit.layers", (1, 2, 3), "b (t h w) c", 4, 1),
    ),
    "TimeSformer": VideoModel(
        hugging_face(
            "TimesformerForVideoClassification", "TimesformerConfig", patch_size=8, num_frames=8
        ),
        8,
        _pixels(1, 8),
        _tokens("timesformer.encoder.layer", (1, 2, 3), "b (h w t) c", 8, 1),
    ),
    "CLIP vision": VideoModel(
        hugging_face("CLIPVisionModel", "CLIPVisionConfig", patch_size=8),
        4,
        _pixels(4),
        _tokens("encoder.layers", (1, 2, 3), "(b t) (h w) c", None, 1),
    ),
}
