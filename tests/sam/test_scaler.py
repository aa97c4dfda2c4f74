"""SAM under torch.amp.GradScaler and autocast: exact, and safe when a pass overflows."""

import copy
import math
from contextlib import nullcontext
from functools import partial

import pytest
import torch
from torch import nn
from torch.amp import GradScaler

from hdf_modules import SAM, HDFError


class Overflow(nn.Module):
    """A loss whose gradient overflows when told to, while the loss itself stays finite."""

    def __init__(self, device):
        super().__init__()
        self.weight = nn.Parameter(torch.tensor([1.0, -2.0, 3.0], device=device))
        self.norm = nn.BatchNorm1d(3, device=device)
        self.bad = False

    def forward(self, x):
        y = self.norm(x * self.weight).square().sum() + self.weight.square().sum()
        if self.bad:
            y.register_hook(lambda gradient: gradient * torch.inf)
        return y


def make(device, scale=4.0):
    model = Overflow(device)
    sam = SAM(torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9), model=model)
    return model, sam, GradScaler(device.type, init_scale=scale), torch.randn(5, 3, device=device)


def step(model, sam, scaler, x, bad=(False, False)):
    """One scaled SAM step; ``bad`` names the passes that overflow. Returns the second loss."""
    model.bad = bad[0]
    scaler.scale(model(x)).backward()
    with sam.ascend(scaler=scaler):
        model.bad = bad[1]
        second = model(x)
        scaler.scale(second).backward()
    scaler.step(sam)
    scaler.update()
    sam.zero_grad()
    return second


def test_the_scale_cancels_exactly(device):
    model, sam, scaler, x = make(device)
    twin = copy.deepcopy(model)
    plain = SAM(torch.optim.SGD(twin.parameters(), lr=0.1, momentum=0.9), model=twin)
    for _ in range(4):
        step(model, sam, scaler, x)
        twin(x).backward()
        with plain.ascend():
            twin(x).backward()
        plain.step()
        plain.zero_grad()
        assert sam.grad_norm == pytest.approx(plain.grad_norm, rel=1e-6)
    for p, q in zip(model.parameters(), twin.parameters(), strict=True):
        torch.testing.assert_close(p, q, rtol=1e-6, atol=1e-7)


@pytest.mark.parametrize("bad", [(True, False), (False, True), (True, True)])
def test_overflow_skips_the_step_and_halves_the_scale(device, bad):
    model, sam, scaler, x = make(device)
    step(model, sam, scaler, x)
    state, momentum = copy.deepcopy(model.state_dict()), copy.deepcopy(sam.state_dict())
    second = step(model, sam, scaler, x, bad)
    assert second.isfinite()  # a loss that refuses NaN must not see any
    assert scaler.get_scale() == 2.0
    assert math.isfinite(sam.grad_norm) == (not bad[0])
    for name, p in model.named_parameters():
        assert torch.equal(p, state[name])
    assert str(sam.state_dict()) == str(momentum)
    step(model, sam, scaler, x)  # and training goes on
    assert math.isfinite(sam.grad_norm)
    assert not torch.equal(model.weight, state["weight"])


def test_overflow_is_no_news_to_the_criterion(device):
    class Criterion:
        calls = 0

        def rescale(self, grad_norm):
            self.calls += 1

    model, sam, scaler, x = make(device)
    criterion = Criterion()
    model.bad = True
    scaler.scale(model(x)).backward()
    with sam.ascend(criterion, scaler):
        pass  # no second gradient at all
    assert criterion.calls == 0
    model(x).backward()
    with sam.ascend(criterion):
        pass
    assert criterion.calls == 1


def test_unscaled_for_clipping_after_both_passes(device):
    model, sam, scaler, x = make(device)
    scaler.scale(model(x)).backward()
    with sam.ascend(scaler=scaler):
        scaler.scale(model(x)).backward()
    expected = [p.grad / 4 for p in model.parameters()]
    scaler.unscale_(sam)
    for p, gradient in zip(model.parameters(), expected, strict=True):
        torch.testing.assert_close(p.grad, gradient)
    nn.utils.clip_grad_norm_(model.parameters(), 1e-3)
    before = model.weight.detach().clone()
    scaler.step(sam)
    assert 0 < float((model.weight.detach() - before).norm()) < 1.1e-4


@pytest.mark.parametrize("keyword", [True, False])
def test_a_closure_through_the_scaler_is_refused(device, keyword):
    # positional closures are accepted by torch and used to multiply the update by the loss scale
    model, sam, scaler, x = make(device)

    def closure():
        sam.zero_grad()
        loss = model(x)
        scaler.scale(loss).backward()
        return loss

    closure()
    before = model.weight.detach().clone()
    if keyword:
        with pytest.raises(RuntimeError, match="Closure use is not currently supported"):
            scaler.step(sam, closure=closure)
    else:
        with pytest.raises(
            HDFError, match=r"closure: run the .*expected none when a GradScaler steps"
        ):
            scaler.step(sam, closure)
    assert torch.equal(before, model.weight)


def test_a_closure_through_a_disabled_scaler_works(device):
    model, sam, _, x = make(device)
    scaler = GradScaler(device.type, enabled=False)

    def closure():
        sam.zero_grad()
        loss = scaler.scale(model(x))
        loss.backward()
        return loss

    assert scaler.step(sam, closure) is not None
    assert sam.sharpness_gap is not None


def test_bfloat16_autocast_is_close_to_float32(device):
    def train(enabled):
        torch.manual_seed(1)
        model = nn.Sequential(nn.Linear(8, 16), nn.ReLU(), nn.Linear(16, 4)).to(device)
        sam = SAM(torch.optim.SGD(model.parameters(), lr=0.1), model=model)
        x, y = torch.randn(32, 8, device=device), torch.arange(32, device=device) % 4

        def closure():
            sam.zero_grad()
            with torch.autocast(device.type, torch.bfloat16, enabled=enabled):
                loss = nn.functional.cross_entropy(model(x), y)
            loss.backward()
            return loss

        losses = [sam.step(closure).item() for _ in range(10)]
        return losses, sam.grad_norm

    (exact, g), (rounded, h) = train(False), train(True)
    assert exact[-1] < exact[0]
    assert rounded == pytest.approx(exact, rel=0.01)
    assert h == pytest.approx(g, rel=0.03)


def test_one_autocast_around_both_passes_is_as_two(device):
    # autocast keeps its copies of the weights until it ends, and those do not move
    def train(once):
        torch.manual_seed(1)
        model = nn.Linear(8, 4).to(device)
        sam = SAM(torch.optim.SGD(model.parameters(), lr=0.1), rho=1.0)
        x = torch.randn(32, 8, device=device)
        half = partial(torch.autocast, device.type, torch.bfloat16)
        losses = []

        def backward():
            with nullcontext() if once else half():
                loss = model(x).float().square().mean()
            losses.append(loss.item())
            loss.backward()

        for _ in range(3):
            with half() if once else nullcontext():
                backward()
                with sam.ascend():
                    backward()
                sam.step()
            sam.zero_grad()
        return losses

    assert train(True) == pytest.approx(train(False), rel=0.01)
    assert train(True)[1] > 1.5 * train(True)[0]
