"""Kernels against the equations in float64; on a GPU to be named when tests are run.

Triton interprets its kernels on processors if it is told so before it is imported: there
test_kernels.py runs this in a process of its own.
"""

import warnings

import pytest
import torch

from hdf_modules import DistributionalAttention, HDFError
from hdf_modules.attention import (
    Layout,
    choice,
    functional,
    kernels_used,
    operator,
)
from hdf_modules.attention.kernels import launch
from hdf_modules.attention.weights import AttentionWeights
from tests.support.attention import randomised

# Older interpreters take arrays of one element for numbers, which NumPy 2.4 no longer allows.
pytestmark = pytest.mark.filterwarnings("ignore:Conversion of an array with ndim")


@pytest.fixture(autouse=True)
def _kernels(device, monkeypatch):
    monkeypatch.setenv("HDF_KERNELS", "gpu")
    choice._not_on(device)  # looked into once
    monkeypatch.setattr(choice, "_known", dict(choice._known))
    monkeypatch.setattr(choice, "_failed", {})


def made(channels, num_frames, device, **options):
    """A module with random parameters; no gate saturates, and both count in x's gradient."""
    module = randomised(DistributionalAttention(channels, num_frames, device=device, **options))
    with torch.no_grad():
        for kernel in module.frequency.readout:
            kernel.mul_(0.1)
        module.temporal.value.weight.mul_(8)
        if module.strength is not None:
            module.strength.fill_(1)
    return module


def differentiated(attend, x, module, grad, dtype=None):
    """Output and the gradients of x and of each weight by name."""
    axes, options = module.layout.bind(x, module.num_frames), module.options
    weights = [None if w is None else w.detach() for w in module._weights(x)]
    inputs = {"x": x, **dict(zip(AttentionWeights._fields, weights, strict=True))}
    leaves = {
        n: None if v is None else v.detach().to(dtype or v.dtype).requires_grad_()
        for n, v in inputs.items()
    }
    y = attend(leaves["x"], axes, AttentionWeights(*list(leaves.values())[1:]), options)
    wanted = {n: v for n, v in leaves.items() if v is not None}
    found = torch.autograd.grad(y, list(wanted.values()), grad.to(y.dtype))
    return y.detach(), dict(zip(wanted, found, strict=True))


def compare(module, x):
    """Values to 1e-5 and gradients to 1e-4, beside the rounding of x's dtype itself."""
    grad = (torch.randn(x.shape, device=x.device) + 4 * x).to(x.dtype)  # sums do not cancel
    y, found = differentiated(operator.attend, x, module, grad)
    expected_y, expected = differentiated(functional.attend, x, module, grad, torch.float64)
    assert y.dtype == found["x"].dtype == x.dtype
    assert y.stride() == torch.empty_like(x).stride()
    rounding = 0 if x.dtype == torch.float32 else torch.finfo(x.dtype).eps / 2
    if x.dtype == torch.bfloat16 and not x.is_cuda:
        rounding *= 2  # the interpreter cuts off what a GPU rounds
    torch.testing.assert_close(y.double(), expected_y, rtol=rounding + 1e-5, atol=1e-5)
    of_x, expected_x = found.pop("x").double(), expected.pop("x")
    least = 1e-4 * expected_x.abs().mean().item()
    torch.testing.assert_close(of_x, expected_x, rtol=rounding + 1e-4, atol=least)
    # Those that vanish but for rounding have no relative error: the key's bias always does.
    longest = max(g.norm() for g in expected.values())
    for name, other in expected.items():
        bound = 1e-4 * max(other.norm(), 1e-2 * longest)
        assert (found[name] - other).norm() <= bound, name


