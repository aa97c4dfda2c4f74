"""ρ moves the weights by as much as it says, for every base, group, dtype and size of gradient."""

import math

import numpy as np
import pytest
import torch
from torch import nn

from hdf_modules import SAM, HDFError


def moved(sam, params, backward):
    """How the parameters move, in double precision."""
    before = [p.detach().clone() for p in params]
    backward()
    with sam.ascend():
        wide = [torch.complex128 if p.is_complex() else torch.float64 for p in params]
        return [p.detach().to(w) - b.to(w) for p, b, w in zip(params, before, wide, strict=True)]


def length(tensors):
    return math.sqrt(sum(float(t.abs().square().sum()) for t in tensors))


def test_a_base_with_a_rho_of_its_own_keeps_it(device):
    weight = nn.Parameter(torch.ones(3, device=device))
    extra = nn.Parameter(torch.ones(3, device=device))
    sam = SAM(torch.optim.Adadelta([weight], rho=0.8), 0.05)
    assert length(moved(sam, [weight], lambda: weight.sum().backward())) == pytest.approx(
        0.05, rel=1e-5
    )
    assert sam.param_groups[0]["rho"] == 0.8
    sam.add_param_group({"params": [extra], "rho": 0.7, "sam_rho": 0.5})
    assert sam.param_groups[1]["rho"] == 0.7
    assert length(moved(sam, [extra], lambda: extra.sum().backward())) == pytest.approx(
        0.5, rel=1e-5
    )
    saved = sam.state_dict()
    other = SAM(torch.optim.Adadelta([{"params": [weight]}, {"params": [extra]}]), 0.3)
    other.load_state_dict(saved)
    found = [(group["rho"], group["sam_rho"]) for group in other.param_groups]
    assert found == [(0.8, 0.05), (0.7, 0.5)]


def test_a_checkpoint_of_0_1_around_such_a_base_gives_the_radius_of_now(device):
    # there its groups have one rho, the base's, which moved the weights too
    weight = nn.Parameter(torch.ones(3, device=device))
    saved = torch.optim.Adadelta([weight]).state_dict()
    saved["param_groups"][0] |= {"adaptive": False, "sam_steps": 4}
    sam = SAM(torch.optim.Adadelta([weight], rho=0.8), 0.05)
    sam.load_state_dict(saved)
    assert sam.param_groups[0]["rho"] == 0.9
    assert sam.param_groups[0]["sam_steps"] == 4
    assert length(moved(sam, [weight], lambda: weight.sum().backward())) == pytest.approx(
        0.05, rel=1e-5
    )


def test_where_the_base_maximizes_the_worst_is_the_lowest(device):
    a, b = (nn.Parameter(torch.ones(2, device=device)) for _ in range(2))
    groups = [{"params": [a], "maximize": True}, {"params": [b]}]
    sam = SAM(torch.optim.SGD(groups, lr=0.1), 0.2)
    up, down = moved(sam, [a, b], lambda: (a + b).sum().backward())
    torch.testing.assert_close(up, -down)
    assert float(down.sum()) > 0


@pytest.mark.parametrize("adaptive", [False, True])
@pytest.mark.parametrize("dtype", [torch.complex64, torch.complex128])
def test_complex_weights(device, dtype, adaptive):
    weight = nn.Parameter(torch.tensor([1 + 2j, -0.5j, 3.0], dtype=dtype, device=device))
    sam = SAM(torch.optim.SGD([weight], lr=0.1), 0.1, adaptive=adaptive)
    (found,) = moved(sam, [weight], lambda: (weight.abs() ** 4).sum().backward())
    w = weight.detach().to(torch.complex128)
    grad = 4 * w.abs() ** 2 * w
    factor = w.abs() if adaptive else torch.ones_like(w.abs())
    expected = 0.1 * factor**2 * grad / (factor * grad).abs().square().sum().sqrt()
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-7)


SIZES = {
    torch.float16: (5e-7, 1e-3, 3e4),
    torch.bfloat16: (1e-38, 1e-30, 1e30),
    torch.float32: (1e-41, 1e-25, 1e30),
    torch.float64: (5e-320, 1e-200, 1e200),
}
CASES = [(dtype, size) for dtype, sizes in SIZES.items() for size in sizes]


