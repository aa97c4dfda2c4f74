"""The heterogeneity-aware loss and its parts.

`HeterogeneityAwareLoss` is composed: a ``weighting`` of the samples (`KL`, `KLBall`, `Chi2`,
`CVaR`, `GroupDRO`; a `Ramp` for any of their levels, a `Trim` around them), the ``contrastive``
term (`RobustContrastive`) and the ``balance`` of the two (`GradientNorm`, `Fixed`).

>>> from torch import nn
>>> criterion = HeterogeneityAwareLoss(
...     nn.CrossEntropyLoss(label_smoothing=0.1),
...     weighting=Trim(CVaR(Ramp(1.0, 0.5, steps=1000)), 0.1),
...     contrastive=RobustContrastive(memory=256),
...     balance=Fixed(10.0, 0.1),
... )
"""

from hdf_modules.loss.balance import Fixed, GradientNorm
from hdf_modules.loss.contrastive import (
    RobustContrastive,
    covariance_trace,
    robust_contrastive_loss,
)
from hdf_modules.loss.dro import dro_weights
from hdf_modules.loss.module import HeterogeneityAwareLoss
from hdf_modules.loss.ramp import Ramp
from hdf_modules.loss.weighting import KL, Chi2, CVaR, GroupDRO, KLBall, Trim

__all__ = [
    "KL",
    "CVaR",
    "Chi2",
    "Fixed",
    "GradientNorm",
    "GroupDRO",
    "HeterogeneityAwareLoss",
    "KLBall",
    "Ramp",
    "RobustContrastive",
    "Trim",
    "covariance_trace",
    "dro_weights",
    "robust_contrastive_loss",
]
