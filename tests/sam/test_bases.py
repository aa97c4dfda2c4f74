"""Every optimizer of torch as a base."""

import copy
import inspect

import pytest
import torch
from torch import nn

from hdf_modules import SAM, HDFError

RADIUS = {"Adadelta": "sam_rho"}  # it has a rho of its own
REFUSED = {"LBFGS", "Optimizer", "SparseAdam"}
BASES = sorted(
    name
    for name, kind in vars(torch.optim).items()
    if inspect.isclass(kind) and issubclass(kind, torch.optim.Optimizer) and name not in REFUSED
)


def model_of(device):
    return nn.Sequential(nn.Linear(6, 8), nn.Tanh(), nn.Linear(8, 3)).to(device)


def weights_of(model, name):
    # Muon takes matrices alone
    return [p for p in model.parameters() if name != "Muon" or p.ndim == 2]


def loss_of(model, x):
    return model(x).square().mean()


@pytest.mark.parametrize("name", BASES)
def test_at_radius_zero_every_optimizer_of_torch_is_itself(device, name):
    first = model_of(device)
    second = copy.deepcopy(first)
    base = getattr(torch.optim, name)(weights_of(first, name), lr=0.01)
    inner = getattr(torch.optim, name)(
        [{"params": weights_of(second, name), RADIUS.get(name, "rho"): 0.0}], lr=0.01
    )
    sam = SAM(inner)
    for _ in range(4):
        x = torch.rand(5, 6, device=device)
        base.zero_grad()
        loss_of(first, x).backward()
        base.step()
        sam.zero_grad()
        loss_of(second, x).backward()
        with sam.ascend():
            loss_of(second, x).backward()
        sam.step()
    for one, other in zip(first.parameters(), second.parameters(), strict=True):
        assert torch.equal(one, other)


def test_the_list_is_that_of_torch():
    assert {"SGD", "Adam", "AdamW", "Adadelta", "Rprop", "NAdam"} <= set(BASES)


def test_one_that_needs_its_closure_is_refused(device):
    weights = [nn.Parameter(torch.ones(2, device=device))]
    with pytest.raises(HDFError, match="base_optimizer"):
        SAM(torch.optim.LBFGS(weights))
    with pytest.raises(HDFError, match="base_optimizer"):
        SAM(SAM(torch.optim.SGD(weights, lr=0.1)))
