"""Backbones of timm: what ``model.feature_info`` names, in the layout that one forward shows."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

from torch import Tensor, nn

from hdf_modules.attention.layout import Layout
from hdf_modules.backbones.probe import observe, sample
from hdf_modules.backbones.registry import Found, evenly_spaced, register_adapter
from hdf_modules.backbones.stage import Stage
from hdf_modules.errors import HDFError, some

# By stride: modules in place of those that feature_info names but that do not exist (HRNet), are
# one for several stages (CoaT), loop over their children (DenseNet) or
# return a copy of what they pass on (EfficientViM).
_MENDED = {
    "CoaT": {4 * 2**i: f"serial_blocks{i + 1}" for i in range(4)},
    "DenseNet": {4 * 2**i: f"features.transition{i + 1}" for i in range(3)},
    "EfficientViM": {16 * 2**i: f"stages.{i}.blocks" for i in range(3)},
    "HighResolutionNet": {4 * 2**i: f"incre_modules.{i}" for i in range(4)},
}
# Classes of modules that call all of their children, so that attention goes to the last of these.
_LOOPING = {"ModuleList", "RegStage"}
_REFUSED = {
    "Hiera": "its blocks keep tokens in the order of pooling windows, not of rows and columns",
    "CrossVit": "its blocks return the tokens of two scales at once",
    "RDNet": "its dense stages loop over their children, so that attention would become one",
}


def second(output: tuple[Tensor, Tensor]) -> Tensor:
    """Return the patches of TNT's (pixels, patches)."""
    return output[1]


def with_second(output: tuple[Tensor, Tensor], gated: Tensor) -> tuple[Tensor, Tensor]:
    """Put the patches of TNT back."""
    return output[0], gated


_FUNCTIONS = {"TNT": {"unpack": second, "pack": with_second}}


def _built_for(model: nn.Module, num_frames: int) -> Tensor:
    """Return one frame in the size that the model was built for."""
    config = getattr(model, "pretrained_cfg", None) or {}
    channels, height, width = config.get("input_size", (3, 224, 224))
    embed = getattr(model, "patch_embed", None)
    height, width = getattr(embed, "img_size", None) or (height, width)
    first = dict(model.named_modules()).get(str(config.get("first_conv")))
    # A multiple of three is a colour image, folded space-to-depth by some (tresnet).
    if isinstance(first, nn.Conv2d) and first.in_channels % 3:
        channels = first.in_channels
    return sample(1, channels, height, width)


@register_adapter("timm.models.*", example=_built_for)
def timm_stages(model: nn.Module, num_frames: int, example: Any) -> Found:
    """Every stage of stride 4 or more; in models of one resolution four evenly spaced blocks.

    The last is left out where the classifier reads the class token alone: attention would get no
    gradient there. In models of one resolution the block before it is taken.
    """
    rows = _rows(model)
    column = len({row["reduction"] for row in rows}) == 1
    chosen = evenly_spaced(rows) if column else rows
    functions: Any = _by_class(_FUNCTIONS, model) or {}
    names = sorted({row["module"] for row in (*chosen, *rows[-2:])})
    seen = observe(model, example, [Stage(name, 1, **functions) for name in names])
    stages = [_stage(model, row, seen.outputs[row["module"]], example, functions) for row in chosen]
    if seen.leaves_unread(stages[-1], 1):
        last = stages.pop()
        if column and rows[-2] not in chosen:
            stages.append(replace(last, name=rows[-2]["module"]))
    return Found(stages, seen)


def _rows(model: nn.Module) -> list[dict[str, Any]]:
    """Return the rows of ``feature_info`` to use."""
    reason = _by_class(_REFUSED, model)
    if reason:
        found = f"{type(model).__name__}: {reason}"
        hint = "name stages by hand, where one grid of features passes"
        raise HDFError("model", "a model with one grid of features", found, hint)
    info = getattr(model, "feature_info", None)
    rows = info if isinstance(info, list) else getattr(info, "info", [])
    mended: Any = _by_class(_MENDED, model) or {}
    rows = [
        row | {"module": _existing(model, mended.get(row["reduction"], row["module"]))}
        for row in rows
        if row["reduction"] >= 4
    ]
    names = [row["module"] for row in rows]
    if not rows or len(set(names)) < len(names):
        # As in timm before 0.9, whose transformers have none: they are looked at instead.
        raise LookupError(f"one module for each stage in feature_info: {some(names) or 'none'}")
    return rows


def _existing(model: nn.Module, name: str) -> str:
    """Mend names that MViTv2, Twins (``block.i``) and Gemma4 give wrongly."""
    modules = dict(model.named_modules())
    spellings = (name, name.replace("block.", "stages."), name.replace("block.", "blocks."))
    for spelling in (*spellings, f"encoder.{name}"):
        if spelling in modules:
            names = [child for child, _ in modules[spelling].named_children()]
            looping = type(modules[spelling]).__name__ in _LOOPING
            return f"{spelling}.{names[-1]}" if looping else spelling
    return name


def _stage(
    model: nn.Module, row: dict[str, Any], outputs: list[Any], example: Tensor, functions: Any
) -> Stage:
    """Describe one stage from what it gave."""
    name, channels = row["module"], row["num_chs"]
    x, sizes = Stage(name, 1, "(b t) (h w) c", **functions).read(outputs[0] if outputs else None)
    if x.ndim == 4:
        last = getattr(model, "output_fmt", None) == "NHWC"
        if last or (x.shape[1] != channels and x.shape[3] == channels):
            return Stage(name, x.shape[3], "(b t) h w c")
        return Stage(name, x.shape[1], "(b t) c h w")
    height, width = sizes.get("grid") or _grid(example, row["reduction"], x.shape[1])
    layout = Layout(
        "(b t) (h w) c",
        # Not num_prefix_tokens: in CaiT, XCiT and ConViT the class token comes in later.
        prefix_tokens=x.shape[1] - height * width,
        # A square grid is left open, so that other image sizes work where the model takes them.
        grid=None if height == width else (height, width),
    )
    return Stage(name, x.shape[-1], layout, **functions)


def _grid(example: Tensor, reduction: int, tokens: int) -> tuple[int, int]:
    """Return the grid of an image: padded up by convolutions, cut down by patch embeddings."""
    height, width = example.shape[-2:]
    padded = math.ceil(height / reduction), math.ceil(width / reduction)
    return padded if math.prod(padded) <= tokens else (height // reduction, width // reduction)


def _by_class(table: dict[str, Any], model: nn.Module) -> Any:
    """Return what a table says of the model's class, or ``None``."""
    return next((table[cls.__name__] for cls in type(model).__mro__ if cls.__name__ in table), None)
