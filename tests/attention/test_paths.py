"""The fast paths of DistributionalAttention and the plain one give the same numbers."""

import copy
import shutil
import sys
from contextlib import contextmanager

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from hdf_modules import DistributionalAttention
from hdf_modules.attention import Layout
from hdf_modules.attention import functional as attention
from hdf_modules.attention.constants import resampling_matrix
from hdf_modules.attention.functional import convolve, resample_time
from hdf_modules.attention.kernels import fused, native
from tests.support.attention import LAYOUTS, randomised

# Without a compiler there are no native kernels to test.
KERNELS = [fused] if native.library is None else [native, fused]


def short(module):
    return module.__name__.rpartition(".")[2]


every_kernel = pytest.mark.parametrize("kernels", KERNELS, ids=short)


@contextmanager
def using(kernels):
    """The kernels, where they can be used."""
    with pytest.MonkeyPatch.context() as patch:
        if kernels is fused:
            patch.setattr(native, "library", None)
        yield


def paths(module):
    """The module on its fast and on its plain path, with the same parameters."""
    slow = copy.deepcopy(module)
    slow.fused = False
    return module, slow


def assert_paths_agree(kernels, module, x, **tolerance):
    found = []
    for path in paths(module):
        leaf = x.clone().requires_grad_()
        with using(kernels):
            y = path(leaf)
        # A gradient that depends on y, as a loss's does.
        grads = torch.autograd.grad(y.float().square().sum(), [leaf, *path.parameters()])
        found.append([y, *grads])
    names = ["y", "x", *dict(module.named_parameters())]
    for name, ours, plain in zip(names, *found, strict=True):
        assert ours.dtype == plain.dtype
        torch.testing.assert_close(
            ours, plain, **tolerance, msg=lambda text, name=name: f"{name}: {text}"
        )


@pytest.mark.cpu_only
def test_native_kernels_are_built_where_there_is_a_compiler():
    if sys.platform == "linux" and shutil.which("g++"):
        assert native.library is not None


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


@every_kernel
@given(modules())
def test_values_and_gradients(device, kernels, case):
    module, shape = case
    torch.manual_seed(0)
    x = torch.randn(shape, dtype=torch.float64, device=device)
    assert_paths_agree(kernels, randomised(module).to(device), x, rtol=1e-7, atol=1e-10)


@every_kernel
@pytest.mark.parametrize("layout", LAYOUTS)
def test_layouts(kernels, layout, device):
    sizes = {"b": 2, "t": 4, "c": 5, "h": 6, "w": 6}
    module = DistributionalAttention(5, 4, layout=layout, dtype=torch.float64, device=device)
    lengths = [sizes[axis] for group in module.layout.groups for axis in group]
    folded = [torch.Size(sizes[a] for a in group).numel() for group in module.layout.groups]
    x = torch.randn(lengths, dtype=torch.float64, device=device).view(folded)
    assert_paths_agree(kernels, randomised(module), x)


@every_kernel
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("memory_format", [torch.contiguous_format, torch.channels_last_3d])
def test_dtypes_and_memory_formats(kernels, dtype, memory_format, device):
    module = randomised(DistributionalAttention(6, 4, device=device))
    x = torch.randn(2, 6, 4, 9, 7, device=device).to(dtype).to(memory_format=memory_format)
    half = {"rtol": 0.02, "atol": 0.02}
    assert_paths_agree(kernels, module, x, **({} if dtype == torch.float32 else half))


@every_kernel
@pytest.mark.parametrize("shape", [(2, 24, 16, 28, 28), (3, 40, 16, 14, 11)])
def test_sizes_of_a_backbone_in_blocks(kernels, shape, monkeypatch, device):
    monkeypatch.setattr(fused, "_BLOCK", shape[1] * 16 * shape[3] * shape[4])
    module = randomised(DistributionalAttention(shape[1], 16, device=device))
    assert_paths_agree(kernels, module, torch.randn(shape, device=device), rtol=1e-3, atol=1e-3)


