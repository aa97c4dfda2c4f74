"""Vision models of Hugging Face transformers.

Module paths change between releases, so the layers are found by their class.
"""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn

from hdf_modules.attention.layout import Layout
from hdf_modules.backbones.probe import sample
from hdf_modules.backbones.registry import blocks_named, evenly_spaced, register_adapter
from hdf_modules.backbones.stage import Stage


def _config(model: Any) -> Any:
    return getattr(model.config, "vision_config", model.config)


def _clip(model: nn.Module, num_frames: int) -> dict[str, Tensor]:
    config = _config(model)
    height, width = _pair(config.image_size)
    return {"pixel_values": sample(1, num_frames, config.num_channels, height, width)}


def _image(model: nn.Module, num_frames: int) -> dict[str, Tensor]:
    return {"pixel_values": _clip(model, 1)["pixel_values"][:, 0]}


def _pair(size: Any) -> tuple[int, int]:
    return (size, size) if isinstance(size, int) else (size[-2], size[-1])


def _stages(
    model: nn.Module,
    layer: str,
    layout: str,
    patch: Any,
    *,
    num_frames: int | None = None,
    class_token: bool = True,
) -> list[Stage]:
    config = _config(model)
    (height, width), (rows, columns) = _pair(config.image_size), _pair(patch)
    grid = height // rows, width // columns
    names = [name for name in blocks_named(model, layer) if "decoder" not in name]
    return [
        Stage(name, config.hidden_size, Layout(layout, int(class_token), grid=grid), num_frames)
        for name in evenly_spaced(names, class_token_alone=class_token)
    ]


@register_adapter("transformers.models.videomae.*", example=_clip)
def videomae(model: nn.Module, num_frames: int, example: Any) -> list[Stage]:
    """Four layers of the encoder; tubelets shorten time, and there is no class token."""
    config = _config(model)
    return _stages(
        model,
        "VideoMAELayer",
        "b (t h w) c",
        config.patch_size,
        num_frames=num_frames // config.tubelet_size,
        class_token=False,
    )


@register_adapter("transformers.models.vivit.*", example=_clip)
def vivit(model: nn.Module, num_frames: int, example: Any) -> list[Stage]:
    """Four layers, a class token first; tubelets shorten time."""
    tubelet = _config(model).tubelet_size
    frames = num_frames // tubelet[0]
    return _stages(model, "VivitLayer", "b (t h w) c", tubelet, num_frames=frames)


@register_adapter("transformers.models.timesformer.*", example=_clip)
def timesformer(model: nn.Module, num_frames: int, example: Any) -> list[Stage]:
    """Four layers, a class token first, then time within each position."""
    patch = _config(model).patch_size
    return _stages(model, "TimesformerLayer", "b (h w t) c", patch, num_frames=num_frames)


@register_adapter("transformers.models.clip.*.CLIPVision*", example=_image)
@register_adapter("transformers.models.clip.*.CLIPForImage*", example=_image)
def clip_vision(model: nn.Module, num_frames: int, example: Any) -> list[Stage]:
    """Four layers of the image encoder, which sees frames; a class token first."""
    return _stages(model, "CLIPEncoderLayer", "(b t) (h w) c", _config(model).patch_size)
