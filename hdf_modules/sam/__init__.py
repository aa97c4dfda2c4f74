"""Sharpness-aware minimization around any optimizer."""

from hdf_modules.sam.module import SAM
from hdf_modules.sam.second_pass import Criterion

__all__ = ["SAM", "Criterion"]
