"""Code bases of dynamic facial expression recognition, which are scripts and not packages.

Their classes live in modules such as ``models`` that say nothing, so what a model is follows from
the name of its class and of its children. Those that need a second input or a GPU are checked at
their first forward.
"""

from __future__ import annotations

from functools import partial
from typing import Any

import torch
from einops import rearrange
from torch import Tensor, nn

from hdf_modules.attention.layout import Layout
from hdf_modules.backbones.probe import sample
from hdf_modules.backbones.registry import evenly_spaced, register_adapter
from hdf_modules.backbones.stage import Stage

# What no layout describes: bags of a clip, and regions of a token grid.
_BAGS = "(b bag) c t h w -> b (bag t) c h w"
_REGIONS = "(b nt nh nw) (t h w) c -> b (nt t) (nh h) (nw w) c"


def _frames_first(model: nn.Module, num_frames: int) -> Tensor:
    return sample(1, num_frames, 3, 64, 64)


@register_adapter("*M3DFEL", example=_frames_first)
def m3dfel(model: Any, num_frames: int, example: Any) -> list[Stage]:
    """M3DFEL: an r3d_18 repacked in ``features`` sees bags of frames; attention sees the clip."""
    bags = int(model.bag_size)
    unpack, pack = partial(join_bags, bags=bags), partial(split_bags, bags=bags)
    return [
        Stage(f"features.{i}", 32 * 2**i, "b t c h w", unpack=unpack, pack=pack)
        for i in range(1, 5)
    ]


@register_adapter("*GenerateModel")
def generate_model(model: Any, num_frames: int, example: Any) -> list[Stage]:
    """Former-DFER and IAL (``s_former``), DFER-CLIP and MMA-DFER (``image_encoder``)."""
    if hasattr(model, "s_former"):
        return _s_former(model, num_frames)
    encoder = getattr(model, "image_encoder", None)
    if hasattr(encoder, "transformer"):
        return _clip_stages(encoder, "image_encoder.")
    if hasattr(encoder, "blocks"):
        return _prompted_stages(encoder)
    raise AttributeError("neither s_former nor image_encoder, as in Former-DFER and DFER-CLIP")


def _s_former(model: Any, num_frames: int) -> list[Stage]:
    """Former-DFER and IAL; IAL's ``layer4`` sees the differences of consecutive frames."""
    differences = not hasattr(model, "t_former")
    layers = [(f"s_former.layer{i}", getattr(model.s_former, f"layer{i}")) for i in range(1, 5)]
    frames = [num_frames] * 3 + [num_frames - 1 if differences else num_frames]
    return [
        Stage(name, layer[-1].bn2.num_features, "(b t) c h w", t)
        for (name, layer), t in zip(layers, frames, strict=True)
    ]


@register_adapter("*clip.model.VisionTransformer")
def clip_stages(model: Any, num_frames: int, example: Any) -> list[Stage]:
    """OpenAI's CLIP image encoder: sequence first, class token first."""
    return _clip_stages(model, "")


def _clip_stages(encoder: Any, prefix: str) -> list[Stage]:
    blocks = encoder.transformer.resblocks
    chosen = evenly_spaced(range(len(blocks)), class_token_alone=True)
    width = blocks[0].ln_1.normalized_shape[0]
    return [
        Stage(f"{prefix}transformer.resblocks.{i}", width, Layout("(h w) (b t) c", prefix_tokens=1))
        for i in chosen
    ]


def _prompted_stages(encoder: Any) -> list[Stage]:
    """MMA-DFER: a class token, the patches, then prompts."""
    prompts = encoder.pos_embed.shape[1] - 1 - encoder.n_seq
    return [
        Stage(
            f"image_encoder.blocks.{i}",
            encoder.embed_dim,
            Layout("(b t) (h w) c", prefix_tokens=1, suffix_tokens=prompts),
        )
        for i in evenly_spaced(range(len(encoder.blocks)), class_token_alone=True)
    ]


def _clip(model: Any, num_frames: int) -> Tensor:
    return sample(1, 3, num_frames, *model.patch_embed.img_size)


