"""Saving, loading and copying SAM: a resumed run is the uninterrupted one, bit for bit."""

import copy
import pickle
from pathlib import Path

import pytest
import torch
from torch import nn

from hdf_modules import SAM


def make(device, name="AdamW", **options):
    torch.manual_seed(3)
    model = nn.Sequential(nn.Linear(5, 8), nn.Dropout(0.3), nn.Tanh(), nn.Linear(8, 3)).to(device)
    base = getattr(torch.optim, name)(model.parameters(), lr=0.05)
    sam = SAM(base, model=model, **options)
    return model, sam, torch.optim.lr_scheduler.CosineAnnealingLR(sam, 20)


def train(model, sam, scheduler, steps, start=0):
    device = next(model.parameters()).device
    for i in range(start, start + steps):
        x = torch.randn(9, 5, generator=torch.Generator(device).manual_seed(i), device=device)
        torch.manual_seed(i)
        sam.zero_grad()
        (model(x) - 1).square().mean().backward()
        if sam.due:
            with sam.ascend():
                (model(x) - 1).square().mean().backward()
        sam.step()
        scheduler.step()


def weights(model):
    return torch.cat([p.detach().flatten() for p in model.parameters()])


@pytest.mark.parametrize("options", [{}, {"adaptive": True, "rho": 0.5}, {"every": 3}])
@pytest.mark.parametrize("name", ["SGD", "AdamW", "Adagrad"])
def test_resume_is_bit_exact(device, tmp_path, name, options):
    whole = make(device, name, **options)
    train(*whole, 10)
    first = make(device, name, **options)
    train(*first, 4)
    path = tmp_path / "state.pt"
    torch.save([part.state_dict() for part in first], path)
    second = make(device, name, **options)
    for part, state in zip(second, torch.load(path, weights_only=True), strict=True):
        part.load_state_dict(state)
    train(*second, 6, start=4)
    assert torch.equal(weights(whole[0]), weights(second[0]))


def test_state_dict_is_the_base_optimizers_own(device):
    model, sam, scheduler = make(device)
    train(model, sam, scheduler, 2)
    assert str(sam.state_dict()) == str(sam.base_optimizer.state_dict())
    assert sam.state_dict()["param_groups"][0]["rho"] == 0.05


def test_a_run_without_sam_can_be_continued_with_it(device):
    model, sam, scheduler = make(device)
    plain = torch.optim.AdamW(model.parameters(), lr=0.05)
    model(torch.ones(2, 5, device=device)).sum().backward()
    plain.step()
    sam.load_state_dict(plain.state_dict())
    assert sam.param_groups[0]["rho"] == 0.05
    assert all(int(state["step"]) == 1 for state in sam.state.values())
    train(model, sam, scheduler, 2)


def test_loading_into_the_base_alone_is_seen(device):
    model, sam, scheduler = make(device)
    train(model, sam, scheduler, 2)
    saved = copy.deepcopy(sam.state_dict())
    train(model, sam, scheduler, 1)
    sam.base_optimizer.load_state_dict(saved)
    assert sam.state is sam.base_optimizer.state
    assert all(int(state["step"]) == 2 for state in sam.state.values())
    train(model, sam, scheduler, 1)


@pytest.mark.parametrize("clone", [copy.deepcopy, lambda pair: pickle.loads(pickle.dumps(pair))])
def test_copies_train_on_their_own(device, clone):
    model, sam, scheduler = make(device)
    train(model, sam, scheduler, 2)
    twin, other = clone((model, sam))
    before = weights(model)
    train(twin, other, torch.optim.lr_scheduler.CosineAnnealingLR(other, 20), 1, start=2)
    assert torch.equal(before, weights(model))
    assert not torch.equal(before, weights(twin))
    assert other.param_groups[0]["sam_steps"] == sam.param_groups[0]["sam_steps"] + 1


def test_state_dict_hooks_run(device):
    model, sam, scheduler = make(device)
    train(model, sam, scheduler, 1)
    calls = []
    sam.register_state_dict_pre_hook(lambda *_: calls.append("save"))
    sam.register_load_state_dict_post_hook(lambda *_: calls.append("load"))
    sam.load_state_dict(sam.state_dict())
    assert calls == ["save", "load"]


def test_a_checkpoint_of_0_1_is_read_bit_for_bit_and_goes_on(device):
    path = Path(__file__).parents[1] / "golden/state_0_1_0/sam.pt"
    saved = torch.load(path, map_location=device, weights_only=True)
    model = nn.Linear(3, 2, device=device)
    groups = [{"params": [model.weight], "rho": 0.1}, {"params": [model.bias], "lr": 0.01}]
    sam = SAM(torch.optim.AdamW(groups, lr=0.1), 0.05, model=model, every=2)
    model.load_state_dict(saved["model"])
    sam.load_state_dict(saved["state"])
    read = sam.state_dict()["state"]
    torch.testing.assert_close(read, saved["state"]["state"], rtol=0, atol=0)
    for x in saved["inputs"]:
        sam.zero_grad()
        model(x).square().mean().backward()
        if sam.due:
            with sam.ascend():
                model(x).square().mean().backward()
        sam.step()
    # Sums are rounded in the order of the processor that makes them: it was another one's.
    for name, value in model.state_dict().items():
        torch.testing.assert_close(value, saved["after"][name])
