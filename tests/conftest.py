"""Every test starts from the same seed, on the device that HDF_TEST_DEVICE names."""

import os
import sys

import pytest
import torch
from hypothesis import settings

settings.register_profile("default", deadline=None, derandomize=True, max_examples=30)
settings.load_profile("default")
# Convolutions on a GPU round their factors to 10 bits by default, which no tolerance here allows.
torch.backends.cudnn.allow_tf32 = False


@pytest.fixture(scope="session")
def device() -> torch.device:
    # With its number, as tensors name it: "cuda" is not equal to "cuda:0".
    return torch.empty(0, device=os.environ.get("HDF_TEST_DEVICE", "cpu")).device


@pytest.fixture(autouse=True)
def _start(request, device):
    if device.type != "cpu" and request.node.get_closest_marker("cpu_only"):
        pytest.skip("about processors alone")
    torch.manual_seed(0)
    yield
    # Accelerate keeps one state per process, whose settings the next accelerator may not change.
    if state := sys.modules.get("accelerate.state"):
        state.AcceleratorState._reset_state(reset_partial_state=True)
