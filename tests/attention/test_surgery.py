"""What users do to modules and weights acts, or is refused: the module is read as it stands."""

import copy
import warnings
from pathlib import Path

import pytest
import torch
from accelerate import cpu_offload
from torch import nn
from torch.nn.utils import parametrizations, parametrize, prune

from hdf_modules import DistributionalAttention, HDFError
from tests.support.attention import randomised


@pytest.fixture
def module(device):
    return randomised(DistributionalAttention(6, 5, device=device))


@pytest.fixture
def x(device):
    return torch.randn(2, 6, 5, 7, 7, device=device)


def test_modules_that_are_called_give_what_their_tensors_give(module, x):
    expected = module(x)
    calls = []
    module.temporal.query.register_forward_hook(lambda *_: calls.append("query"))
    module.frequency.readout.register_forward_hook(lambda *_: calls.append("readout"))
    assert torch.equal(module(x), expected)
    assert calls == ["query", "readout"]


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_called_in_the_dtype_of_the_computation(module, x, dtype):
    module.to(dtype)
    expected = module(x)
    module.temporal.value.register_forward_hook(lambda *_: None)
    assert torch.equal(module(x), expected)


@pytest.mark.cpu_only
@pytest.mark.filterwarnings("ignore")  # torch speaks for another package
def test_dynamic_quantization(module, x):
    quantized = torch.ao.quantization.quantize_dynamic(module, {nn.Linear}, dtype=torch.qint8)
    assert type(quantized.temporal.query) is not nn.Linear
    torch.testing.assert_close(quantized(x), module(x), rtol=0.02, atol=0.02)
    assert not torch.equal(quantized(x), module(x))


PRUNED = ["temporal.query.weight", "frequency.scale", "frequency.readout.0", "strength"]


@pytest.mark.parametrize("name", PRUNED)
def test_pruned_weights_stay_zero_while_the_rest_trains(module, x, name):
    owner, _, weight = name.rpartition(".")
    owner = module.get_submodule(owner)
    prune.random_unstructured(owner, weight, 0.5 if name != "strength" else 1)
    original, mask = getattr(owner, f"{weight}_orig"), getattr(owner, f"{weight}_mask")
    before = original.detach().clone()
    optimizer = torch.optim.SGD(module.parameters(), 1e-4)
    for _ in range(2):
        optimizer.zero_grad()
        module(x).square().sum().backward()
        assert (original.grad[mask == 0] == 0).all()
        optimizer.step()
    changed = original != before
    assert changed.any() or not mask.any()
    assert not changed[mask == 0].any()
    pruned = module(x)
    prune.remove(owner, weight)
    torch.testing.assert_close(module(x), pruned)


@pytest.mark.parametrize("name", PRUNED)
def test_parametrized_weights_act_and_train(module, x, name):
    owner, _, weight = name.rpartition(".")
    owner = module.get_submodule(owner)
    expected = copy.deepcopy(module)
    with torch.no_grad():
        expected.get_parameter(name).tanh_()
    parametrize.register_parametrization(owner, weight, nn.Tanh())
    torch.testing.assert_close(module(x), expected(x))
    module(x).square().sum().backward()
    assert all(parameter.grad is not None for parameter in module.parameters())


@pytest.mark.parametrize("normalise", [nn.utils.weight_norm, parametrizations.weight_norm])
def test_weight_norm_trains(module, x, normalise):
    expected = module(x)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)  # the older of the two
        normalise(module.temporal.value)
    torch.testing.assert_close(module(x), expected)
    for _ in range(2):
        module(x).square().sum().backward()
    assert all(parameter.grad is not None for parameter in module.parameters())


class LowRank(nn.Module):
    """An adapter as those of LoRA: the layer plus a product of two thin ones."""

    def __init__(self, base_layer):
        super().__init__()
        width, device = base_layer.in_features, base_layer.weight.device
        self.base_layer = base_layer
        self.lora_A = nn.Linear(width, 2, bias=False, device=device)
        self.lora_B = nn.Linear(2, width, bias=False, device=device)

    weight = property(lambda self: self.base_layer.weight)
    bias = property(lambda self: self.base_layer.bias)

    def forward(self, x):
        return self.base_layer(x) + self.lora_B(self.lora_A(x))


@pytest.mark.parametrize("name", ["mixing", "query", "key", "value"])
def test_adapters_around_linear_maps_act_and_train(module, x, name):
    expected = copy.deepcopy(module)
    adapted = LowRank(getattr(module.temporal, name))
    with torch.no_grad():
        getattr(expected.temporal, name).weight += adapted.lora_B.weight @ adapted.lora_A.weight
    setattr(module.temporal, name, adapted)
    torch.testing.assert_close(module(x), expected(x))
    module(x).square().sum().backward()
    assert adapted.lora_A.weight.grad.abs().sum() > 0


def test_other_modules_in_the_place_of_linear_maps(module, x, device):
    module.temporal.mixing = nn.Linear(5, 5, device=device)  # one with a bias
    module.temporal.query = nn.Linear(5, 5, bias=False, device=device)
    module.temporal.key = nn.Identity()
    module(x).square().sum().backward()
    assert module.temporal.mixing.bias.grad.abs().sum() > 0
    assert module.temporal.query.weight.grad.abs().sum() > 0


def test_functional_call_whose_backward_comes_after_it(module, x):
    other = {n: (1.5 * p.detach()).requires_grad_() for n, p in module.named_parameters()}
    torch.func.functional_call(module, other, (x,)).square().sum().backward()
    expected = copy.deepcopy(module)
    expected.load_state_dict(other)
    expected(x).square().sum().backward()
    for name, parameter in expected.named_parameters():
        torch.testing.assert_close(other[name].grad, parameter.grad)


def test_weights_replaced_after_a_forward(module, x, device):
    module(x)
    state = randomised(DistributionalAttention(6, 5, device=device)).state_dict()
    module.load_state_dict(state, assign=True)
    expected = DistributionalAttention(6, 5, device=device)
    expected.load_state_dict(state)
    assert torch.equal(module(x), expected(x))


@pytest.mark.cpu_only
def test_weights_that_are_offloaded_between_calls(module, x):
    expected = module(x)
    network = cpu_offload(nn.Sequential(nn.Identity(), module), execution_device="cpu")
    assert next(module.temporal.parameters()).is_meta
    torch.testing.assert_close(network(x), expected)


def test_weights_on_another_device_are_refused(module, x):
    with pytest.raises(HDFError, match=r"\.to\(x\.device\).* on meta, where the parameters are"):
        copy.deepcopy(module).to("meta")(x)
    assert module.to("meta")(x.to("meta")).is_meta


def test_a_module_of_the_first_release_gives_the_values_it_had(device):
    path = Path(__file__).parents[1] / "golden/state_0_1_0/attention.pt"
    saved = torch.load(path, weights_only=True, map_location=device)
    module = DistributionalAttention(6, 4, reduction=7, device=device)
    module.load_state_dict(saved["state"])
    torch.testing.assert_close(module(saved["inputs"]), saved["output"])
