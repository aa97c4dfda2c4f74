"""HDF, the model of the paper: X3D with attention behind every stage, the loss and SAM.

X3D stem → stage 1 → DAM → … → stage 4 → DAM → average pool → feature z → linear → logits; DSM reads
z and the logits, AdamW steps under SAM. Cui et al., ACM MM 2025, arXiv:2507.15765, Figure 2.
"""

from __future__ import annotations

import torch
from torch import nn

from hdf_modules import SAM, HeterogeneityAwareLoss, attach, with_features
from models.x3d import x3d_s

FRAMES = 16


def hdf(num_classes: int, num_frames: int = FRAMES, *, pretrained: bool = False) -> nn.Module:
    """Build the network: (batch, 3, time, height, width) to (logits, features z)."""
    return with_features(attach(x3d_s(num_classes, pretrained), num_frames))


def hdf_training(model: nn.Module, lr: float = 1e-3) -> tuple[HeterogeneityAwareLoss, SAM]:
    """Build the loss and the optimizer with the paper's α, β and ρ.

    Args:
        model: what :func:`hdf` returned, on its device.
        lr: learning rate of AdamW, which the paper does not state.
    """
    adamw = torch.optim.AdamW(model.parameters(), lr)
    return HeterogeneityAwareLoss(alpha=10.0, beta=0.1), SAM(adamw, rho=0.05, model=model)
