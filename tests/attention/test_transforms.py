"""DistributionalAttention under all that looks into it, or goes through it, in another way."""

import io

import pytest
import torch
from torch import nn
from torch.autograd import forward_ad

from hdf_modules import DistributionalAttention, HDFError
from tests.support.attention import randomised


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
def test_autocast_keeps_the_input_dtype_and_the_float32_statistics(dtype, device):
    module = randomised(DistributionalAttention(6, 4, device=device))
    x = torch.randn(2, 6, 4, 9, 7, device=device).to(dtype).requires_grad_()
    expected = module(x)
    with torch.autocast(device.type, dtype=torch.bfloat16):
        y = module(x)
    y.float().sum().backward()
    assert y.dtype == dtype
    assert torch.equal(y, expected)
    assert x.grad.dtype == dtype


@pytest.mark.parametrize("options", [{}, {"perturbation": "adversarial", "reduction": 7}])
@pytest.mark.parametrize("autocast", [False, True])
def test_compile_fullgraph(options, autocast, device):
    torch.compiler.reset()
    module = randomised(DistributionalAttention(6, 5, dct_size=3, **options, device=device))
    compiled = torch.compile(module, fullgraph=True, backend="aot_eager")
    x = torch.randn(2, 6, 4, 5, 7, device=device)
    results = []
    for run in (module, compiled):
        leaf = x.clone().requires_grad_()
        with torch.autocast(device.type, torch.bfloat16, enabled=autocast):
            y = run(leaf)
        parameters = [leaf, *module.parameters()]
        results.append((y, *torch.autograd.grad(y.square().sum(), parameters)))
    torch.testing.assert_close(results[1][0], results[0][0])
    # A compiled backward runs in the caller's autocast state, so its small products are bfloat16.
    near = {"rtol": 0.02, "atol": 1e-3} if autocast else {}
    torch.testing.assert_close(results[1][1:], results[0][1:], **near)


@pytest.mark.filterwarnings("ignore:TensorFloat32 tensor cores")  # which are not wanted
@pytest.mark.filterwarnings("ignore:Skipping serialization of")  # torch 2.6 of its own settings
def test_compile_with_the_default_backend(device):
    torch.compiler.reset()
    module = randomised(DistributionalAttention(6, 5, device=device))
    x = torch.randn(2, 6, 5, 5, 7, device=device)
    torch.testing.assert_close(torch.compile(module, fullgraph=True)(x), module(x))


def test_compilers_are_not_taken_for_exporters(device):
    """These get what serves clips of any length."""
    torch.compiler.reset()
    module, graphs = DistributionalAttention(6, 5, device=device), []
    compiled = torch.compile(module, backend=lambda graph, _: graphs.append(graph) or graph)
    compiled(torch.randn(2, 6, 5, 5, 7, device=device))
    names = [str(node.target) for graph in graphs for node in graph.graph.nodes]
    assert names
    assert not [name for name in names if "interpolate" in name]


@pytest.mark.parametrize("strict", [False, True])
def test_export(strict, device):
    module = randomised(DistributionalAttention(6, 5, device=device)).eval()
    x = torch.randn(2, 6, 5, 5, 7, device=device)
    program = torch.export.export(module, (x,), strict=strict)
    torch.testing.assert_close(program.module()(x), module(x))


# Export fixes no size but the channels.
SIZES = {0: torch.export.Dim("batch", min=2, max=64)}
SIZES |= {i: torch.export.Dim(name, min=2, max=99) for i, name in enumerate(("t", "h", "w"), 2)}
OTHERS = [(4, 6, 9, 5, 11), (4, 6, 5, 5, 11), (2, 6, 16, 12, 3)]


@pytest.mark.parametrize("frames", [5, 8])  # the length that the weights are for, and another
@pytest.mark.parametrize("strict", [False, True])
def test_export_with_dynamic_sizes(strict, frames, device):
    module = randomised(DistributionalAttention(6, 5, device=device)).eval()
    example = torch.randn(3, 6, frames, 7, 9, device=device)
    program = torch.export.export(module, (example,), dynamic_shapes=[SIZES], strict=strict)
    for shape in OTHERS:
        x = torch.randn(shape, device=device)
        torch.testing.assert_close(program.module()(x), module(x))


def test_functional_transforms(device):
    module = randomised(DistributionalAttention(6, 5, dtype=torch.float64, device=device))
    x = torch.randn(2, 6, 5, 5, 7, dtype=torch.float64, device=device)
    parameters = {k: v.detach() for k, v in module.named_parameters()}

    def loss(parameters, x):
        return torch.func.functional_call(module, parameters, (x,)).square().sum()

    found = torch.func.grad(loss)(parameters, x)
    loss_ = module(x).square().sum()
    expected = torch.autograd.grad(loss_, list(module.parameters()))
    torch.testing.assert_close(list(found.values()), list(expected))
    each = torch.func.vmap(torch.func.grad(loss), (None, 0))(parameters, x[:, None])
    torch.testing.assert_close([v.sum(0) for v in each.values()], list(expected))


