"""A step of the loss and SAM makes the host wait twice: for the loss's values, and for g."""

import copy

import pytest
import torch
from torch import nn

from benchmarks.sam.waits import SETTINGS, stepper
from benchmarks.waits import counted
from hdf_modules import SAM, HDFError, HeterogeneityAwareLoss
from hdf_modules.loss import Ramp, dro


@pytest.mark.parametrize("name", SETTINGS)
def test_no_more_than_twice_a_step(name, device):
    step = stepper(name, device)
    step()  # the first one looks at what there is
    for _ in range(2):
        waits = counted(step)
        assert waits.total() <= 2, waits


@pytest.mark.parametrize("name", SETTINGS)
def test_the_loss_alone_waits_once(name, device):
    step = stepper(name, device, sam=False)
    step()
    waits = counted(step)
    assert waits.total() <= 1, waits


@pytest.mark.parametrize("read", [lambda v: v.tolist(), lambda v: v.item(), bool])
def test_what_is_read_is_counted(read, device):
    value = torch.ones((), device=device)
    assert counted(lambda: read(value)).total() == 1
    assert counted(lambda: value[None][value[None] > 0]).total() > 0


def seen(pair):
    logits, target = pair
    return logits, target, logits.detach() + 1


def test_what_is_wrong_in_a_second_pass_is_told_in_the_next(device):
    criterion = HeterogeneityAwareLoss()
    logits, target = torch.randn(4, 3, device=device), torch.arange(4, device=device) % 3
    criterion(*seen((logits, target)))
    broken = logits.clone()
    broken[2] = torch.nan
    with criterion.frozen():
        criterion(broken, target, logits)
    again = copy.deepcopy(criterion)  # a copy begins anew
    with pytest.raises(
        HDFError, match=r"losses: look at .*expected finite values, found .* index 2"
    ):
        criterion(*seen((logits, target)))
    criterion(*seen((logits, target)))
    again(*seen((logits, target)))


def test_a_second_pass_over_other_tensors_is_read(device):
    criterion = HeterogeneityAwareLoss(nn.CrossEntropyLoss(ignore_index=0))
    logits, target = torch.randn(4, 3, device=device), torch.arange(4, device=device) % 3
    first = criterion(logits, target)
    with criterion.frozen():
        other = criterion(logits, target.fill_(1))  # in place
        torch.testing.assert_close(other, nn.functional.cross_entropy(logits, target))
        torch.testing.assert_close(criterion(logits, torch.arange(4, device=device) % 3), first)
        with pytest.raises(HDFError, match=r"target: number the .*expected class ids in 0"):
            criterion(logits, target + 7)


@pytest.mark.parametrize("write", ["load", "fill", "deepcopy"])
def test_a_counter_that_somebody_else_wrote_is_read(write, device):
    ramp = Ramp(4.0, 1.0, steps=3).to(device)
    assert [ramp(advance=True) for _ in range(2)] == [4.0, 3.0]
    if write == "load":
        ramp.load_state_dict({"steps_taken": torch.tensor(1, device=device)})
    elif write == "fill":
        ramp.steps_taken.fill_(1)
    else:
        ramp.steps_taken -= 1
        ramp = copy.deepcopy(ramp)
    assert [ramp(advance=True) for _ in range(4)] == [3.0, 2.0, 1.0, 1.0]


def test_a_counter_that_moves_in_a_second_pass_is_put_back(device):
    """In a loss of somebody else, which does not stand still there."""

    class Loss(nn.Module):
        def __init__(self):
            super().__init__()
            self.ramp, self.levels = Ramp(0.0, 8.0, steps=8), []

        def forward(self, values):
            self.levels.append(self.ramp(advance=True))
            return values.square().mean()

    model, loss = nn.Linear(2, 1, device=device), Loss().to(device)
    sam = SAM(torch.optim.SGD(model.parameters(), lr=0.1), model=model, criterion=loss)
    for _ in range(3):
        sam.zero_grad()
        loss(model(torch.ones(4, 2, device=device))).backward()
        with sam.ascend():
            loss(model(torch.ones(4, 2, device=device))).backward()
        sam.step()
    assert loss.levels[::2] == [0.0, 1.0, 2.0]


@pytest.mark.parametrize("objective", ["kl", "kl-ball", "chi2", "cvar"])
@pytest.mark.parametrize("level", [1e-4, 0.1, 0.6931471805599453, 1.0])
def test_worst_cases_of_a_device(objective, level, device, monkeypatch):
    """The same numbers as on a processor, by operations whose shapes depend on no value."""
    assert dro.worst_case(torch.zeros(5, device="meta"), objective, level).shape == (5,)
    drawn = torch.randn(40, device=device)
    for losses in (drawn, drawn.round(), 1e6 * drawn[:2].abs(), torch.ones(9, device=device)):
        expected = dro.worst_case(losses.double(), objective, level)
        with monkeypatch.context() as patch:
            patch.setattr(dro, "_waits", lambda losses: True)
            found = dro.worst_case(losses.double(), objective, level)
        torch.testing.assert_close(found, expected, rtol=1e-9, atol=1e-12)
