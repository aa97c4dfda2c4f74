"""Attach attention to a backbone: :func:`attach` and the adapters that know where.

``stage`` says what a place is, ``registry`` which backbones are known (one file for each library:
``timm``, ``torchvision``, ...), ``probe`` looks at a model, ``binding`` ties attention to a module,
``attach`` does it all in order, ``features`` gives logits and features from one forward.
"""

from hdf_modules.adapters.attach import attach, detach
from hdf_modules.adapters.features import with_features
from hdf_modules.adapters.parameters import (
    check_optimizer,
    dam_parameters,
    dam_state_dict,
    load_dam_state_dict,
)
from hdf_modules.adapters.registry import register_adapter
from hdf_modules.adapters.stage import Stage

from . import dfer, pytorchvideo, timm, torchvision, transformers  # noqa: F401 - they register

__all__ = [
    "Stage",
    "attach",
    "check_optimizer",
    "dam_parameters",
    "dam_state_dict",
    "detach",
    "load_dam_state_dict",
    "register_adapter",
    "with_features",
]
