"""Distributional attention: the module, its mathematics, and what computes it where."""

from hdf_modules.attention.layout import Layout
from hdf_modules.attention.module import DistributionalAttention

__all__ = ["DistributionalAttention", "Layout"]