@register_adapter("*modeling_finetune.VisionTransformer", example=_clip)
def video_transformer(model: Any, num_frames: int, example: Any) -> list[Stage]:
    """MAE-DFER (regions, each behind a messenger token); VideoMAE (plain tokens)."""
    messengers_alone = getattr(model, "lg_classify_token_type", None) == "region"
    ends = evenly_spaced(range(len(model.blocks)), class_token_alone=messengers_alone)
    chosen = [f"blocks.{i}" for i in ends]
    if hasattr(model, "lg_region_size"):
        size, regions = tuple(model.lg_region_size), tuple(model.lg_num_region_size)
        unpack = partial(join_regions, regions=regions, size=size)
        pack = partial(split_regions, regions=regions, size=size)
        return [
            Stage(name, model.embed_dim, "b t h w c", unpack=unpack, pack=pack) for name in chosen
        ]
    embed = model.patch_embed
    height, width = (n // p for n, p in zip(embed.img_size, embed.patch_size, strict=True))
    frames = num_frames // embed.tubelet_size
    return [
        Stage(name, model.embed_dim, Layout("b (t h w) c", grid=(height, width)), frames)
        for name in chosen
    ]


@register_adapter("*model_finetuning.VisionTransformer")
def s2d(model: Any, num_frames: int, example: Any) -> list[Stage]:
    """S2D: a transformer of frames that also takes landmark features."""
    chosen = evenly_spaced(range(len(model.blocks)), class_token_alone=model.global_pool == "token")
    layout = Layout("(b t) (h w) c", prefix_tokens=model.num_prefix_tokens)
    return [Stage(f"blocks.{i}", model.embed_dim, layout) for i in chosen]


@register_adapter("*.I3D")
@register_adapter("*.InceptionI3d")
def i3d(model: nn.Module, num_frames: int, example: Any) -> list[Stage]:
    """I3D: the last module of each resolution; time is halved before each."""
    names = {name.lower(): name for name, _ in model.named_children()}
    ends = {"mixed_3c": (480, 2), "mixed_4f": (832, 4), "mixed_5c": (1024, 8)}
    return [
        Stage(names[end], channels, num_frames=-(-num_frames // stride))
        for end, (channels, stride) in ends.items()
        if end in names
    ]


@register_adapter("*.C3D")
def c3d(model: nn.Module, num_frames: int, example: Any) -> list[Stage]:
    """C3D: after each pooling, because its one ReLU serves all convolutions."""
    return [
        Stage(f"pool{i}", 32 * 2**i, num_frames=max(1, num_frames // 2 ** (i - 1)))
        for i in range(1, 5)
    ]


def join_bags(x: Tensor, *, bags: int) -> Tensor:
    """Return bags of consecutive frames, (b bag) c t h w, as clips b t c h w."""
    return rearrange(x, _BAGS, bag=bags)


def split_bags(x: Tensor, gated: Tensor, *, bags: int) -> Tensor:
    """Undo `join_bags`."""
    return rearrange(gated, _inverse(_BAGS), bag=bags)


def join_regions(x: Tensor, *, regions: tuple[int, int, int], size: tuple[int, int, int]) -> Tensor:
    """Return regions of tokens, each behind one messenger token, as clips b t h w c.

    Args:
        x: (batch · regions, 1 + tokens of a region, channels).
        regions: how many along time, height and width.
        size: tokens of a region along time, height and width.
    """
    return rearrange(x[:, 1:], _REGIONS, **_axes(regions, size))


def split_regions(
    x: Tensor, gated: Tensor, *, regions: tuple[int, int, int], size: tuple[int, int, int]
) -> Tensor:
    """Undo `join_regions`; messenger tokens come from ``x``."""
    tokens = rearrange(gated, _inverse(_REGIONS), **_axes(regions, size))
    return torch.cat((x[:, :1], tokens), dim=1)


def _axes(regions: tuple[int, int, int], size: tuple[int, int, int]) -> dict[str, int]:
    return dict(zip(("nt", "nh", "nw", "t", "h", "w"), (*regions, *size), strict=True))


def _inverse(pattern: str) -> str:
    return " -> ".join(reversed(pattern.split(" -> ")))