@every_kernel
@pytest.mark.parametrize("layout", ["b c t h w", "b t h w c"])
@pytest.mark.parametrize("side", [2, 4])  # below and above the width of a vector
def test_equal_maxima_and_nan(kernels, layout, side, device):
    shape = {"b": 2, "c": 17, "t": 3, "h": side, "w": side}
    where = {"dtype": torch.float64, "device": device}
    module = randomised(DistributionalAttention(17, 3, bins=4, layout=layout, **where))
    x = torch.randn([shape[axis] for axis in layout.split()], **where).clamp(max=0.5)
    assert_paths_agree(kernels, module, x)
    x[(0,) + (1,) * 4] = torch.nan
    leaf = x.requires_grad_()
    with using(kernels):
        y = module(leaf)
    y.sum().backward()
    assert y[0].isnan().any()
    assert leaf.grad[0].isnan().any()
    assert leaf.grad[1].isfinite().all()


@every_kernel
def test_double_backward(kernels, device):
    module = randomised(DistributionalAttention(3, 4, dtype=torch.float64, device=device))
    x = torch.randn(2, 3, 4, 5, 4, dtype=torch.float64, device=device)
    second = []
    for path in paths(module):
        leaf = x.clone().requires_grad_()
        inputs = [leaf, *path.parameters()]
        with using(kernels):
            y = path(leaf)
        first = torch.autograd.grad(y.square().sum(), inputs, create_graph=True)
        total = sum(grad.square().sum() for grad in first)
        second.append(torch.autograd.grad(total, inputs))
    torch.testing.assert_close(second[0], second[1])


FROZEN = {
    "input": lambda name: True,
    "parameters": lambda name: False,
    "temporal branch": lambda name: not name.startswith("temporal."),
    "all but the strength": lambda name: name == "strength",
}


@every_kernel
@pytest.mark.parametrize("frozen", FROZEN)
def test_what_is_frozen_gets_no_gradient(kernels, frozen, device):
    where = {"dtype": torch.float64, "device": device}
    module = randomised(DistributionalAttention(3, 4, **where))
    x = torch.randn(2, 3, 4, 5, 4, requires_grad=frozen != "input", **where)
    for name, parameter in module.named_parameters():
        parameter.requires_grad_(FROZEN[frozen](name))
    found = []
    for path in paths(module):
        leaf = x.detach().clone().requires_grad_(x.requires_grad)
        with using(kernels):
            path(leaf).square().sum().backward()
        found.append([leaf.grad, *(p.grad for p in path.parameters())])
    expected = [x.requires_grad, *(p.requires_grad for p in module.parameters())]
    assert [grad is not None for grad in found[0]] == expected
    for fast, slow in zip(*found, strict=True):
        if fast is not None:
            torch.testing.assert_close(fast, slow)


@every_kernel
def test_without_gradients_no_graph_and_the_same_bits(kernels, device):
    module = randomised(DistributionalAttention(6, 4, device=device))
    x = torch.randn(2, 6, 4, 9, 7, device=device)
    with using(kernels):
        expected = module(x)
    for context in (torch.no_grad, torch.inference_mode):
        with context(), using(kernels):
            y = module(x)
        assert not y.requires_grad
        assert torch.equal(y, expected)


def test_which_kernels_are_taken_and_where_operations_are_looked_into(monkeypatch, device):
    module = DistributionalAttention(3, 4, device=device)
    x, taken = torch.randn(1, 3, 4, 5, 5, device=device), []
    for path, function in ((native, "forward"), (fused, "forward"), (attention, "attend")):
        name, inner = short(path), getattr(path, function)
        monkeypatch.setattr(
            path, function, lambda *a, n=name, f=inner, **k: taken.append(n) or f(*a, **k)
        )
    best = short(KERNELS[0]) if device.type == "cpu" else "fused"
    module(x)
    module.double()(x.double())
    module.float()(x.half())
    monkeypatch.setattr(native, "library", None)
    module(x)
    torch.func.vmap(module)(x[None])
    torch.func.grad(lambda x: module(x).sum())(x)
    torch.export.export(module, (x,))
    torch.compile(module, backend="eager", fullgraph=True)(x)
    assert taken == [best, best, "fused", "fused", *["functional"] * 4]