@pytest.mark.parametrize(("dtype", "size"), CASES)
def test_gradients_of_every_size(device, dtype, size):
    weight = nn.Parameter(torch.ones(2, dtype=dtype, device=device))
    sam = SAM(torch.optim.SGD([weight], lr=0.1), 0.05)
    slope = torch.tensor([size, 0.0], dtype=dtype, device=device)
    (found,) = moved(sam, [weight], lambda: (weight * slope).sum().backward())
    rounding = torch.finfo(dtype).eps
    expected = torch.tensor([0.05, 0.0], dtype=torch.float64, device=device)
    torch.testing.assert_close(found, expected, rtol=0, atol=rounding)
    assert sam.grad_norm == pytest.approx(float(slope[0].double()), rel=1e-5)


def test_asam_in_half_precision_does_not_underflow(device):
    weight = nn.Parameter(torch.full((2,), 0.01, dtype=torch.float16, device=device))
    sam = SAM(torch.optim.SGD([weight], lr=0.1), 0.5, adaptive=True)
    slope = torch.tensor([1e-4, 0.0], dtype=torch.float16, device=device)
    (found,) = moved(sam, [weight], lambda: (weight * slope).sum().backward())
    assert float(found[0]) == pytest.approx(0.005, rel=2e-3)


def test_infinite_and_zero_gradients_move_nothing(device):
    for value in (0.0, math.inf, math.nan):
        weight = nn.Parameter(torch.ones(2, device=device))
        sam = SAM(torch.optim.SGD([weight], lr=0.1), every=2)
        weight.grad = torch.tensor([value, 0.0], device=device)
        with sam.ascend():
            assert torch.equal(weight, torch.ones_like(weight))
            weight.grad = torch.zeros_like(weight)
        sam.step()
        assert not sam.due  # it was a step


@pytest.mark.parametrize("rho", [np.float32(0.5), np.int64(1), torch.tensor(0.5, device="cpu"), 1])
def test_any_scalar_is_a_radius(rho, device):
    weight = nn.Parameter(torch.ones(2, device=device))
    sam = SAM(torch.optim.SGD([{"params": [weight]}], lr=0.1), rho)
    group = SAM(torch.optim.SGD([{"params": [weight], "rho": rho}], lr=0.1))
    for each in (sam, group):
        assert type(each.param_groups[0]["rho"]) is float
        assert each.param_groups[0]["rho"] == float(rho)


@pytest.mark.parametrize(
    "rho", [True, "0.1", None, torch.ones(2, device="cpu"), np.array([0.1]), -0.1]
)
def test_anything_else_is_refused_by_name(rho, device):
    weight = nn.Parameter(torch.ones(2, device=device))
    with pytest.raises(HDFError, match=r"rho: try 0\.05, .*expected a finite number > 0"):
        SAM(torch.optim.SGD([weight], lr=0.1), rho)
    with pytest.raises(HDFError, match=r"rho: try 0\.05, .*expected a finite number > 0"):
        SAM(torch.optim.SGD([{"params": [weight], "rho": rho}], lr=0.1))
    sam = SAM(torch.optim.SGD([weight], lr=0.1))
    sam.param_groups[0]["rho"] = rho
    weight.sum().backward()
    with pytest.raises(HDFError, match=r"rho: try 0\.05, .*expected a finite number > 0"):
        sam.ascend().__enter__()
    with pytest.raises(HDFError, match="adaptive: expected one of True, False"):
        SAM(torch.optim.SGD([weight], lr=0.1), adaptive="yes")


def test_groups_come_and_go(device):
    a, b = nn.Linear(2, 2).to(device), nn.Linear(2, 1).to(device)
    base = torch.optim.SGD(a.parameters(), lr=0.1)
    sam = SAM(base, 0.3, every=2)
    x = torch.ones(4, 2, device=device)

    def step():
        b(a(x)).square().mean().backward()
        with sam.ascend():
            b(a(x)).square().mean().backward()
        sam.step()
        sam.zero_grad()

    base.add_param_group({"params": b.parameters()})  # not through SAM
    assert sam.param_groups[1]["rho"] == 0.3
    step()
    assert not sam.due
    del base.param_groups[0]  # the one that came first
    assert not sam.due
    step()
    assert sam.due
    base.param_groups.clear()
    assert sam.due


def test_wrapped_once_more_the_last_radius_holds(device):
    a, b = (nn.Parameter(torch.ones(2, device=device)) for _ in range(2))
    base = torch.optim.SGD([{"params": [a]}, {"params": [b], "rho": 0.5}], lr=0.1)
    first = SAM(base, 0.05, every=2)
    second = SAM(base, 0.2, every=2)
    assert [group["rho"] for group in base.param_groups] == [0.2, 0.5]
    (a + b).sum().backward()
    with second.ascend():
        (a + b).sum().backward()
    first.step()  # knows whose gradient it is, and counts it once
    assert base.param_groups[0]["sam_steps"] == 1
