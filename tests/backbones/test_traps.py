"""What goes wrong silently elsewhere is an error or a warning here."""

import warnings

import pytest
import torch
import torch.distributed as dist
from torch import nn
from torch.distributed.fsdp import fully_shard
from torch.nn.parallel import DistributedDataParallel

from hdf_modules import HDFError, Stage, attach, detach
from hdf_modules.attention import Layout
from tests.support.standins import ial
from tests.support.standins.clip.model import VisionTransformer as ClipEncoder

UNREAD = "nothing behind it reads what attention changes there"


class Loop(nn.Module):
    """Runs whatever children it has, as RegNet's stages do."""

    def __init__(self):
        super().__init__()
        self.first, self.second = nn.Conv3d(3, 3, 1), nn.Conv3d(3, 3, 1)

    def forward(self, x):
        for child in self.children():
            x = child(x)
        return x


class Copies(nn.Module):
    """Returns its result twice: for those that extract features, and for the module behind it."""

    def __init__(self):
        super().__init__()
        self.conv = nn.Conv3d(3, 3, 1)

    def forward(self, x):
        x = self.conv(x)
        return x, x


class Net(nn.Module):
    """A stage that makes copies, and one that is read."""

    def __init__(self):
        super().__init__()
        self.copies, self.last = Copies(), nn.Conv3d(3, 4, 1)

    def forward(self, x):
        return self.last(self.copies(x)[1]).mean((2, 3, 4))


@pytest.fixture
def clip(device):
    return torch.rand(1, 3, 4, 5, 5, device=device)


@pytest.fixture
def group(tmp_path):
    dist.init_process_group("gloo", init_method=f"file://{tmp_path}/store", rank=0, world_size=1)
    yield
    dist.destroy_process_group()


@pytest.mark.cpu_only
@pytest.mark.usefixtures("group")
@pytest.mark.parametrize("wrap", [DistributedDataParallel, fully_shard])
def test_wrapped_for_several_processes(wrap):
    model = wrap(Net())
    with pytest.raises(HDFError, match=f"attach .* first, .*one wrapped by {wrap.__name__}"):
        attach(model, 4, stages=[Stage("last", 4)])


@pytest.mark.cpu_only
@pytest.mark.usefixtures("group")
def test_wrapped_since_cannot_be_detached():
    model = DistributedDataParallel(attach(Net(), 4, stages=[Stage("last", 4)]))
    with pytest.raises(HDFError, match="one wrapped by DistributedDataParallel"):
        detach(model)
    detach(model.module)


def test_last_block_of_a_class_token(device):
    images = torch.rand(4, 3, 64, 64, device=device)
    stage = Stage("transformer.resblocks.5", 32, Layout("(h w) (b t) c", prefix_tokens=1))
    with pytest.warns(UserWarning, match=rf"stage 'transformer\.resblocks\.5': {UNREAD}"):
        attach(ClipEncoder().to(device), 4, stages=[stage], example=images)


def test_block_before_the_last_is_fine(device):
    images = torch.rand(4, 3, 64, 64, device=device)
    stage = Stage("transformer.resblocks.4", 32, Layout("(h w) (b t) c", prefix_tokens=1))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        attach(ClipEncoder().to(device), 4, stages=[stage], example=images)


def test_output_that_is_a_copy(clip, device):
    with pytest.warns(UserWarning, match=f"stage 'copies': {UNREAD}"):
        attach(Net().to(device), 4, stages=[Stage("copies", 3), Stage("last", 4)], example=clip)


def test_module_that_runs_all_its_children(clip, device):
    model = nn.Sequential(Loop()).to(device)
    with pytest.raises(
        HDFError, match=r"the last of its .*loop over their children, found '0', a Loop"
    ):
        attach(model, 4, stages=[Stage("0", 3)], example=clip)
    assert list(model[0]._modules) == ["first", "second"]
    attach(model, 4, stages=[Stage("0.second", 3)], example=clip)


def test_module_that_runs_all_its_children_at_the_first_forward(clip, device):
    model = attach(nn.Sequential(Loop()).to(device), 4, stages=[Stage("0", 3)])
    with pytest.raises(HDFError, match=r"loop over their children, found '0', a Loop"):
        model(clip)


def test_other_clip_length_at_a_stage(device):
    """IAL's last stage sees 15 differences; named by hand without saying so, it is an error."""
    model, x = ial.ResNet().to(device), torch.rand(1, 16, 3, 112, 112, device=device)
    stages = [Stage("layer4", 256, "(b t) c h w")]
    match = r"stage 'layer4': pass .*clip length.*expected a multiple of num_frames=16 .*, found 15"
    with pytest.raises(HDFError, match=match):
        attach(model, 16, stages=stages, example=x)
    attach(model, 16, stages=stages)
    with pytest.raises(HDFError, match=match):
        model(x)
    detach(model)
    attach(model, 16, stages=[Stage("layer4", 256, "(b t) c h w", num_frames=15)], example=x)