@pytest.fixture
def double(device):
    """A module and an input in float64."""
    module = randomised(DistributionalAttention(3, 4, dtype=torch.float64, device=device))
    return module, torch.randn(2, 3, 4, 5, 4, dtype=torch.float64, device=device)


def directional(module, x, tangent, step=1e-6):
    return (module(x + step * tangent) - module(x - step * tangent)) / (2 * step)


@pytest.mark.filterwarnings("ignore:Attempted to insert a get_attr Node")  # of linearize
def test_forward_mode(double):
    module, x = double
    tangent = torch.randn_like(x)
    expected = directional(module, x, tangent)
    near = {"rtol": 1e-5, "atol": 1e-7}
    _, found = torch.func.jvp(module, (x,), (tangent,))
    torch.testing.assert_close(found, expected, **near)
    _, linear = torch.func.linearize(module, x)
    torch.testing.assert_close(linear(tangent), expected, **near)
    with forward_ad.dual_level():
        y = module(forward_ad.make_dual(x, tangent))
        torch.testing.assert_close(forward_ad.unpack_dual(y).tangent, expected, **near)


def test_jacobians_and_hessians(double):
    module, x = double
    x = x[:1, :, :2, :2, :2]
    jacobian = torch.func.jacrev(module)(x)
    torch.testing.assert_close(torch.func.jacfwd(module)(x), jacobian)
    hessian = torch.func.hessian(lambda x: module(x).sum())(x).flatten(5).flatten(0, 4)
    torch.testing.assert_close(hessian, hessian.T)


def test_vmap_over_clips_and_over_modules(double):
    module, x = double
    clips = torch.stack([x, 2 * x, -x])
    found = torch.func.vmap(module)(clips)
    torch.testing.assert_close(found, torch.stack([module(clip) for clip in clips]))
    modules = [module, randomised(DistributionalAttention(3, 4).to(x))]
    state = torch.func.stack_module_state(modules)
    skeleton = DistributionalAttention(3, 4, device="meta")

    def call(parameters, buffers):
        return torch.func.functional_call(skeleton, (parameters, buffers), (x,))

    found = torch.func.vmap(call)(*state)
    torch.testing.assert_close(found, torch.stack([module(x) for module in modules]))


def test_a_symbolic_trace_has_one_node_for_the_module(double):
    module, x = double
    traced = torch.fx.symbolic_trace(nn.Sequential(nn.Identity(), module))
    assert [node.target for node in traced.graph.nodes if node.op == "call_module"][-1] == "1"
    assert torch.equal(traced(x), module(x))


@pytest.mark.filterwarnings("ignore::torch.jit.TracerWarning")  # other sizes would be wrong
def test_a_trace_of_torchscript_gives_the_values(double):
    module, x = double
    traced = torch.jit.trace(module, (x,))
    torch.testing.assert_close(traced(x + 1), module(x + 1))


def test_scripting_is_refused_with_the_way_out(double):
    with pytest.raises(HDFError, match=r"torch\.jit\.script.*use torch\.export"):
        torch.jit.script(nn.Sequential(double[0]))


@pytest.mark.filterwarnings("ignore")  # torch speaks of the exporter's age
def test_the_older_onnx_exporter_is_refused_with_the_way_out(double):
    module, x = double
    for model in (module, nn.Sequential(module)):
        with pytest.raises(
            HDFError,
            match=r"dynamo: pass dynamo=True: .*expected torch\.onnx\.export\(…, dynamo=True\)",
        ):
            torch.onnx.export(model, (x,), io.BytesIO(), dynamo=False)


@pytest.mark.cpu_only
@pytest.mark.skipif(torch.__version__ < "2.13", reason="torch 2.10 cannot decompose the program")
def test_onnx_runs_elsewhere_at_other_sizes():
    import onnxruntime  # noqa: PLC0415 (a machine with a GPU may not have it)

    module = randomised(DistributionalAttention(6, 5)).eval()
    example = (torch.randn(3, 6, 5, 7, 9),)
    program = torch.onnx.export(module, example, dynamic_shapes=[SIZES], dynamo=True, verbose=False)
    session = onnxruntime.InferenceSession(program.model_proto.SerializeToString())
    for shape in OTHERS:
        x = torch.randn(shape)
        (found,) = session.run(None, {session.get_inputs()[0].name: x.numpy()})
        torch.testing.assert_close(torch.from_numpy(found), module(x), rtol=1e-4, atol=1e-5)
