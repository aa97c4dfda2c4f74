"""Attach attention to a backbone: `attach` and the adapters that know where.

``stage`` says what a place is, ``registry`` which backbones are known (``known/``: a file for each
source), ``probe`` looks at what a model does with a sample, ``discovery`` finds the places of one
that is not known (``flow``: what everything passes through; ``reading``: which axis is which),
``hooks`` ties attention to a module,
``attach`` does it all in order and refuses what would fail silently, ``features`` gives logits and
features from one forward, ``parameters`` what attention adds. BACKBONES.md lists what was tried.

`register_adapter` teaches a backbone of one's own in a few lines. Without any of this,
attention is a module like others, called in ``forward``:

>>> import torch
>>> from torch import nn
>>> from hdf_modules import DistributionalAttention
>>> class Net(nn.Module):
...     def __init__(self):
...         super().__init__()
...         self.stage, self.head = nn.Conv3d(3, 8, 3), nn.Linear(8, 7)
...         self.attention = DistributionalAttention(channels=8, num_frames=16)
...     def forward(self, clips):
...         return self.head(self.attention(self.stage(clips)).mean((2, 3, 4)))
>>> Net()(torch.rand(2, 3, 16, 10, 10)).shape
torch.Size([2, 7])
"""

from hdf_modules.backbones.attach import attach, detach
from hdf_modules.backbones.discovery import explain
from hdf_modules.backbones.features import with_features
from hdf_modules.backbones.parameters import (
    check_optimizer,
    dam_parameter_groups,
    dam_parameters,
    dam_state_dict,
    load_dam,
    load_dam_state_dict,
    save_dam,
    summary,
)
from hdf_modules.backbones.registry import list_backbones, register_adapter
from hdf_modules.backbones.stage import Stage

from .known import dfer, pytorchvideo, timm, torchvision, transformers  # noqa: F401 - they register

__all__ = [
    "Stage",
    "attach",
    "check_optimizer",
    "dam_parameter_groups",
    "dam_parameters",
    "dam_state_dict",
    "detach",
    "explain",
    "list_backbones",
    "load_dam",
    "load_dam_state_dict",
    "register_adapter",
    "save_dam",
    "summary",
    "with_features",
]
