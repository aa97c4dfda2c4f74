"""The mathematics of the library: the public list of its pure functions."""

from hdf_modules.attention.functional import clip_statistics, frequency_gate, temporal_gate
from hdf_modules.loss.contrastive import covariance_trace, robust_contrastive_loss
from hdf_modules.loss.dro import dro_weights

__all__ = [
    "clip_statistics",
    "covariance_trace",
    "dro_weights",
    "frequency_gate",
    "robust_contrastive_loss",
    "temporal_gate",
]
