"""Copies, files and checkpoints of attached models, over four kinds of backbone."""

import copy
import io
import pickle

import pytest
import safetensors.torch
import torch
from timm.optim import param_groups_layer_decay
from timm.utils import ModelEmaV3
from torch.func import functional_call
from torch.utils.checkpoint import checkpoint

from hdf_modules import attach, detach
from hdf_modules.backbones import check_optimizer, dam_parameters, dam_state_dict
from tests.support.matrix_models import FRAMES, KINDS, attached, clips

pytestmark = pytest.mark.parametrize("kind", KINDS)


def through_file(model):
    file = io.BytesIO()
    torch.save(model, file)
    file.seek(0)
    return torch.load(file, weights_only=False)


def through_pickle(model):
    return pickle.loads(pickle.dumps(model))


def move(model, amount=0.5):
    with torch.no_grad():
        for parameter in dam_parameters(model):
            parameter.add_(amount)


@pytest.mark.parametrize("copied", [copy.deepcopy, through_pickle, through_file])
def test_copies_are_equal_and_independent(kind, copied, device):
    model, x = attached(kind, device), clips(kind, device)
    twin, before = copied(model), model(x)
    assert torch.equal(twin(x), before)
    move(twin)
    assert torch.equal(model(x), before)
    assert not torch.equal(twin(x), before)


def test_moving_average(kind, device):
    model, x = attached(kind, device), clips(kind, device)
    ema = ModelEmaV3(model, decay=0.5)
    start = copy.deepcopy(dam_state_dict(model))
    move(model, 1.0)
    ema.update(model)
    for name, value in dam_state_dict(ema.module).items():
        torch.testing.assert_close(value, start[name] + 0.5)
    assert not torch.equal(ema.module(x), model(x))


def test_safetensors(kind, tmp_path, device):
    model, other, x = attached(kind, device), attached(kind, device), clips(kind, device)
    move(model)
    safetensors.torch.save_model(model, tmp_path / "model.safetensors")
    assert not torch.equal(other(x), model(x))
    safetensors.torch.load_model(other, tmp_path / "model.safetensors")
    assert torch.equal(other(x), model(x))


def test_original_checkpoint(kind, device):
    original, x = KINDS[kind]().to(device).eval(), clips(kind, device)
    model = attached(kind, device, strength=0.0)
    with pytest.warns(UserWarning, match="no weights for the attached attention"):
        model.load_state_dict(original.state_dict(), strict=True)
    assert torch.equal(model(x), original(x))


def test_gradient_checkpointing(kind, device):
    model, x = attached(kind, device), clips(kind, device)
    expected = gradients(model, model(x))
    if hasattr(model, "set_grad_checkpointing"):
        model.set_grad_checkpointing()
        found = gradients(model, model(x))
    else:
        found = gradients(model, checkpoint(model, x, use_reentrant=False))
    torch.testing.assert_close(found, expected)
    assert all(gradient is not None for gradient in found)


def gradients(model, y):
    model.zero_grad()
    y.square().sum().backward()
    return [parameter.grad.clone() for parameter in dam_parameters(model)]


def test_functional_call(kind, device):
    model, other, x = attached(kind, device), attached(kind, device), clips(kind, device)
    move(other)
    before = model(x)
    assert torch.equal(functional_call(model, other.state_dict(), x), other(x))
    assert torch.equal(model(x), before)


def test_learning_rates_of_their_own(kind, device):
    model = attached(kind, device)
    dam = {id(parameter) for parameter in dam_parameters(model)}
    rest = [parameter for parameter in model.parameters() if id(parameter) not in dam]
    groups = [{"params": rest, "lr": 0.0}, {"params": dam_parameters(model), "lr": 0.1}]
    optimizer = torch.optim.SGD(groups)
    check_optimizer(optimizer, model)
    before, attention = [p.detach().clone() for p in rest], copy.deepcopy(dam_state_dict(model))
    model(clips(kind, device)).square().sum().backward()
    optimizer.step()
    assert all(map(torch.equal, rest, before))
    assert any(not torch.equal(v, attention[k]) for k, v in dam_state_dict(model).items())


def test_layer_decay(kind, device):
    """Every parameter is in one group: attention in that of its stage, or of the head.

    timm sorts parameters by patterns of their names; those of Swin know only blocks inside a stage,
    so that attention behind the stage counts as new, like the head.
    """
    model = attached(kind, device)
    if kind == "video":
        stages = [(f"layer{i}", 0.5 ** (4 - i)) for i in range(1, 5)]
        groups = [
            {"params": list(model.get_submodule(name).parameters()), "lr_scale": scale}
            for name, scale in stages
        ]
        groups.append({"params": [*model.stem.parameters(), *model.fc.parameters()]})
    else:
        groups = param_groups_layer_decay(model, layer_decay=0.5)
    scales = {id(p): group.get("lr_scale", 1) for group in groups for p in group["params"]}
    assert sum(len(group["params"]) for group in groups) == len(list(model.parameters()))
    assert scales.keys() == {id(parameter) for parameter in model.parameters()}
    modules = [module for module in model.modules() if hasattr(module, "dam")]
    for module in modules:
        of_attention = {scales[id(p)] for p in module.dam.parameters()}
        of_stage = {1} if kind == "nhwc" else {scales[id(p)] for p in own_parameters(module)}
        assert of_attention == of_stage


def own_parameters(module):
    dam = {id(parameter) for parameter in module.dam.parameters()}
    return [parameter for parameter in module.parameters() if id(parameter) not in dam]


def test_detach_gives_the_model_back(kind, device):
    model, x = KINDS[kind]().to(device).eval(), clips(kind, device)
    state, before = copy.deepcopy(model.state_dict()), model(x)
    attach(model, FRAMES)
    move(model)
    assert not torch.equal(model(x), before)
    detach(model)
    assert list(model.state_dict()) == list(state)
    assert torch.equal(model(x), before)
