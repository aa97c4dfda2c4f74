"""The mathematics of the library as pure functions, one topic per file."""

from hdf_modules.attention.frequency import frequency_gate
from hdf_modules.attention.statistics import clip_statistics
from hdf_modules.attention.temporal import temporal_gate
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
