"""One call of attention stays easy to walk through."""

import pytest
import torch

from hdf_modules import DistributionalAttention
from tests.support.calls import count


@pytest.mark.cpu_only  # launching kernels takes more
def test_functions_and_files_of_one_call(device):
    module = DistributionalAttention(24, 16, device=device)
    x = torch.randn(2, 24, 16, 14, 14, device=device)
    calls = count(lambda: module(x))
    assert calls.number <= 25, calls
    assert calls.files <= 4, calls
