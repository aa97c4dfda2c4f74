"""A loss with a state counts each batch once, whether SAM was told of it or not."""

import copy
import warnings

import pytest
import torch
from torch import nn

from hdf_modules import SAM, HeterogeneityAwareLoss
from hdf_modules.loss import CVaR, GroupDRO, Ramp, RobustContrastive


def make(device, **options):
    torch.manual_seed(0)
    model = nn.Linear(5, 3).to(device)
    criterion = HeterogeneityAwareLoss(
        weighting=GroupDRO(Ramp(0.1, 0.5, steps=4)), contrastive=RobustContrastive(memory=64)
    ).to(device)
    bound = {"criterion": criterion} if options.pop("bound", False) else {}
    sam = SAM(torch.optim.SGD(model.parameters(), lr=0.1), **bound, **options)
    x, y = torch.randn(8, 5, device=device), torch.arange(8, device=device) % 3
    return model, criterion, sam, x, y


def train(model, criterion, sam, x, y, how, told=None, steps=3):
    def closure():
        sam.zero_grad()
        loss = criterion(model(x), y, x, y)
        loss.backward()
        return loss

    for _ in range(steps):
        if how == "closure":
            sam.step(closure, criterion=told)
            continue
        closure()
        with sam.ascend(told):
            criterion(model(x), y, x, y).backward()
        sam.step()


def state(criterion):
    return {name: value.clone() for name, value in criterion.state_dict().items()}


def same(first, second):
    for name, value in first.items():
        torch.testing.assert_close(value, second[name], rtol=0, atol=0, equal_nan=True)


@pytest.mark.parametrize("how", ["closure", "ascend"])
def test_a_criterion_of_the_constructor_is_told_as_one_of_the_call(device, how):
    given, bound = make(device), make(device, bound=True)
    train(*given, how, told=given[1])
    train(*bound, how)
    same(state(given[1]), state(bound[1]))
    assert torch.equal(given[0].weight, bound[0].weight)
    assert len(bound[1].contrastive.memory.features) == 24
    assert float(bound[1].balance.grad_norm) == pytest.approx(bound[2].grad_norm)
    if how == "closure":
        assert bound[2].sharpness_gap == bound[1].terms["sharpness_gap"]


@pytest.mark.parametrize("how", ["closure", "ascend"])
def test_a_loss_that_no_one_told_of_freezes_itself_and_warns_once(device, how):
    given, untold = make(device), make(device)
    given[1].balance.update = lambda grad_norm: None
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        train(*given, how, told=given[1])
    with warnings.catch_warnings(record=True) as seen:
        warnings.simplefilter("always")
        train(*untold, how)
    assert [str(each.message).split(":")[0] for each in seen] == [
        "the loss is in the second pass of a SAM that does not know it"
    ]
    same(state(given[1]), state(untold[1]))
    assert torch.equal(given[0].weight, untold[0].weight)


def test_one_without_a_state_says_nothing(device):
    model, _, sam, x, y = make(device)
    train(model, HeterogeneityAwareLoss(weighting=CVaR(0.5)), sam, x, y, "closure")


def test_in_evaluation_mode_nothing_moves_and_nothing_is_said(device):
    model, criterion, sam, x, y = make(device)
    train(model, criterion.eval(), sam, x, y, "ascend")


def test_the_losses_in_a_module_are_told(device):
    class Both(nn.Module):
        def __init__(self, first, second):
            super().__init__()
            self.first, self.second = first, second

        def forward(self, *batch):
            return self.first(*batch) + self.second(*batch)

    model, criterion, sam, x, y = make(device)
    both = Both(criterion, copy.deepcopy(criterion))
    train(model, both, sam, x, y, "ascend", told=both)
    same(state(both.first), state(both.second))
    assert len(criterion.contrastive.memory.features) == 24
    assert float(criterion.balance.grad_norm) == pytest.approx(sam.grad_norm)


def test_after_an_exception_inside_the_loss_moves_again(device):
    model, criterion, sam, x, y = make(device)
    criterion(model(x), y, x, y).backward()
    with pytest.raises(RuntimeError, match="inside"), sam.ascend():
        raise RuntimeError("inside")
    criterion(model(x), y, x, y)
    assert len(criterion.contrastive.memory.features) == 16


def test_a_copy_of_sam_tells_its_own_copy_of_the_loss(device):
    parts = make(device, bound=True)
    _, criterion, sam, *_ = twins = copy.deepcopy(parts)
    assert sam.criterion is criterion
    train(*twins, "closure")
    assert len(parts[1].contrastive.memory.features) == 0
