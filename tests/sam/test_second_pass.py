"""What SAM's second pass leaves alone (running statistics) and repeats (random numbers)."""

import copy
import gc

import pytest
import torch
from torch import nn
from torch.nn.utils import parametrizations

from hdf_modules import SAM, HeterogeneityAwareLoss
from hdf_modules.loss import GroupDRO


class Net(nn.Module):
    def __init__(self, p=0.5):
        super().__init__()
        self.conv = nn.Conv1d(3, 4, 3)
        self.batch = nn.BatchNorm1d(4)
        self.instance = nn.InstanceNorm1d(4, affine=True, track_running_stats=True)
        self.drop = nn.Dropout(p)
        self.fc = nn.Linear(4, 2)

    def forward(self, x):
        return self.fc(self.drop(self.instance(self.batch(self.conv(x))).relu().mean(-1)))


def make(device, known=True, p=0.5):
    model = Net(p).to(device)
    sam = SAM(torch.optim.SGD(model.parameters(), lr=0.05), model=model if known else None)
    return model, sam, torch.randn(6, 3, 9, device=device)


def buffers(model):
    return {name: b.clone() for name, b in model.named_buffers()}


def random_states(device):
    states = [torch.get_rng_state()]
    return states if device.type == "cpu" else [*states, torch.cuda.get_rng_state(device)]


def same(first, second):
    return all(torch.equal(value, second[name]) for name, value in first.items())


@pytest.mark.parametrize("known", [True, False])
def test_running_statistics_advance_once_per_step(device, known):
    model, sam, x = make(device, known)
    before = buffers(model)
    model(x).sum().backward()
    once = buffers(model)
    with sam.ascend():
        model(x).sum().backward()
        model(x * 5).sum().backward()
    assert same(once, buffers(model))
    assert not same(before, once)
    assert int(model.batch.num_batches_tracked) == 1
    model(x)  # nothing stays switched off
    assert int(model.batch.num_batches_tracked) == 2
    assert model.batch.momentum == 0.1


@pytest.mark.parametrize("known", [True, False])
def test_running_statistics_survive_an_exception(device, known):
    model, sam, x = make(device, known)
    model(x).sum().backward()
    once = buffers(model)

    def fail(*_):
        raise RuntimeError("after the normalisation layers")

    handle = model.fc.register_forward_hook(fail)
    with pytest.raises(RuntimeError, match="after the normalisation layers"), sam.ascend():
        model(x * 3)
    handle.remove()
    assert same(once, buffers(model))
    model(x)
    assert int(model.batch.num_batches_tracked) == 2


def test_the_second_pass_still_normalises_by_the_batch(device):
    model, sam, x = make(device, p=0.0)
    model(x).sum().backward()
    seen = []
    model.batch.register_forward_hook(lambda *args: seen.append(args[2]))
    with sam.ascend():
        model(x * 100)
    torch.testing.assert_close(
        seen[0].mean((0, 2)), torch.zeros(4, device=device), atol=1e-4, rtol=0
    )


def test_the_criterion_counts_a_batch_once(device):
    model, sam, x = make(device)
    criterion = HeterogeneityAwareLoss(weighting=GroupDRO(0.5)).to(device)
    target = torch.arange(6, device=device) % 2
    criterion(model(x), target, groups=target).backward()
    once = buffers(criterion.weighting)
    with sam.ascend(criterion):
        criterion(model(x), target, groups=target).backward()
    assert same(once, buffers(criterion.weighting))


def test_dropout_masks_match(device):
    model, sam, x = make(device)
    masks = []
    model.drop.register_forward_hook(lambda m, args, y: masks.append(y != 0))
    model(x).sum().backward()
    torch.rand(7, device=device)  # the loop may draw in between
    states = random_states(device)
    with sam.ascend():
        model(x).sum().backward()
    # ReLU may zero another unit at w + ε; where both are alive the masks agree
    assert (masks[0] == masks[1]).float().mean() > 0.9
    # and the random stream goes on undisturbed
    assert all(map(torch.equal, states, random_states(device)))


def test_dropout_masks_match_over_micro_batches(device):
    model, sam, x = make(device)
    inputs = []
    model.drop.register_forward_pre_hook(lambda m, args: (torch.ones_like(args[0]),))
    model.drop.register_forward_hook(lambda m, args, y: inputs.append(y))
    for part in x.split(2):
        model(part).sum().backward()
        torch.rand(1, device=device)  # augmentation
    with sam.ascend():
        for part in x.split(2):
            model(part).sum().backward()
    for first, second in zip(inputs[:3], inputs[3:], strict=True):
        assert torch.equal(first, second)
    sam.step()
    sam.zero_grad()
    model(x).sum()
    assert not torch.equal(inputs[-1][:2], inputs[0])  # a new step draws anew