CASES = {
    "several blocks": ((2, 3, 2, 5, 7), 2, {"dct_size": 5}),
    "one position": ((1, 3, 4, 1, 1), 4, {}),
    "one row": ((1, 3, 2, 1, 5), 2, {}),
    "one column": ((1, 2, 3, 19, 1), 3, {"identity_start": False}),
    "one frame": ((1, 3, 1, 4, 4), 1, {}),
    "one channel": ((1, 1, 3, 4, 3), 3, {"bins": 5}),
    "one of all": ((1, 1, 1, 1, 1), 1, {}),
    "more bins than channels": ((1, 3, 2, 3, 3), 2, {"bins": 7, "consistency": "bins"}),
    "no perturbation": ((1, 7, 3, 5, 4), 3, {"perturbation": None}),
    "adversarial": ((1, 7, 3, 4, 3), 3, {"perturbation": "adversarial", "dct_size": 5}),
    "many frames": ((1, 2, 70, 3, 3), 70, {"dct_size": 3}),
    "fewer frames than made for": ((1, 4, 5, 3, 6), 8, {"dct_size": 3}),
    "more frames than made for": ((1, 4, 19, 3, 6), 8, {"dct_size": 3, "bins": 3}),
    "many channels": ((1, 150, 2, 3, 3), 2, {}),
}


@pytest.mark.parametrize("case", CASES)
def test_values_and_gradients(case, device):
    shape, num_frames, options = CASES[case]
    compare(made(shape[1], num_frames, device, **options), torch.randn(shape, device=device))


@pytest.mark.parametrize(
    "layout",
    [
        "b t h w c",
        "t b c h w",
        "c (t b) w h",
        Layout("(b t) (h w) c", prefix_tokens=1, suffix_tokens=2),
        Layout("b (t h w) c", prefix_tokens=1),
    ],
    ids=str,
)
def test_layouts(layout, device):
    module = made(5, 2, device, layout=layout)
    sizes = {"b": 2, "t": 2, "c": 5, "h": 4, "w": 4}
    folded = [torch.Size(sizes[a] for a in group).numel() for group in module.layout.groups]
    if module.layout.token_axis is not None:
        folded[module.layout.token_axis] += module.layout.prefix_tokens
        folded[module.layout.token_axis] += module.layout.suffix_tokens
    compare(module, torch.randn(folded, device=device))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_rounds_once(dtype, device):
    x = torch.randn(1, 6, 3, 4, 4, device=device).to(dtype)
    compare(made(6, 3, device), x)


STRIDED = {
    "every other column": lambda x: x.repeat_interleave(2, -1)[..., ::2],
    "every other row": lambda x: x.repeat_interleave(2, -2)[..., ::2, :],
    "channels last": lambda x: x.to(memory_format=torch.channels_last_3d),
    "expanded": lambda x: x[:, :1].expand_as(x),
    "in the midst": lambda x: torch.nn.functional.pad(x, (1, 0))[..., 1:],
}


@pytest.mark.parametrize("strided", STRIDED)
def test_strides(strided, device):
    x = STRIDED[strided](torch.randn(1, 3, 2, 4, 4, device=device))
    compare(made(3, 2, device), x)


def test_a_gradient_of_other_strides(device):
    module, x = made(3, 2, device), torch.randn(1, 3, 2, 4, 4, device=device)
    one = torch.randn(1, device=device)
    _, found = differentiated(operator.attend, x, module, one.expand(x.shape))
    _, expected = differentiated(operator.attend, x, module, one.expand(x.shape).contiguous())
    assert all(torch.equal(found[n], expected[n]) for n in expected)


def test_weights_without_biases(device):
    module = made(3, 2, device)
    for linear in (module.temporal.query, module.temporal.key, module.temporal.value):
        linear.bias = None
    compare(module, torch.randn(1, 3, 2, 4, 4, device=device))


def test_the_first_of_equal_maxima_gets_the_gradient(device):
    x = torch.randn(1, 17, 3, 5, 5, device=device).clamp(max=0.5)
    compare(made(17, 3, device, bins=4), x)


@pytest.mark.filterwarnings("ignore:invalid value:RuntimeWarning")  # of the interpreter
def test_nan_stays_in_its_clip(device):
    module, x = made(3, 2, device), torch.randn(2, 3, 2, 4, 4, device=device)
    grad = torch.randn(x.shape, device=device)
    clean, of_clean = differentiated(operator.attend, x, module, grad)
    x[0, 1, 1, 2, 2] = torch.nan
    y, found = differentiated(operator.attend, x, module, grad)
    assert y[0].isnan().all()
    assert found["x"][0].isnan().all()
    assert torch.equal(y[1], clean[1])
    assert torch.equal(found["x"][1], of_clean["x"][1])


