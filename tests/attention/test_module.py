"""Values and gradients of DistributionalAttention: released numbers, float64 loops, gradcheck."""

import numpy as np
import pytest
import torch

from hdf_modules import DistributionalAttention
from hdf_modules.attention.released import names
from tests.support.attention import GOLDEN, randomised
from tests.support.reference.attention import attention as reference

SYMBOLS = {
    "temporal_weight": "w_t",
    "frequency_weight": "w_s",
    "strength": "r",
    "temporal.mean_weight": "alpha_p",
    "temporal.peak_weight": "beta_p",
    "temporal.scale": "gamma",
    "temporal.distance_scale": "delta",
    "temporal.mixing.weight": "mixing",
    "temporal.query.weight": "q_weight",
    "temporal.query.bias": "q_bias",
    "temporal.key.weight": "k_weight",
    "temporal.key.bias": "k_bias",
    "temporal.value.weight": "v_weight",
    "temporal.value.bias": "v_bias",
    "frequency.clean_weight": "alpha_d",
    "frequency.perturbed_weight": "beta_d",
    "frequency.noise": "nu",
    "frequency.noise_scale": "a",
    "frequency.spread_scale": "b",
    "frequency.slope": "kappa",
    "frequency.scale": "gamma_f",
    "frequency.shift": "beta_f",
}


def by_symbol(module):
    p = {SYMBOLS[k]: v for k, v in module.named_parameters() if k in SYMBOLS}
    identity = {"r": module.temporal_weight.new_ones(())}
    return identity | p | {"readout": list(module.frequency.readout)}


def assert_near(name, found, expected, tolerance, scale=None):
    scale = expected.abs().max() if scale is None else scale
    error = (found - expected).abs().max() / scale
    assert error <= tolerance, f"{name}: {error:.1e}"


@pytest.mark.parametrize("path", GOLDEN, ids=lambda path: path.stem)
@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float64, 1e-9), (torch.float32, 1e-4)])
def test_released_values_and_gradients(path, dtype, tolerance, device):
    golden = {k: torch.from_numpy(v).to(device, dtype) for k, v in np.load(path).items()}
    state = {k[6:]: v for k, v in golden.items() if k.startswith("state.")}
    module = DistributionalAttention.from_released(state, golden["input"].shape[2]).to(device)
    x = golden["input"].requires_grad_()
    y = module(x)
    y.backward(golden["grad_output"])
    assert y.dtype == dtype
    assert_near("output", y, golden["output"], tolerance)
    assert_near("input", x.grad, golden["grad_input"], tolerance)
    released = names(state)
    assert set(released) == set(dict(module.named_parameters()))
    for name, parameter in module.named_parameters():
        expected = golden["grad." + released[name]].reshape(parameter.shape)
        # A shift common to all keys leaves a softmax unchanged: the exact gradient is zero and
        # both sides hold rounding only, so its scale is that of the query bias.
        alike = "temporal_attn.q.bias" if name == "temporal.key.bias" else released[name]
        scale = golden["grad." + alike].abs().max()
        assert_near(name, parameter.grad, expected, tolerance, scale)


CASES = {
    "odd sizes": ((2, 3, 5, 4, 6), {"num_frames": 3}),
    "fewer channels than bins": ((1, 4, 2, 3, 3), {"num_frames": 4, "bins": 7}),
    "bins that do not divide": ((2, 3, 7, 3, 2), {"num_frames": 3, "bins": 3}),
    "shorter clip": ((2, 3, 4, 3, 3), {"num_frames": 7}),
    "longer clip": ((1, 7, 4, 3, 3), {"num_frames": 4}),
    "one frame": ((2, 1, 4, 3, 3), {"num_frames": 4}),
    "one position": ((2, 3, 4, 1, 1), {"num_frames": 3}),
    "one channel": ((1, 3, 1, 4, 3), {"num_frames": 3}),
    "one bin": ((1, 3, 4, 3, 2), {"num_frames": 3, "bins": 1}),
    "bins": ((2, 3, 5, 4, 3), {"num_frames": 3, "consistency": "bins"}),
    "no perturbation": ((1, 3, 4, 4, 3), {"num_frames": 3, "perturbation": None}),
    "no identity": ((1, 3, 4, 4, 3), {"num_frames": 3, "identity_start": False}),
    "reduction": ((1, 3, 4, 4, 3), {"num_frames": 3, "reduction": 12}),
    "small spectrum": ((2, 3, 4, 5, 3), {"num_frames": 3, "dct_size": 3}),
}


@pytest.mark.parametrize("case", CASES)
def test_equals_the_formulas_in_loops(case, device):
    shape, options = CASES[case]
    where = {"dtype": torch.float64, "device": device}
    module = DistributionalAttention(shape[2], **options, layout="b t c h w", **where)
    randomised(module)
    x = torch.randn(shape, requires_grad=True, **where)
    parameters = [x, *module.parameters()]
    weight = torch.randn_like(x)
    y = module(x)
    found = torch.autograd.grad((y * weight).sum(), parameters)
    expected_y, g, f = reference(
        x,
        by_symbol(module),
        bins=module.bins,
        size=options.get("dct_size", 7),
        consistency=options.get("consistency", "time"),
        perturbed=options.get("perturbation", "learned") is not None,
    )
    expected = torch.autograd.grad((expected_y * weight).sum(), parameters, materialize_grads=True)
    torch.testing.assert_close(y, expected_y, rtol=1e-10, atol=1e-12)
    for ours, theirs in zip(module.gates(x), (g, f), strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-10, atol=1e-12)
    names_ = ["x", *dict(module.named_parameters())]
    for name, ours, theirs in zip(names_, found, expected, strict=True):
        torch.testing.assert_close(
            ours, theirs, rtol=1e-8, atol=1e-11, msg=lambda text, name=name: f"{name}: {text}"
        )


@pytest.mark.parametrize("options", [{}, {"consistency": "bins", "reduction": 4}])
@pytest.mark.parametrize("frames", [2, 3])
def test_gradcheck(options, frames, device):
    where = {"dtype": torch.float64, "device": device}
    module = randomised(DistributionalAttention(3, 3, dct_size=3, **options, **where))
    x = torch.randn(2, 3, frames, 3, 2, requires_grad=True, **where)
    state = {k: v.detach().requires_grad_() for k, v in module.named_parameters()}

    def run(x, *values):
        return torch.func.functional_call(module, dict(zip(state, values, strict=True)), (x,))

    assert torch.autograd.gradcheck(run, (x, *state.values()), fast_mode=True)
    assert torch.autograd.gradgradcheck(run, (x, *state.values()), fast_mode=True, atol=1e-4)


def test_gate_is_the_factor_and_gates_are_its_parts(device):
    module = randomised(DistributionalAttention(6, 4, device=device))
    x = torch.randn(2, 6, 4, 5, 3, device=device)
    gate = module.gate(x)
    temporal, frequency = module.gates(x)
    assert gate.shape == (2, 4, 5, 3)
    assert temporal.shape == (2, 4)
    assert frequency.shape == (2, 5, 3)
    torch.testing.assert_close(module(x), x * gate[:, None])
    mixed = 0.5 * (
        module.temporal_weight * (1 + temporal)[:, :, None, None]
        + module.frequency_weight * (1 + frequency)[:, None]
    )
    torch.testing.assert_close(gate, 1 + module.strength * (mixed - 1))
