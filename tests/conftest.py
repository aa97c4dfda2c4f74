"""Every test starts from the same seed, on one thread, on the device that HDF_TEST_DEVICE names."""

import os

import pytest
import torch
from hypothesis import settings

settings.register_profile("default", deadline=None, derandomize=True, max_examples=30)
settings.load_profile("default")


@pytest.fixture(autouse=True)
def _seed():
    torch.manual_seed(0)


@pytest.fixture
def device() -> torch.device:
    return torch.device(os.environ.get("HDF_TEST_DEVICE", "cpu"))
