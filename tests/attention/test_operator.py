"""The operator gives what its equations give, and keeps no more for backward than its inputs."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from hdf_modules import DistributionalAttention
from hdf_modules.attention import Layout, functional, operator
from hdf_modules.attention.functional import convolve
from hdf_modules.attention.weights import AttentionWeights
from tests.support.attention import LAYOUTS, randomised


def results(module, x, path, monkeypatch, *, twice=False):
    """Output and gradients, with ``twice`` also theirs, by the operator or its equations alone."""
    leaf = x.clone().requires_grad_()
    inputs = [leaf, *module.parameters()]
    with monkeypatch.context() as patch:
        if path == "equations":
            patch.setattr(operator, "attend", functional.attend)
        y = module(leaf)
        grads = torch.autograd.grad(y.double().square().sum(), inputs, create_graph=twice)
    if not twice:
        return [y, *grads]
    return [y, *grads, *torch.autograd.grad(sum(g.square().sum() for g in grads), inputs)]


@st.composite
def cases(draw):
    options = {
        "bins": draw(st.integers(1, 7)),
        "dct_size": draw(st.sampled_from([3, 5, 7])),
        "reduction": draw(st.sampled_from([1, 2, 9])),
        "consistency": draw(st.sampled_from(["time", "bins"])),
        "perturbation": draw(st.sampled_from(["learned", "adversarial", None])),
        "identity_start": draw(st.booleans()),
    }
    channels, num_frames = draw(st.integers(1, 9)), draw(st.integers(1, 6))
    sizes = [draw(st.integers(1, 9)) for _ in range(3)]
    return options, (draw(st.integers(0, 3)), channels, *sizes), num_frames


@given(cases())
def test_values_first_and_second_gradients(device, case):
    options, shape, num_frames = case
    torch.manual_seed(0)
    module = DistributionalAttention(
        shape[1], num_frames, **options, dtype=torch.float64, device=device
    )
    module, x = randomised(module), torch.randn(shape, dtype=torch.float64, device=device)
    with pytest.MonkeyPatch.context() as patch:
        found, expected = (
            results(module, x, path, patch, twice=True) for path in ("operator", "equations")
        )
    # The second gradient of a norm is NaN where the norm is zero.
    torch.testing.assert_close(found, expected, equal_nan=True)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("layout", [*LAYOUTS, Layout("(b t) (h w) c", 1, 2)], ids=str)
def test_layouts_and_dtypes(layout, dtype, device, monkeypatch):
    module = randomised(DistributionalAttention(5, 4, layout=layout, device=device))
    sizes = {"b": 2, "t": 4, "c": 5, "h": 6, "w": 6}
    folded = [torch.Size(sizes[a] for a in group).numel() for group in module.layout.groups]
    if module.layout.has_extra_tokens:
        folded[module.layout.token_axis] += 3
    x = torch.randn(folded, device=device).to(dtype)
    found, expected = (results(module, x, p, monkeypatch) for p in ("operator", "equations"))
    torch.testing.assert_close(found, expected)
    assert found[0].dtype == found[1].dtype == dtype


FROZEN = {
    "input": lambda name: True,
    "parameters": lambda name: False,
    "temporal branch": lambda name: not name.startswith("temporal."),
    "all but the strength": lambda name: name == "strength",
}


@pytest.mark.parametrize("frozen", FROZEN)
def test_what_is_frozen_gets_no_gradient(frozen, device):
    module = randomised(DistributionalAttention(3, 4, device=device))
    x = torch.randn(2, 3, 4, 5, 4, device=device, requires_grad=frozen != "input")
    for name, parameter in module.named_parameters():
        parameter.requires_grad_(FROZEN[frozen](name))
    module(x).square().sum().backward()
    for tensor in (x, *module.parameters()):
        assert (tensor.grad is not None) == tensor.requires_grad


def test_without_gradients_no_graph_and_the_same_bits(device):
    module = randomised(DistributionalAttention(6, 4, device=device))
    x = torch.randn(2, 6, 4, 9, 7, device=device)
    expected = module(x)
    for context in (torch.no_grad, torch.inference_mode):
        with context():
            y = module(x)
        assert not y.requires_grad
        assert torch.equal(y, expected)


@pytest.mark.parametrize("shape", [(2, 24, 16, 28, 28), (2, 96, 16, 7, 7), (1, 8, 16, 1, 1)])
def test_backward_needs_the_inputs_alone(shape, device, monkeypatch):
    monkeypatch.setenv("HDF_KERNELS", "reference")  # kernels keep a little more
    module = randomised(DistributionalAttention(shape[1], shape[2], device=device))
    x = torch.randn(shape, device=device, requires_grad=True)
    inputs = {tensor.data_ptr() for tensor in (x, *module.parameters())}
    kept = []
    with torch.autograd.graph.saved_tensors_hooks(kept.append, lambda _: None):
        module(x)
    assert {tensor.data_ptr() for tensor in kept} <= inputs


def test_gradients_of_weights_that_come_from_one_another(device, monkeypatch):
    """A gradient must stop at each input, although the path goes on to another."""
    module = randomised(DistributionalAttention(3, 4, dtype=torch.float64, device=device))
    x = torch.randn(2, 3, 4, 5, 4, dtype=torch.float64, device=device)
    axes = module.layout.bind(x, 4)
    weights = [None if w is None else w.detach() for w in module._weights(x)]
    found = []
    for attend in (operator.attend, functional.attend):
        base = weights[19].clone().requires_grad_()
        tied = [*weights[:19], base, None, *weights[21:]]
        tied[15] = base.mean((0, 2, 3))
        tied[17] = tied[15].tanh()
        y = attend(x * base.sum(), axes, AttentionWeights._make(tied), module.options)
        (first,) = torch.autograd.grad(y.square().sum(), base, create_graph=True)
        found.append((first, *torch.autograd.grad(first.square().sum(), base)))
    torch.testing.assert_close(*found)


@pytest.mark.parametrize("layout", ["b c t h w", "b t h w c"])
def test_the_first_of_equal_maxima_gets_the_gradient_and_nan_stays_in_its_clip(layout, device):
    shape = {"b": 2, "c": 17, "t": 3, "h": 4, "w": 4}
    options = {"bins": 4, "layout": layout, "dtype": torch.float64, "device": device}
    module = randomised(DistributionalAttention(17, 3, **options))
    x = torch.randn([shape[a] for a in layout.split()], dtype=torch.float64, device=device)
    x = x.clamp(max=0.5)
    x[(0,) + (1,) * 4] = torch.nan
    leaf = x.requires_grad_()
    y = module(leaf)
    y.sum().backward()
    assert y[0].isnan().any()
    assert leaf.grad[0].isnan().any()
    assert leaf.grad[1].isfinite().all()


@given(st.integers(1, 3), st.integers(1, 9), st.integers(1, 9), st.sampled_from([3, 5, 7]))
def test_convolution_as_a_product(device, batch, height, width, size):
    torch.manual_seed(0)
    maps = torch.randn(batch, 4, height, width, dtype=torch.float64, device=device)
    kernel = torch.randn(2, 4, size, size, dtype=torch.float64, device=device)
    expected = torch.nn.functional.conv2d(maps, kernel, padding=size // 2)
    torch.testing.assert_close(convolve(maps, kernel), expected)


@pytest.mark.parametrize("seed", range(8))
def test_a_constant_spectrum_gives_the_perturbation_no_direction(seed, device):
    """A window that covers the map has one sum everywhere: rounding is not a deviation."""
    torch.manual_seed(seed)
    module = randomised(DistributionalAttention(1, 1, dct_size=13, device=device))
    image = torch.randn(1, 1, 1, 7, 5, device=device)
    found = []
    for first in (0.0, 1e6):  # how much the spread of the lowest frequency counts
        with torch.no_grad():
            module.frequency.spread_scale[0] = first
            found.append(module(image))
    assert torch.equal(*found)
