"""Gradient accumulation under SAM: the exact form and the one per micro-batch (m-sharpness)."""

import copy
import math

import pytest
import torch
from torch import nn
from torch.amp import GradScaler

from hdf_modules import SAM
from tests.support.reference.sam import sam_gradient

RHO = 0.4


def toy(device, **options):
    model = nn.Sequential(nn.Linear(5, 7), nn.Tanh(), nn.Linear(7, 3)).to(device).double()
    sam = SAM(torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9), RHO, **options)
    return model, sam, torch.randn(12, 5, device=device, dtype=torch.float64)


def loss_of(model, x):
    return (model(x) - 1).pow(4).mean()


def reference(model, x):
    names = [name for name, _ in model.named_parameters()]

    def loss(*weights):
        weights = dict(zip(names, weights, strict=True))
        return (torch.func.functional_call(model, weights, (x,)) - 1).pow(4).mean()

    return sam_gradient(loss, [(list(model.parameters()), RHO, False)])


def assert_gradients(model, expected):
    for p, gradient in zip(model.parameters(), expected, strict=True):
        torch.testing.assert_close(p.grad, gradient, rtol=1e-11, atol=1e-14)


def both_passes(sam, model, x, **options):
    loss_of(model, x).backward()
    with sam.ascend(**options):
        loss_of(model, x).backward()


def test_all_first_passes_then_all_second_ones_equal_the_large_batch(device):
    model, sam, x = toy(device)
    expected, g = reference(model, x)
    for part in x.split(3):
        (loss_of(model, part) / 4).backward()
    with sam.ascend():
        for part in x.split(3):
            (loss_of(model, part) / 4).backward()
    assert_gradients(model, expected)
    assert sam.grad_norm == pytest.approx(g, rel=1e-12)


def test_every_micro_batch_has_its_own_ascent(device):
    model, sam, x = toy(device)
    shares = [reference(model, part)[0] for part in x.split(3)]
    for _ in range(2):  # the second step starts clean
        for part in x.split(3):
            with sam.micro_batch():
                both_passes(sam, model, part)
        assert_gradients(model, [torch.stack(each).sum(0) for each in zip(*shares, strict=True)])
        sam.zero_grad()


def test_micro_batches_of_plain_steps_add_up(device):
    model, sam, x = toy(device, every=2)
    both_passes(sam, model, x)
    sam.step()
    sam.zero_grad()
    twin = copy.deepcopy(model)
    for part in x.split(3):
        with sam.micro_batch():
            assert not sam.due
            loss_of(model, part).backward()
    for part in x.split(3):
        loss_of(twin, part).backward()
    assert_gradients(model, [p.grad for p in twin.parameters()])
    sam.step()


def test_an_exception_keeps_the_earlier_micro_batches(device):
    model, sam, x = toy(device)
    with sam.micro_batch():
        both_passes(sam, model, x)
    earlier = [p.grad.clone() for p in model.parameters()]
    with pytest.raises(RuntimeError, match="in the second micro-batch"), sam.micro_batch():
        raise RuntimeError("in the second micro-batch")
    assert_gradients(model, earlier)


def test_gradients_that_share_a_buffer_are_kept_apart(device):
    # DistributedDataParallel(gradient_as_bucket_view=True) writes every pass to the same memory
    weight = nn.Parameter(torch.ones(3, device=device))
    bucket = torch.zeros(3, device=device)
    sam = SAM(torch.optim.SGD([weight], lr=0.1))

    def backward(value):
        bucket.fill_(value).add_(0 if weight.grad is None else weight.grad)
        weight.grad = bucket

    for value in (1.0, 2.0):
        with sam.micro_batch():
            backward(5.0)
            with sam.ascend():
                before = None if weight.grad is None else weight.grad.clone()
                bucket.fill_(value).add_(0 if before is None else before)
                weight.grad = bucket
    assert torch.equal(weight.grad, torch.full_like(weight, 3.0))


def test_overflow_in_one_micro_batch_spoils_the_step(device):
    model, sam, x = toy(device)
    scaler, before = GradScaler(device.type, init_scale=8.0), copy.deepcopy(model.state_dict())
    for i, part in enumerate(x.split(3)):
        with sam.micro_batch():
            scaler.scale(loss_of(model, part) * (math.inf if i == 1 else 1)).backward()
            with sam.ascend(scaler=scaler):
                scaler.scale(loss_of(model, part)).backward()
    scaler.step(sam)
    scaler.update()
    assert scaler.get_scale() == 4.0
    assert all(torch.equal(p, before[name]) for name, p in model.state_dict().items())
