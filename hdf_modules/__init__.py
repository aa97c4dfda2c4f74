"""Distributional attention and distributionally robust losses for video recognition."""

from hdf_modules.attention.module import DistributionalAttention
from hdf_modules.backbones import Stage, attach, detach, register_adapter, with_features
from hdf_modules.errors import HDFError
from hdf_modules.loss.module import HeterogeneityAwareLoss
from hdf_modules.sam.module import SAM

__version__ = "0.1.0"

__all__ = [
    "SAM",
    "DistributionalAttention",
    "HDFError",
    "HeterogeneityAwareLoss",
    "Stage",
    "attach",
    "detach",
    "register_adapter",
    "with_features",
]
