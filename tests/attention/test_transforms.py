"""DistributionalAttention under autocast, torch.compile, torch.export and torch.func."""

import onnxruntime
import pytest
import torch

from hdf_modules import DistributionalAttention
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


def test_compile_with_the_default_backend(device):
    torch.compiler.reset()
    module = randomised(DistributionalAttention(6, 5, device=device))
    x = torch.randn(2, 6, 5, 5, 7, device=device)
    torch.testing.assert_close(torch.compile(module, fullgraph=True)(x), module(x))


@pytest.mark.parametrize("strict", [False, True])
def test_export(strict, device):
    module = randomised(DistributionalAttention(6, 5, device=device)).eval()
    x = torch.randn(2, 6, 5, 5, 7, device=device)
    program = torch.export.export(module, (x,), strict=strict)
    torch.testing.assert_close(program.module()(x), module(x))


def test_export_with_a_dynamic_batch(device):
    module = randomised(DistributionalAttention(6, 5, device=device)).eval()
    batch = torch.export.Dim("batch", min=2, max=64)
    program = torch.export.export(
        module, (torch.randn(3, 6, 5, 5, 7, device=device),), dynamic_shapes={"x": {0: batch}}
    )
    x = torch.randn(5, 6, 5, 5, 7, device=device)
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


def test_onnx_runs_elsewhere(device):
    module = randomised(DistributionalAttention(6, 5, device=device)).eval()
    x = torch.randn(2, 6, 5, 5, 7, device=device)
    program = torch.onnx.export(module, (x,), dynamo=True, verbose=False)
    session = onnxruntime.InferenceSession(program.model_proto.SerializeToString())
    (found,) = session.run(None, {session.get_inputs()[0].name: x.numpy(force=True)})
    torch.testing.assert_close(torch.tensor(found, device=device), module(x), rtol=1e-4, atol=1e-5)