def test_without_the_model_masks_are_drawn_anew(device):
    model, sam, x = make(device, known=False)
    inputs = []
    model.drop.register_forward_pre_hook(lambda m, args: (torch.ones_like(args[0]),))
    model.drop.register_forward_hook(lambda m, args, y: inputs.append(y))
    model(x).sum().backward()
    with sam.ascend():
        model(x).sum().backward()
    assert not torch.equal(*inputs)


def test_evaluation_and_no_grad_passes_are_not_replayed(device):
    model, sam, x = make(device)
    inputs = []
    model.drop.register_forward_pre_hook(lambda m, args: (torch.ones_like(args[0]),))
    model.eval()
    model(x)
    model.train()
    with torch.no_grad():
        model(x)
    model.drop.register_forward_hook(lambda m, args, y: inputs.append(y))
    model(x).sum().backward()
    with sam.ascend():
        model(x).sum().backward()
    assert torch.equal(*inputs)


def test_plain_steps_leave_no_recorded_states(device):
    model, sam, x = make(device)
    for _ in range(3):
        model(x).sum().backward()
        sam.base_optimizer.step()
    assert sam._replay.states == []


def test_the_hook_goes_with_the_optimizer(device):
    model, sam, _ = make(device)
    assert len(model._forward_pre_hooks) == 1
    del sam
    gc.collect()
    assert len(model._forward_pre_hooks) == 0


def test_a_copied_model_and_optimizer_work_together(device):
    pair = make(device)
    model, sam, x = copy.deepcopy(pair)
    inputs = []
    model.drop.register_forward_pre_hook(lambda m, args: (torch.ones_like(args[0]),))
    model.drop.register_forward_hook(lambda m, args, y: inputs.append(y))
    model(x).sum().backward()
    with sam.ascend():
        model(x).sum().backward()
    sam.step()
    assert torch.equal(*inputs)
    assert not torch.equal(model.fc.weight, pair[0].fc.weight)


def test_compiled_model(device):
    model, sam, x = make(device)
    compiled = torch.compile(model, backend="eager")
    compiled(x).sum().backward()
    once = buffers(model)
    with sam.ascend():
        compiled(x).sum().backward()
    assert same(once, buffers(model))
    sam.step()


class Buffers(nn.Module):
    """Centres by its first batch, keeps an average of all; replaces buffers and writes to them."""

    def __init__(self):
        super().__init__()
        self.fc = nn.Linear(6, 3)
        self.register_buffer("first", torch.zeros(3))
        self.register_buffer("started", torch.tensor(False))
        self.register_buffer("mean", torch.zeros(3))

    def forward(self, x):
        y = self.fc(x)
        now = y.detach().mean(0)
        self.mean = 0.9 * self.mean + 0.1 * now
        if not self.started:
            self.first.copy_(now)
            self.started.fill_(True)
        return y - self.first


SIDES = {  # what a forward pass does beside its output
    "spectral norm": lambda: parametrizations.spectral_norm(nn.Linear(6, 3)),
    "spectral norm, the old one": lambda: nn.utils.spectral_norm(nn.Linear(6, 3)),
    "batch norm": lambda: nn.Sequential(nn.Linear(6, 3), nn.BatchNorm1d(3)),
    "moving average, start from data": Buffers,
}


@pytest.mark.parametrize("how", ["ascend", "closure"])
@pytest.mark.parametrize("known", [True, False])
@pytest.mark.parametrize("name", SIDES)
def test_at_radius_zero_the_second_pass_is_the_first(device, name, known, how):
    first = SIDES[name]().to(device)
    second = copy.deepcopy(first)
    batches = torch.randn(5, 7, 6, device=device)
    plain = torch.optim.SGD(first.parameters(), lr=0.1, momentum=0.9)
    groups = [{"params": list(second.parameters()), "rho": 0.0}]
    base = torch.optim.SGD(groups, lr=0.1, momentum=0.9)
    sam = SAM(base, model=second if known else None)

    def backward(model, optimizer, x):
        optimizer.zero_grad()
        loss = model(x).pow(3).sum()
        loss.backward()
        return loss

    for x in batches:
        backward(first, plain, x)
        plain.step()
        if how == "closure":
            sam.step(lambda x=x: backward(second, sam, x))
            continue
        backward(second, sam, x)
        with sam.ascend():
            second(x).pow(3).sum().backward()
        sam.step()
    assert same(first.state_dict(), second.state_dict())
