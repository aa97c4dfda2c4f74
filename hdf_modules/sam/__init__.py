"""Sharpness-aware minimization around any optimizer."""

from hdf_modules.sam.module import SAM

__all__ = ["SAM"]
