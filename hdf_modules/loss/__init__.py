"""The heterogeneity-aware loss and its parts."""

from hdf_modules.loss.module import HeterogeneityAwareLoss

__all__ = ["HeterogeneityAwareLoss"]
