"""One call of the loss stays easy to walk through."""

import torch

from hdf_modules import HeterogeneityAwareLoss
from tests.support.calls import count


def test_functions_and_files_of_one_call(device):
    logits = torch.randn(8, 7, device=device, requires_grad=True)
    features = torch.randn(8, 5, device=device, requires_grad=True)
    target, criterion = torch.arange(8, device=device) % 3, HeterogeneityAwareLoss().to(device)
    calls = count(lambda: criterion(logits, target, features))
    assert calls.number <= 30, calls
    assert calls.files <= 5, calls
