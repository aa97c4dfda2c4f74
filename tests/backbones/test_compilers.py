"""Attached models under torch.compile, torch.export and ONNX, over four kinds of backbone.

The backend ``aot_eager`` traces and differentiates as the default one does, and skips the slow part
that is not this library's: generating machine code, which tests/attention/test_transforms.py
tries on attention alone.
"""

import numpy as np
import onnxruntime
import pytest
import torch

from hdf_modules.backbones import dam_parameters
from tests.support.matrix_models import KINDS, attached, clips

ALL = pytest.mark.parametrize("kind", KINDS)


@pytest.fixture(autouse=True)
def _fresh():
    torch._dynamo.reset()


@ALL
def test_compiles_to_one_graph(kind, device):
    """One graph; the numbers and gradients of eager; nothing compiled again for other data."""
    model = attached(kind, device, last=2)
    compiled = torch.compile(model, fullgraph=True, backend="aot_eager")
    for stance in ("default", "fail_on_recompile"):
        x = clips(kind, device)
        expected, gradients = run(model, x)
        with torch.compiler.set_stance(stance):
            y, compiled_gradients = run(compiled, x)
        torch.testing.assert_close(y, expected, rtol=1e-4, atol=1e-5)
        torch.testing.assert_close(compiled_gradients, gradients, rtol=1e-3, atol=1e-5)


def run(model, x):
    model.zero_grad()
    y = model(x)
    y.square().sum().backward()
    return y, [parameter.grad.clone() for parameter in dam_parameters(model)]


@ALL
def test_exports(kind, device):
    model = attached(kind, device, last=2)
    program = torch.export.export(model, (clips(kind, device),)).module()
    x = clips(kind, device)
    torch.testing.assert_close(program(x), model(x), rtol=1e-5, atol=1e-6)


@ALL
@pytest.mark.filterwarnings("ignore::DeprecationWarning:onnxscript|torch")
def test_onnx_gives_the_same_numbers(kind, tmp_path, device):
    model, path = attached(kind, device, last=2), tmp_path / "model.onnx"
    torch.onnx.export(model, (clips(kind, device),), path, dynamo=True, verbose=False)
    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    x = clips(kind, device)
    (y,) = session.run(None, {session.get_inputs()[0].name: x.numpy(force=True)})
    np.testing.assert_allclose(y, model(x).numpy(force=True), rtol=1e-3, atol=1e-5)
