"""Dropout repeats its masks in the second pass, under activation checkpointing too."""

import copy

import pytest
import torch
from torch import nn
from torch.utils.checkpoint import checkpoint

from hdf_modules import SAM


class Checkpointed(nn.Module):
    """Dropout inside and outside of a block that may be run again in the backward pass."""

    def __init__(self, reentrant):
        super().__init__()
        self.inner, self.outer = nn.Linear(16, 64), nn.Linear(64, 3)
        self.dropout, self.reentrant = nn.Dropout(0.5), reentrant

    def block(self, x):
        return self.dropout(self.inner(x).relu())

    def forward(self, x):
        if self.reentrant is None:
            hidden = self.block(x)
        else:
            hidden = checkpoint(self.block, x, use_reentrant=self.reentrant)
        return self.outer(self.dropout(hidden))


@pytest.mark.parametrize("reentrant", [None, False, True])
def test_masks_match_under_checkpointing(device, reentrant):
    model = Checkpointed(reentrant).double().to(device)
    sam = SAM(torch.optim.SGD(model.parameters(), lr=0.1), rho=1e-12, model=model)
    x = torch.rand(5, 16, dtype=torch.float64, device=device, requires_grad=True)
    model(x).square().sum().backward()
    first = [p.grad.clone() for p in model.parameters()]
    with sam.ascend():
        model(x).square().sum().backward()
    for p, grad in zip(model.parameters(), first, strict=True):  # other masks: off by their size
        torch.testing.assert_close(p.grad, grad, rtol=1e-9, atol=1e-9)


def test_a_copy_of_the_model_records_nothing(device):
    model = Checkpointed(None).to(device)
    sam = SAM(torch.optim.SGD(model.parameters(), lr=0.1), model=model)
    other = copy.deepcopy(model)
    del sam
    for _ in range(3):
        other(torch.rand(5, 16, device=device)).sum().backward()
    kept = [hook.states for hook in other._forward_pre_hooks.values()]
    assert kept
    assert not any(kept)