@pytest.mark.cpu_only
@pytest.mark.skipif(native.library is None, reason="no compiler")
class TestNative:
    """What only the compiled kernels have to show."""

    @pytest.mark.skipif(
        not hasattr(torch.compiler, "is_exporting"), reason="torch 2.6 compiles the plain path"
    )
    @pytest.mark.parametrize("backend", ["eager", "aot_eager", "inductor"])
    @pytest.mark.parametrize(
        ("layout", "shape"), [("b c t h w", (2, 5, 4, 6, 5)), ("(b t) (h w) c", (8, 11, 5))]
    )
    def test_compiled_models_call_them_and_get_the_same_bits(self, backend, layout, shape):
        torch.compiler.reset()
        extra = 1 if "(h w)" in layout else 0
        module = randomised(DistributionalAttention(5, 4, layout=Layout(layout, extra, extra)))
        compiled = torch.compile(module, backend=backend, fullgraph=True)
        x, found = torch.randn(shape), []
        for path in (module, compiled):
            leaf = x.clone().requires_grad_()
            y = path(leaf)
            found.append([y, *torch.autograd.grad(y.square().sum(), [leaf, *module.parameters()])])
            with torch.no_grad():
                assert torch.equal(path(x), y)
        for ours, theirs in zip(*found, strict=True):
            assert torch.equal(ours, theirs)

    def test_the_operators_keep_to_their_schemas(self):
        module = randomised(DistributionalAttention(5, 4))
        clip, weights = torch.randn(2, 4, 5, 6, 5), module._weights(torch.empty(0)).flat()
        weights = [None if w is None else w.detach() for w in weights]
        out, options = torch.empty_like(clip), [4, 1, 7]
        checks = ("test_schema", "test_faketensor")
        operators = torch.ops.hdf_modules
        torch.library.opcheck(
            operators.attend.default, (clip, out, weights, options, True), test_utils=checks
        )
        kept = operators.attend(clip, out, weights, options, True)
        torch.library.opcheck(
            operators.attend_backward.default,
            (clip, torch.randn_like(clip), out, [kept, *weights], options),
            test_utils=checks,
        )

    @pytest.mark.parametrize("memory_format", [torch.contiguous_format, torch.channels_last_3d])
    @pytest.mark.parametrize("shape", [(3, 20, 5, 9, 7), (1, 20, 2, 90, 95)])
    def test_the_same_bits_on_any_number_of_threads(self, memory_format, shape):
        module, before = randomised(DistributionalAttention(20, 5)), torch.get_num_threads()
        x = torch.randn(shape).to(memory_format=memory_format)
        found = []
        try:
            for threads in (1, 2, 5):
                torch.set_num_threads(threads)
                leaf = x.clone().requires_grad_()
                y = module(leaf)
                leaves = [leaf, *module.parameters()]
                found.append([y, *torch.autograd.grad(y.square().sum(), leaves)])
        finally:
            torch.set_num_threads(before)
        for other in found[1:]:
            assert all(torch.equal(a, b) for a, b in zip(found[0], other, strict=True))

    @pytest.mark.parametrize(
        "build",
        [
            path
            for name in native.BUILDS.get(torch.backends.cpu.get_cpu_capability(), ["baseline"])
            for path in native.FOLDER.glob(f"{name}.*")
        ],
        ids=lambda path: path.name.partition(".")[0],
    )
    @pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
    @pytest.mark.parametrize("memory_format", [torch.contiguous_format, torch.channels_last_3d])
    def test_every_build(self, build, dtype, memory_format, monkeypatch):
        monkeypatch.setattr(native, "library", native.open_build(build))
        computed = torch.float64 if dtype == torch.float64 else torch.float32
        for channels, height in ((3, 2), (21, 9)):  # lines shorter and longer than a vector
            module = randomised(DistributionalAttention(channels, 4, dtype=computed))
            x = torch.randn(2, channels, 6, height, 7).to(dtype).to(memory_format=memory_format)
            half = {"rtol": 0.02, "atol": 0.02}
            near = {"rtol": 1e-4, "atol": 1e-4}
            tolerance = {torch.bfloat16: half, torch.float32: near}.get(dtype, {})
            assert_paths_agree(native, module, x, **tolerance)

    @pytest.mark.parametrize("memory_format", [torch.contiguous_format, torch.channels_last_3d])
    def test_half_precision_is_rounded_once_and_to_nearest(self, memory_format):
        module = randomised(DistributionalAttention(21, 4))
        x = torch.randn(2, 21, 4, 9, 7).bfloat16().to(memory_format=memory_format)
        x[1, 0, 0, 0, 0] = torch.nan
        y = module(x)
        torch.testing.assert_close(y, module(x.float()).bfloat16(), rtol=0, atol=0, equal_nan=True)
        assert y[0].isfinite().all()

    @pytest.mark.parametrize("reduction", [1, 16])
    def test_maps_of_several_blocks(self, reduction):
        options = {"reduction": reduction, "dtype": torch.float64}
        module = randomised(DistributionalAttention(3, 2, **options))
        ramp = torch.linspace(-3, 3, 40, dtype=torch.float64)  # blocks differ in their means
        x = torch.randn(2, 3, 2, 40, 21, dtype=torch.float64) + ramp[:, None]
        assert_paths_agree(native, module, x)

    def test_strides_that_the_kernels_cannot_walk(self):
        module = randomised(DistributionalAttention(5, 4, dtype=torch.float64))
        wide = torch.randn(2, 5, 4, 6, 14, dtype=torch.float64)
        for x in (wide[..., ::2], wide[..., :7], wide[:1, :, :, :, :7].expand(3, -1, -1, -1, -1)):
            leaf = x.detach().requires_grad_()
            grads = []
            for path in paths(module):
                y = path(leaf)
                # a gradient without strides of its own, as a sum's is
                grads.append(torch.autograd.grad(y.sum(), [leaf, *path.parameters()]))
            torch.testing.assert_close(*grads)

    def test_no_memory_is_an_error(self, monkeypatch):
        monkeypatch.setattr(native, "library", type("Full", (), {"hdf_forward": lambda *_: 2}))
        with pytest.raises(MemoryError, match="2 samples"):
            DistributionalAttention(3, 4)(torch.randn(2, 3, 4, 5, 5))

    def test_a_build_that_cannot_be_loaded_is_passed_over(self, monkeypatch, tmp_path):
        (tmp_path / "baseline.abi3.so").write_bytes(b"not a library")
        monkeypatch.setattr(native, "FOLDER", tmp_path)
        assert native.load() is None

    def test_a_build_of_another_interface_is_passed_over(self, monkeypatch):
        monkeypatch.setattr(native, "INTERFACE", native.INTERFACE + 1)
        assert native.load() is None


