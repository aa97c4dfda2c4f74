"""Networks of pytorchvideo: X3D, ResNet (slow, CSN, R(2+1)D) and SlowFast."""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn

from hdf_modules.backbones.probe import observe, sample
from hdf_modules.backbones.registry import Found, blocks_named, register_adapter
from hdf_modules.backbones.stage import Stage

_STRIDE = 32  # of height and width, from input to head
_ALPHA = 4  # SlowFast: the slow pathway sees every fourth frame


def _clip(model: nn.Module, num_frames: int) -> Any:
    """Return a clip just large enough for the head's pooling, one for each pathway."""
    kernels = [m.kernel_size for m in model.modules() if isinstance(m, nn.AvgPool3d)]
    side = _STRIDE * max([max(kernel[1:]) for kernel in kernels if isinstance(kernel, tuple)] + [2])
    if _is_slowfast(model):
        return ([_zeros(num_frames // _ALPHA, side), _zeros(num_frames, side)],)
    return _zeros(num_frames, side)


def _zeros(frames: int, side: int) -> Tensor:
    return sample(1, 3, frames, side, side)


def _is_slowfast(model: nn.Module) -> bool:
    return any(hasattr(module, "multipathway_fusion") for module in model.modules())


@register_adapter("pytorchvideo.models.net.Net", example=_clip)
def pytorchvideo_stages(model: nn.Module, num_frames: int, example: Any) -> Found:
    """Every ``ResStage``; in SlowFast those of both pathways, each with its own T.

    Build X3D with ``head_activation=None``: its softmax is active in training too.
    """
    names = blocks_named(model, "ResStage")
    seen = observe(model, example, names)
    return Found([Stage(name, seen.outputs[name][0].shape[1]) for name in names], seen)
