"""Bad arguments and inputs are named, with what was expected and what was found."""

import numpy as np
import pytest
import torch
from torch import Tensor

from hdf_modules import DistributionalAttention, HDFError
from tests.support.attention import GOLDEN


@pytest.mark.parametrize(
    ("options", "match"),
    [
        ({"channels": 0}, r"channels: expected an integer >= 1, found 0"),
        ({"channels": 2.0}, r"channels: expected an integer >= 1, found 2\.0"),
        ({"num_frames": 0}, r"num_frames: expected an integer >= 1, found 0"),
        ({"num_frames": True}, r"num_frames: expected an integer >= 1, found True"),
        ({"bins": -1}, r"bins: expected an integer >= 1, found -1"),
        ({"dct_size": 6}, "dct_size: take the .*expected an odd integer, found 6"),
        ({"dct_size": 1}, r"dct_size: expected an integer >= 3, found 1"),
        ({"reduction": 0}, r"reduction: expected an integer >= 1, found 0"),
        ({"reduction": 50}, r"reduction: expected at most dct_size² = 49, found 50"),
        ({"consistency": "space"}, r"consistency: expected one of 'time', 'bins', found 'space'"),
        ({"perturbation": "random"}, r"perturbation: expected one of 'learned', 'adversarial', N"),
        ({"layout": "b c h w"}, r"layout: expected a pattern .*found 'b c h w'"),
        ({"layout": 1}, "layout: view what .*expected a pattern .*found 1"),
        ({"prefix_tokens": 1}, r"prefix_tokens: expected layout=Layout\(.*found prefix_tokens=1"),
    ],
)
def test_constructor(options, match):
    with pytest.raises(HDFError, match=match):
        DistributionalAttention(**{"channels": 4} | options)


@pytest.mark.parametrize(
    ("layout", "shape", "match"),
    [
        (
            "b c t h w",
            (2, 5, 2, 3, 3),
            r"x: say by layout= .*expected 4 channels, found 5 .*'b c t h w'",
        ),
        ("b c t h w", (2, 4, 3, 3), r"x: expected 5 dimensions.*shape \(2, 4, 3, 3\)"),
        ("b c t h w", (2, 4, 0, 3, 3), r"x: expected at least one frame"),
        ("(b t) c h w", (5, 4, 3, 3), "x: pass whole .*expected a multiple of num_frames=2.*5"),
        (
            "(b t) (h w) c",
            (4, 8, 4),
            r"x: give grid=\(height, .*expected 2×2 tokens.*found 8 tokens",
        ),
    ],
)
def test_shape(layout, shape, match, device):
    module = DistributionalAttention(4, 2, layout=layout, device=device)
    with pytest.raises(HDFError, match=match):
        module(torch.zeros(shape, device=device))


@pytest.mark.parametrize(
    ("convert", "found"),
    [
        (Tensor.long, r"a tensor of torch\.int64"),
        (Tensor.bool, r"a tensor of torch\.bool"),
        (Tensor.cfloat, r"a tensor of torch\.complex64"),
        (lambda x: x.to(torch.float8_e4m3fn), r"a tensor of torch\.float8_e4m3fn"),
        (Tensor.to_sparse, r"a torch\.sparse_coo tensor of torch\.float32"),
        (lambda x: torch.nested.as_nested_tensor(list(x)), r"a nested tensor of torch\.float32"),
        (lambda x: x.numpy(force=True), "ndarray"),
        (list, "list"),
        (lambda x: None, "NoneType"),
    ],
)
@pytest.mark.filterwarnings("ignore:The PyTorch API of nested tensors")
def test_not_a_dense_floating_point_tensor(convert, found, device):
    module = DistributionalAttention(4, 2, device=device)
    x = torch.zeros(2, 4, 2, 3, 3, device=device)
    with pytest.raises(HDFError, match=f"16 bits or more, found {found}"):
        module(convert(x))


@pytest.mark.parametrize(
    ("call", "match"),
    [
        ({"num_frames": 3}, r"num_frames: expected 2, as in x of shape \(1, 4, 2, 3, 3\), found 3"),
        ({"num_frames": 0}, r"num_frames: expected an integer >= 1, found 0"),
        ({"grid": (2, 3)}, r"grid: expected \(3, 3\), as in x"),
    ],
)
def test_call(call, match, device):
    module = DistributionalAttention(4, 2, device=device)
    x = torch.zeros(1, 4, 2, 3, 3, device=device)
    with pytest.raises(HDFError, match=match):
        module(x, **call)


def released(device):
    golden = np.load(GOLDEN[0])
    return {k[6:]: torch.tensor(golden[k], device=device) for k in golden if k.startswith("state.")}


def test_released_keys_are_named(device):
    state = released(device)
    state["dam.al"] = state.pop("al")
    with pytest.raises(HDFError, match=r"python -m .*1 missing \(al\), 1 unknown \(dam\.al\)"):
        DistributionalAttention.from_released(state, 6)


def test_released_shapes_are_named(device):
    state = released(device)
    state["fc_t.weight"] = torch.zeros(3, 3, device=device)
    with pytest.raises(HDFError, match=r"fc_t\.weight of \(8, 8\).*found \(3, 3\)"):
        DistributionalAttention.from_released(state, 6)
    state["temporal_robust.gamma"] = torch.zeros(8, 8, device=device)
    with pytest.raises(HDFError, match=r"temporal_robust\.gamma of shape \(1, T, K, 1, 1\)"):
        DistributionalAttention.from_released(state, 6)


def test_a_name_that_is_nearly_one_is_suggested():
    with pytest.raises(HDFError, match=r"did you mean 'bins'\? expected .*, found 'bin'"):
        DistributionalAttention(8, consistency="bin")
