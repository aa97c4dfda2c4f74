"""Distributional attention: the module, its mathematics, and what computes it where."""

from hdf_modules.attention.choice import kernels_used
from hdf_modules.attention.functional import (
    clip_statistics,
    frequency_gate,
    temporal_gate,
)
from hdf_modules.attention.layout import Layout
from hdf_modules.attention.module import DistributionalAttention
from hdf_modules.attention.weights import FrequencyWeights, TemporalWeights

__all__ = [
    "DistributionalAttention",
    "FrequencyWeights",
    "Layout",
    "TemporalWeights",
    "clip_statistics",
    "frequency_gate",
    "kernels_used",
    "temporal_gate",
]
