"""The fast path of DistributionalAttention and the plain one give the same numbers."""

import copy

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from hdf_modules import DistributionalAttention
from hdf_modules.functional import attention, fused, fused_clip, fused_frequency, fused_gates
from hdf_modules.functional.frequency import convolve, local_spectrum
from hdf_modules.functional.planes import Grid
from hdf_modules.functional.planes import convolve as fast_convolve
from hdf_modules.functional.planes import spectrum as fast_spectrum
from hdf_modules.functional.statistics import clip_statistics, resample_time
from tests.test_attention import randomised
from tests.test_attention_layouts import LAYOUTS


def paths(module):
    """The module on its fast and on its plain path, with the same parameters."""
    slow = copy.deepcopy(module)
    slow.fused = False
    return module, slow


def assert_paths_agree(module, x, **tolerance):
    found = []
    for path in paths(module):
        leaf = x.clone().requires_grad_()
        y = path(leaf)
        # A gradient that depends on y, as a loss's does.
        grads = torch.autograd.grad(y.float().square().sum(), [leaf, *path.parameters()])
        found.append([y, *grads])
    names = ["y", "x", *dict(module.named_parameters())]
    for name, fast, slow in zip(names, *found, strict=True):
        assert fast.dtype == slow.dtype
        torch.testing.assert_close(
            fast, slow, **tolerance, msg=lambda text, name=name: f"{name}: {text}"
        )


@st.composite
def modules(draw):
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
    module = DistributionalAttention(channels, num_frames, **options, dtype=torch.float64)
    return module, (draw(st.integers(1, 3)), channels, *sizes)


@given(modules())
def test_values_and_gradients(case):
    module, shape = case
    torch.manual_seed(0)
    x = torch.randn(shape, dtype=torch.float64)
    assert_paths_agree(randomised(module), x, rtol=1e-7, atol=1e-10)


@pytest.mark.parametrize("layout", LAYOUTS)
def test_layouts(layout):
    sizes = {"b": 2, "t": 4, "c": 5, "h": 6, "w": 6}
    module = DistributionalAttention(5, 4, layout=layout, dtype=torch.float64)
    lengths = [sizes[axis] for group in module.layout.groups for axis in group]
    folded = [torch.Size(sizes[a] for a in group).numel() for group in module.layout.groups]
    x = torch.randn(lengths, dtype=torch.float64).view(folded)
    assert_paths_agree(randomised(module), x)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("memory_format", [torch.contiguous_format, torch.channels_last_3d])
def test_dtypes_and_memory_formats(dtype, memory_format, device):
    module = randomised(DistributionalAttention(6, 4)).to(device)
    x = torch.randn(2, 6, 4, 9, 7, device=device).to(dtype).to(memory_format=memory_format)
    half = {"rtol": 0.02, "atol": 0.02}
    assert_paths_agree(module, x, **({} if dtype == torch.float32 else half))


@pytest.mark.parametrize("shape", [(2, 24, 16, 28, 28), (3, 40, 16, 14, 11)])
def test_sizes_of_a_backbone_in_blocks(shape, monkeypatch):
    monkeypatch.setattr(fused_clip, "_BLOCK", shape[1] * 16 * shape[3] * shape[4])
    module = randomised(DistributionalAttention(shape[1], 16))
    assert_paths_agree(module, torch.randn(shape), rtol=1e-3, atol=1e-3)


def test_equal_maxima_and_nan():
    module = randomised(DistributionalAttention(5, 3, bins=4, dtype=torch.float64))
    x = torch.randint(0, 3, (2, 5, 3, 4, 4)).double()
    assert_paths_agree(module, x)
    x[0, 1, 2, 3, 0] = torch.nan
    leaf = x.requires_grad_()
    module(leaf).sum().backward()
    assert leaf.grad[0].isnan().any()
    assert leaf.grad[1].isfinite().all()


def test_double_backward():
    module = randomised(DistributionalAttention(3, 4, dtype=torch.float64))
    x = torch.randn(2, 3, 4, 5, 4, dtype=torch.float64)
    second = []
    for path in paths(module):
        leaf = x.clone().requires_grad_()
        inputs = [leaf, *path.parameters()]
        first = torch.autograd.grad(path(leaf).square().sum(), inputs, create_graph=True)
        total = sum(grad.square().sum() for grad in first)
        second.append(torch.autograd.grad(total, inputs))
    torch.testing.assert_close(second[0], second[1])


FROZEN = {
    "input": lambda name: True,
    "parameters": lambda name: False,
    "temporal branch": lambda name: not name.startswith("temporal."),
    "all but the strength": lambda name: name == "strength",
}


