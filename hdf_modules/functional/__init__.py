"""The mathematics of the library as pure functions, one topic per file."""

from hdf_modules.functional.contrastive import covariance_trace, robust_contrastive_loss
from hdf_modules.functional.dro import dro_weights
from hdf_modules.functional.frequency import frequency_gate
from hdf_modules.functional.statistics import clip_statistics
from hdf_modules.functional.temporal import temporal_gate

__all__ = [
    "clip_statistics",
    "covariance_trace",
    "dro_weights",
    "frequency_gate",
    "robust_contrastive_loss",
    "temporal_gate",
]