@pytest.mark.parametrize("frames", [1, 3, 8])
def test_resampling_as_a_matrix(frames, device):
    values = torch.randn(2, frames, 5, dtype=torch.float64, device=device)
    matrix = resampling_matrix(frames, 4, torch.float64, values.device)
    torch.testing.assert_close(matrix @ values, resample_time(values, 4))


@given(st.integers(1, 3), st.integers(1, 9), st.integers(1, 9), st.sampled_from([3, 5, 7]))
def test_convolution_as_a_product(device, batch, height, width, size):
    torch.manual_seed(0)
    maps = torch.randn(batch, 4, height, width, dtype=torch.float64, device=device)
    kernel = torch.randn(2, 4, size, size, dtype=torch.float64, device=device)
    expected = torch.nn.functional.conv2d(maps, kernel, padding=size // 2)
    torch.testing.assert_close(convolve(maps, kernel), expected)


@every_kernel
@pytest.mark.parametrize("seed", range(8))
def test_a_constant_spectrum_gives_the_perturbation_no_direction(kernels, seed, device):
    """A window that covers the map has one sum everywhere: rounding is not a deviation."""
    module = randomised(DistributionalAttention(1, 1, dct_size=13, device=device))
    generator = torch.Generator(device).manual_seed(seed)
    image = torch.randn(1, 1, 1, 7, 5, generator=generator, device=device)
    found = []
    for first in (0.0, 1e6):  # how much the spread of the lowest frequency counts
        with torch.no_grad(), using(kernels):
            module.frequency.spread_scale[0] = first
            found.append(module(image))
    assert torch.equal(*found)


def test_half_precision_finds_maxima_beyond_256_positions(device):
    maps = torch.zeros(1, 1, 1, 1600, dtype=torch.bfloat16, device=device)
    maps[..., 1217] = 1
    assert fused._first_maximum(maps).item() == 1217
