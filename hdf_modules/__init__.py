"""Distributional attention and distributionally robust losses for video recognition."""

from hdf_modules.adapters import Stage, attach, detach, register_adapter, with_features
from hdf_modules.attention import DistributionalAttention
from hdf_modules.errors import HDFError
from hdf_modules.loss import HeterogeneityAwareLoss
from hdf_modules.sam import SAM

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
