"""One step stays easy to walk through."""

import pytest
import torch
from torch import nn

from hdf_modules import SAM
from tests.support.calls import count


@pytest.mark.parametrize("with_model", [True, False])
def test_functions_and_files_of_ascend_and_step(with_model, device):
    model = nn.Sequential(nn.Linear(4, 4), nn.ReLU(), nn.Linear(4, 2)).to(device)
    x = torch.randn(3, 4, device=device)
    sam = SAM(torch.optim.AdamW(model.parameters()), model=model if with_model else None)

    def first_pass():
        sam.zero_grad()
        model(x).square().mean().backward()

    def second_pass():
        with sam.ascend():
            model(x).square().mean().backward()
        sam.step()

    calls = count(second_pass, first_pass)
    assert calls.number <= 35, calls
    assert calls.files <= 4, calls