def test_two_runs_give_the_same_bits(device):
    module, x = made(7, 3, device), torch.randn(1, 7, 3, 5, 4, device=device)
    first, second = (differentiated(operator.attend, x, module, x) for _ in range(2))
    assert torch.equal(first[0], second[0])
    assert all(torch.equal(first[1][n], second[1][n]) for n in first[1])


def test_no_clips(device):
    module = made(3, 2, device)
    x = torch.randn(0, 3, 2, 4, 4, device=device, requires_grad=True)
    module(x).sum().backward()
    assert x.grad.shape == x.shape
    assert all(not p.grad.any() for p in module.parameters())


def test_what_is_frozen_gets_no_gradient(device):
    module, x = made(3, 2, device), torch.randn(1, 3, 2, 4, 4, device=device)
    module.temporal.requires_grad_(False)
    module(x).sum().backward()
    for parameter in module.parameters():
        assert (parameter.grad is not None) == parameter.requires_grad


def test_launches(device, monkeypatch):
    """Four of forward, four of backward, three if x needs no gradient."""
    module, x = made(3, 2, device), torch.randn(1, 3, 2, 4, 4, device=device)
    module(x)
    names, real = [], launch.start
    monkeypatch.setattr(
        launch, "start", lambda k, *rest: (names.append(k.__name__), real(k, *rest))
    )
    module(x.requires_grad_()).sum().backward()
    assert len(names) == 8, names
    module(x.detach()).sum().backward()
    assert len(names) == 15, names


@pytest.fixture
def refused(monkeypatch):
    """Kernels work, and are not to run."""
    monkeypatch.delenv("HDF_KERNELS")

    def launched(*_):
        raise AssertionError("a kernel was launched")

    return lambda: monkeypatch.setattr(launch, "start", launched)


def test_what_is_left_to_the_equations(device, refused):
    module, x = made(3, 2, device), torch.randn(1, 3, 2, 4, 4, device=device)
    assert kernels_used(x).path == "gpu"
    refused()
    others = made(3, 2, device, reduction=2), made(3, 2, device, dct_size=9)
    expected = [functional.attend(x, m.layout.bind(x, 2), m._weights(x), m.options) for m in others]
    assert all(torch.equal(m(x), y) for m, y in zip(others, expected, strict=True))
    made(3, 2, device).double()(x)
    torch.func.vmap(module)(x[None])
    torch.func.jvp(module, (x,), (x,))
    torch.func.grad(lambda v: module(v).sum())(x)
    torch.export.export(module, (x,)).module()(x)


def test_second_gradients(device):
    module, x = made(3, 2, device), torch.randn(1, 3, 2, 9, 8, device=device)
    found = []
    for attend, dtype in ((operator.attend, torch.float32), (functional.attend, torch.float64)):
        weights = AttentionWeights(
            *[None if w is None else w.to(dtype) for w in module._weights(x)]
        )
        leaf = x.to(dtype).requires_grad_()
        y = attend(leaf, module.layout.bind(x, 2), weights, module.options)
        (first,) = torch.autograd.grad(y.square().sum(), leaf, create_graph=True)
        found.append((first.double(), torch.autograd.grad(first.square().sum(), leaf)[0].double()))
    torch.testing.assert_close(*found, rtol=1e-4, atol=1e-4)


def broken(monkeypatch, name, change):
    """Forward or backward in which something goes wrong."""
    real = getattr(launch, name)
    monkeypatch.setattr(launch, name, lambda *a, **k: change(real, *a, **k))
    choice._known.clear()


def fails(*_, **__):
    raise RuntimeError("no compiler")


def wrong(real, *args, **options):
    first, *rest = real(*args, **options)
    return (first * 1.001, *rest)


