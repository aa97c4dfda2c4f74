"""X3D-S (Feichtenhofer, CVPR 2020), the paper's backbone, for clips of any length and size."""

from __future__ import annotations

import warnings

import torch
from torch import nn

_WEIGHTS = "https://dl.fbaipublicfiles.com/pytorchvideo/model_zoo/kinetics/X3D_S.pyth"


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
        _load(model, torch.hub.load_state_dict_from_url(_WEIGHTS, map_location="cpu"))
    return model


def _load(model: nn.Module, checkpoint: dict[str, dict[str, torch.Tensor]]) -> None:
    own = {name: value for name, value in model.state_dict().items() if "blocks.5.proj" in name}
    model.load_state_dict(checkpoint["model_state"] | own)