@pytest.mark.parametrize("frozen", FROZEN)
def test_what_is_frozen_gets_no_gradient(frozen):
    module = randomised(DistributionalAttention(3, 4, dtype=torch.float64))
    x = torch.randn(2, 3, 4, 5, 4, dtype=torch.float64, requires_grad=frozen != "input")
    for name, parameter in module.named_parameters():
        parameter.requires_grad_(FROZEN[frozen](name))
    found = []
    for path in paths(module):
        leaf = x.detach().clone().requires_grad_(x.requires_grad)
        path(leaf).square().sum().backward()
        found.append([leaf.grad, *(p.grad for p in path.parameters())])
    expected = [x.requires_grad, *(p.requires_grad for p in module.parameters())]
    assert [grad is not None for grad in found[0]] == expected
    for fast, slow in zip(*found, strict=True):
        if fast is not None:
            torch.testing.assert_close(fast, slow)


def test_without_gradients_no_graph_and_the_same_bits():
    module = randomised(DistributionalAttention(6, 4))
    x = torch.randn(2, 6, 4, 9, 7)
    expected = module(x)
    for context in (torch.no_grad, torch.inference_mode):
        with context():
            y = module(x)
        assert not y.requires_grad
        assert torch.equal(y, expected)


def test_the_fast_path_is_taken_and_left_where_operations_are_traced(monkeypatch):
    module, x = DistributionalAttention(3, 4), torch.randn(1, 3, 4, 5, 5)
    taken = []
    for name, path in (("fast", fused), ("plain", attention)):
        inner = path.attend
        monkeypatch.setattr(path, "attend", lambda *a, n=name, f=inner: taken.append(n) or f(*a))
    module(x)
    torch.func.vmap(module)(x[None])
    torch.func.grad(lambda x: module(x).sum())(x)
    torch.compile(module, backend="eager", fullgraph=True)(x)
    assert taken == ["fast", "plain", "plain", "plain"]


@pytest.mark.parametrize("frames", [1, 3, 8])
def test_parts_of_the_factor_and_their_gradients(frames):
    module = randomised(DistributionalAttention(6, 4, dtype=torch.float64))
    x = torch.randn(2, frames, 6, 5, 7, dtype=torch.float64)
    stats = clip_statistics(x, module.bins, x.dtype)
    leaves = type(stats)(*(s.clone().requires_grad_() for s in stats))
    weights = module._weights(x)
    expected = attention.gate_parts(leaves, weights, module.options)
    upstream = [torch.randn_like(part) for part in expected]
    gradients = torch.autograd.grad(expected, leaves, upstream)
    with torch.no_grad():
        found = fused_gates.gate_parts(stats, weights, module.options, keep=True)
        torch.testing.assert_close(found[:2], expected)
        stats_grad, _ = fused_gates.gate_parts_backward(*upstream, found, weights, module.options)
    torch.testing.assert_close(tuple(stats_grad), gradients)
    matrix = fused_gates.resampling_matrix(frames, 4, torch.float64, x.device)
    torch.testing.assert_close(matrix @ stats.mean, resample_time(stats.mean, 4))


@given(st.integers(1, 3), st.integers(1, 9), st.integers(1, 9), st.sampled_from([3, 5, 7]))
def test_spectrum_and_convolution_of_planes(batch, height, width, size):
    torch.manual_seed(0)
    image = torch.randn(batch, height, width, dtype=torch.float64)
    grid = Grid(height, width, size)
    spectrum = fast_spectrum(image.flatten(1).unsqueeze(1), grid)
    torch.testing.assert_close(spectrum, local_spectrum(image, size).flatten(2))
    maps = torch.randn(batch, 4, height, width, dtype=torch.float64)
    kernel = torch.randn(2, 4, size, size, dtype=torch.float64)
    expected = torch.nn.functional.conv2d(maps, kernel, padding=size // 2)
    torch.testing.assert_close(fast_convolve(maps.flatten(2), kernel, grid), expected.flatten(2))
    torch.testing.assert_close(convolve(maps, kernel), expected)


@pytest.mark.parametrize("seed", range(8))
def test_a_constant_spectrum_gives_the_perturbation_no_direction(seed):
    module = randomised(DistributionalAttention(1, 1))
    image = torch.randn(1, 4, 3, generator=torch.Generator().manual_seed(seed))
    with torch.no_grad():
        weights = module._weights(image).frequency
        kept = fused_frequency.frequency_gate(image, weights, 7, keep=True)
    assert kept.deviation[0, 0] == 0  # the window covers the map: one sum everywhere
    assert (kept.deviation[0, 1:] > 0).all()


def test_half_precision_finds_maxima_beyond_256_positions():
    maps = torch.zeros(1, 1, 1, 1600, dtype=torch.bfloat16)
    maps[..., 1217] = 1
    assert fused_clip._first_maximum(maps).item() == 1217
