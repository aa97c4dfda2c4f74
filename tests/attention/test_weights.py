"""The order of the weights is defined once, and everything that depends on it is held to it."""

import ctypes
from pathlib import Path

import pytest
import torch

from hdf_modules import DistributionalAttention
from hdf_modules.attention.kernels import native
from hdf_modules.attention.weights import NAMES, AttentionWeights


def parameter_name(name):
    """Where the module keeps a weight: linear maps are children, all else is its own."""
    for child in ("mixing", "query", "key", "value"):
        if name == f"temporal.{child}":
            return f"{name}.weight"
        if name == f"temporal.{child}_bias":
            return f"temporal.{child}.bias"
    return name


@pytest.mark.parametrize("reduction", [1, 7])
def test_the_module_gives_its_weights_in_that_order(reduction, device):
    module = DistributionalAttention(6, 4, reduction=reduction, device=device)
    parameters = dict(module.named_parameters())
    flat = module._weights(torch.empty(0, device=device)).flat()
    assert len(flat) == len(NAMES)
    for name, weight in zip(NAMES, flat, strict=True):
        assert weight is parameters.pop(parameter_name(name), None), name
    assert not parameters


def test_flat_weights_come_back_as_they_were(device):
    for options in ({}, {"reduction": 7}, {"perturbation": None}, {"identity_start": False}):
        module = DistributionalAttention(6, 4, device=device, **options)
        weights = module._weights(torch.empty(0, device=device))
        again = AttentionWeights.from_flat(weights.flat())
        assert again.temporal == weights.temporal
        assert [a is b for a, b in zip(again.flat(), weights.flat(), strict=True)] == [True] * 24


@pytest.mark.cpu_only
@pytest.mark.skipif(native.library is None, reason="no compiler")
def test_a_build_of_another_order_is_refused(monkeypatch):
    path = Path(native.library._name)
    assert isinstance(native.open_build(path), ctypes.CDLL)
    monkeypatch.setattr(native, "NAMES", (NAMES[1], NAMES[0], *NAMES[2:]))
    with pytest.raises(ValueError, match="expected weights in the order"):
        native.open_build(path)


def test_a_module_of_the_first_release_gives_the_values_it_had(device):
    path = Path(__file__).parents[1] / "golden/state_0_1_0/attention.pt"
    saved = torch.load(path, weights_only=True, map_location=device)
    module = DistributionalAttention(6, 4, reduction=7, device=device)
    module.load_state_dict(saved["state"])
    torch.testing.assert_close(module(saved["inputs"]), saved["output"])
