"""Backbones of the examples, by name, with attention attached where it is asked for."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

from torch import nn
from torchvision.models.video import r3d_18

from hdf_modules import DistributionalAttention, HDFError, Stage, attach
from models.frames import FrameModel
from models.small import SmallVideoNet
from models.x3d import x3d_s


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
        raise HDFError("model", "one of " + ", ".join(NAMES), repr(name))
    return _BUILDERS[name](num_classes, pretrained)


def add_attention(
    model: nn.Module,
    num_frames: int,
    *,
    consistency: str = "time",
    perturbation: str | None = "learned",
) -> nn.Module:
    """Attach distributional attention behind every stage of a backbone of this package."""
    factory = partial(DistributionalAttention, consistency=consistency, perturbation=perturbation)
    stages = getattr(model, "attention_stages", None)
    attach(_attached(model), num_frames, stages=stages, factory=factory)
    return model


def _attached(model: nn.Module) -> nn.Module:
    return model.backbone if isinstance(model, FrameModel) else model


__all__ = ["NAMES", "FrameModel", "SmallVideoNet", "Stage", "add_attention", "build"]