@pytest.mark.parametrize("name", ["forward", "backward"])
@pytest.mark.parametrize(("change", "why"), [(fails, "no compiler"), (wrong, "differ")])
def test_a_failure_at_first_use_is_told_once(name, change, why, device, monkeypatch):
    module, x = made(3, 2, device), torch.randn(1, 3, 2, 4, 4, device=device)
    axes = module.layout.bind(x, 2)
    expected = functional.attend(x, axes, module._weights(x), module.options)
    broken(monkeypatch, name, change)
    monkeypatch.delenv("HDF_KERNELS")
    with pytest.warns(RuntimeWarning, match=f"without GPU kernels on {x.device}: .*{why}"):
        y = module(x)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert torch.equal(module(x), y)
    assert torch.equal(y, expected)
    path, said = kernels_used(x)
    assert path == "reference"
    assert why in said
    monkeypatch.setenv("HDF_KERNELS", "gpu")
    with pytest.raises(HDFError, match=f"HDF_KERNELS: unset it .* kernels that run, found .*{why}"):
        module(x)


@pytest.mark.parametrize("name", ["forward", "backward"])
def test_a_failure_at_one_size(name, device, monkeypatch):
    monkeypatch.delenv("HDF_KERNELS")
    module, x = made(3, 2, device), torch.randn(1, 3, 2, 4, 4, device=device, requires_grad=True)
    expected = torch.autograd.grad(module(x).sum(), x)
    broken(monkeypatch, name, fails)
    choice._known[x.device] = None
    with pytest.warns(RuntimeWarning, match="without GPU kernels at Sizes.*no compiler"):
        found = torch.autograd.grad(module(x).sum(), x)
    torch.testing.assert_close(found, expected)
    torch.autograd.grad(module(x).sum(), x)  # as warnings are errors


def test_out_of_memory_is_no_failure_of_kernels(device, monkeypatch):
    module, x = made(3, 2, device), torch.randn(1, 3, 2, 4, 4, device=device)
    module(x)

    def full(*_, **__):
        raise torch.OutOfMemoryError("full")

    monkeypatch.setattr(launch, "forward", full)
    with pytest.raises(torch.OutOfMemoryError, match="full"):
        module(x)


def test_the_environment_decides(device, monkeypatch):
    x = torch.ones(1, device=device)
    assert kernels_used(x).path == "gpu"
    assert kernels_used(x.double()) == ("reference", "there are no kernels for torch.float64")
    monkeypatch.setenv("HDF_KERNELS", "reference")
    assert kernels_used(x) == ("reference", "HDF_KERNELS=reference")
    monkeypatch.setenv("HDF_KERNELS", "cpu")
    with pytest.raises(
        HDFError, match=r"HDF_KERNELS: did you .*expected one of 'reference', 'gpu', found 'cpu'"
    ):
        kernels_used(x)


class Compiled:
    """A module behind a compiler, and the graphs that it was given."""

    def __init__(self, module, **options):
        torch.compiler.reset()
        self.graphs = []
        self.module = torch.compile(module, backend=self.see, fullgraph=True, **options)

    def see(self, graph, inputs):
        self.graphs.append(graph)
        return torch._dynamo.lookup_backend("aot_eager")(graph, inputs)

    def __call__(self, x):
        return self.module(x)

    @property
    def operators(self):
        """How many times the graphs call it."""
        called = [node.target for graph in self.graphs for node in graph.graph.nodes]
        return sum(str(target).startswith("hdf_modules.attend") for target in called)


def trained(module, call, x):
    """Output and all gradients."""
    leaf = x.clone().requires_grad_()
    y = call(leaf)
    return [y, *torch.autograd.grad(y.double().square().sum(), [leaf, *module.parameters()])]


@pytest.mark.parametrize(
    ("layout", "dtype"),
    [("b c t h w", torch.float32), (Layout("(b t) (h w) c", 1, 2), torch.bfloat16)],
    ids=str,
)
def test_compilers_see_one_operator(layout, dtype, device):
    module = made(3, 2, device, layout=layout)
    shape = (1, 3, 2, 3, 3) if layout == "b c t h w" else (2, 12, 3)
    x, compiled = torch.randn(shape, device=device).to(dtype), Compiled(module)
    for autocast in (False, True):
        with torch.autocast(device.type, torch.bfloat16, enabled=autocast):
            expected, found = trained(module, module, x), trained(module, compiled, x)
        assert all(map(torch.equal, found, expected))
    assert compiled.operators == len(compiled.graphs) == 2
    with torch.no_grad():
        assert torch.equal(compiled(x), expected[0])


def test_one_graph_serves_all_sizes(device):
    module = made(3, 1, device, dct_size=3)
    compiled = Compiled(module, dynamic=True)
    for shape in ((2, 3, 1, 4, 5), (3, 3, 1, 2, 3)):
        x = torch.randn(shape, device=device)
        expected, found = trained(module, module, x), trained(module, compiled, x)
        assert all(map(torch.equal, found, expected))
    assert compiled.operators == len(compiled.graphs) == 1


@pytest.mark.parametrize("failing", [False, True])
def test_compiled_calls_leave_no_constants(failing, device, monkeypatch):
    """A graph's memory is used again after a call: what was kept of it would be overwritten."""
    module, x = made(3, 2, device, dct_size=5), torch.randn(1, 3, 3, 2, 2, device=device)
    monkeypatch.setattr(functional, "_store", kept := {})
    if failing:
        monkeypatch.delenv("HDF_KERNELS")
        broken(monkeypatch, "forward", fails)
        choice._known[x.device] = None
    compiled = Compiled(module)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", RuntimeWarning)
        found = trained(module, compiled, x)
    assert compiled.operators == 1
    assert not kept
    torch.testing.assert_close(found, trained(module, module, x), rtol=1e-4, atol=1e-5)
    assert kept


def test_compiled_launches(device, monkeypatch):
    """As many as in eager mode, and for a frozen x one less."""
    module, x = made(3, 2, device), torch.randn(1, 3, 2, 3, 3, device=device)
    compiled, names, real = Compiled(module), [], launch.start
    trained(module, compiled, x)
    monkeypatch.setattr(
        launch, "start", lambda k, *rest: (names.append(k.__name__), real(k, *rest))
    )
    trained(module, compiled, x)
    assert len(names) == 8, names
    compiled(x).sum().backward()
    assert len(names) == 15, names


@pytest.mark.filterwarnings("ignore")  # of opcheck itself
@pytest.mark.parametrize("frozen", [False, True])
def test_the_operators_are_what_compilers_expect(frozen, device):
    options = {"perturbation": None, "identity_start": False} if frozen else {}
    module, x = made(2, 2, device, dct_size=3, **options), torch.randn(1, 2, 2, 2, 3, device=device)
    weights = [None if w is None else w.detach() for w in module._weights(x)]
    how = [1, 2, 2, 2, 3], "b c t h w", [0, 0], *module.options
    forward, backward = (
        torch.ops.hdf_modules.attend.default,
        torch.ops.hdf_modules.attend_backward.default,
    )
    _, *kept = forward(x, *weights, *how)
    torch.library.opcheck(backward, (x, x, *kept, *weights, *how, not frozen))
    leaves = [None if w is None else w.clone().requires_grad_() for w in weights]
    torch.library.opcheck(forward, (x.clone().requires_grad_(not frozen), *leaves, *how))


def test_what_compilers_see_as_equations(device, refused):
    module, x = made(3, 2, device), torch.randn(1, 3, 2, 3, 3, device=device)
    refused()
    wide, reduced = made(3, 2, device).double(), made(3, 2, device, reduction=2)
    for other, y in ((wide, x.double()), (reduced, x)):
        compiled = Compiled(other)
        torch.testing.assert_close(compiled(y), other(y))
        assert compiled.operators == 0
    compiled = Compiled(torch.func.grad(lambda v: module(v).sum()))
    compiled(x)
    assert compiled.operators == 0


@pytest.mark.parametrize("name", ["forward", "backward"])
def test_a_failure_inside_the_operator(name, device, monkeypatch):
    """Told once; the equations go on in the same graph, and in the next calls."""
    monkeypatch.delenv("HDF_KERNELS")
    module, x = made(3, 2, device), torch.randn(1, 3, 2, 3, 3, device=device)
    compiled = Compiled(module)
    expected = trained(module, compiled, x)
    broken(monkeypatch, name, fails)
    choice._known[x.device] = None
    with pytest.warns(RuntimeWarning, match="without GPU kernels at Sizes.*no compiler") as told:
        found = trained(module, compiled, x)
    assert [each.category for each in told].count(RuntimeWarning) == 1
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(trained(module, compiled, x), expected, rtol=1e-4, atol=1e-5)
    assert compiled.operators == len(compiled.graphs) == 1
