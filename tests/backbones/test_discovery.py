"""Places and layouts found by experiment, in models that nobody told the library of."""

import copy
import logging

import pytest
import timm
import torch
from einops import rearrange
from torch import nn
from torch.utils.checkpoint import checkpoint

from hdf_modules import HDFError, attach
from hdf_modules.attention import Layout
from hdf_modules.backbones import dam_parameters, explain, register_adapter, registry, summary
from hdf_modules.backbones.discovery import explore
from hdf_modules.backbones.hooks import target_of
from hdf_modules.backbones.plan import checked, planned
from tests.support.standins import dfer_clip, former_dfer
from tests.support.standins.clip.model import VisionTransformer as ClipEncoder
from tests.support.video_models import MODELS

FRAMES, WIDTH = 8, 24


def places(model, stages):
    return [(target_of(model, stage), stage.layout.pattern) for stage in stages]


def same_places(model, num_frames, example):
    known = checked(model, num_frames, planned(model, num_frames, None, example)).stages
    return places(model, known), places(model, explore(model, num_frames, example).stages)


# Not slowfast_r50, whose adapter names the stages of both pathways, and not CLIP, whose adapter
# leaves the last block out, as classifiers read its class token alone.
@pytest.mark.filterwarnings("ignore:.*torch.jit.script.*")
@pytest.mark.parametrize("name", sorted(set(MODELS) - {"slowfast_r50", "CLIP vision"}))
def test_finds_what_the_adapters_of_video_models_say(name):
    known = MODELS[name]
    torch.manual_seed(0)
    expected, found = same_places(known.build(), known.num_frames, known.sample())
    assert found == expected


@pytest.mark.parametrize(
    "name",
    [
        "resnet18",
        "vit_tiny_patch16_224",
        "deit_tiny_distilled_patch16_224",
        "swin_tiny_patch4_window7_224",
        "convnext_atto",
        "efficientnet_b0",
        "levit_128s",
        "mixer_s32_224",
    ],
)
def test_finds_what_timm_says(name, device):
    torch.manual_seed(0)
    model = timm.create_model(name).to(device)
    expected, found = same_places(model, FRAMES, torch.rand(1, 3, 224, 224, device=device))
    assert found == expected


@pytest.mark.parametrize(
    ("build", "shape"),
    [
        (former_dfer.GenerateModel, (1, 16, 3, 112, 112)),
        (dfer_clip.GenerateModel, (1, 16, 3, 64, 64)),
        (ClipEncoder, (16, 3, 64, 64)),
    ],
)
def test_finds_what_the_adapters_of_code_bases_say(build, shape, device):
    torch.manual_seed(0)
    expected, found = same_places(build().to(device), 16, torch.rand(shape, device=device))
    assert found == expected


class Block(nn.Module):
    """A block of a transformer over axis ``dim``."""

    def __init__(self, dim=1):
        super().__init__()
        self.attention = nn.MultiheadAttention(WIDTH, 2, batch_first=dim == 1)
        self.norm1, self.norm2 = nn.LayerNorm(WIDTH), nn.LayerNorm(WIDTH)
        self.mlp = nn.Sequential(nn.Linear(WIDTH, WIDTH), nn.GELU(), nn.Linear(WIDTH, WIDTH))

    def forward(self, x):
        y = self.norm1(x)
        x = x + self.attention(y, y, y, need_weights=False)[0]
        return x + self.mlp(self.norm2(x))


class Tokens(nn.Module):
    """A transformer of tubelets (2, 8, 8) whose tokens are in any order, between others."""

    def __init__(self, order, prefix=0, suffix=0, saves_memory=None):
        super().__init__()
        self.order, self.saves_memory = order, saves_memory
        self.embed = nn.Conv3d(3, WIDTH, (2, 8, 8), (2, 8, 8))
        self.prefix = nn.Parameter(torch.randn(1, prefix, WIDTH))
        self.suffix = nn.Parameter(torch.randn(1, suffix, WIDTH))
        self.layers = nn.ModuleList(Block() for _ in range(8))
        self.fc = nn.Linear(WIDTH, 7)

    def forward(self, clips):
        x = rearrange(self.embed(clips), f"b c t h w -> {self.order}")
        x = torch.cat(
            (self.prefix.expand(len(x), -1, -1), x, self.suffix.expand(len(x), -1, -1)), 1
        )
        for layer in self.layers:
            if self.saves_memory is None:
                x = layer(x)
            else:
                x = checkpoint(layer, x, use_reentrant=self.saves_memory)
        return self.fc(x.mean(1))


@pytest.mark.parametrize("prefix", [0, 1, 3])
@pytest.mark.parametrize("suffix", [0, 2])
@pytest.mark.parametrize("order", ["b (t h w) c", "b (h w t) c"])
@pytest.mark.parametrize("shape", [(1, 3, FRAMES, 32, 32), (2, 3, FRAMES, 32, 48)])
def test_order_of_tokens_and_those_beside_the_grid(order, prefix, suffix, shape, device):
    torch.manual_seed(0)
    model, clips = Tokens(order, prefix, suffix).to(device), torch.rand(shape, device=device)
    stages = explore(model, FRAMES, clips).stages
    grid = None if shape[3] == shape[4] else (4, 6)
    assert [stage.name for stage in stages] == [f"layers.{i}" for i in (1, 3, 5, 7)]
    assert {stage.layout for stage in stages} == {Layout(order, prefix, suffix, grid)}
    assert {stage.num_frames for stage in stages} == {FRAMES // 2}


class Windows(Tokens):
    """Tokens ordered by windows: every axis is there, in no order that a layout could say."""

    def __init__(self):
        super().__init__("")

    def forward(self, clips):
        x = self.embed(clips)
        windows = {"nt": 2, "nh": 2, "nw": 2}
        order = "b c (nt t) (nh h) (nw w) -> b (nt nh nw t h w) c"
        x = rearrange(x, order, **windows)
        for layer in self.layers:
            x = layer(x)
        return self.fc(x.mean(1))


@pytest.mark.parametrize("seed", range(4))
def test_windows_are_refused_with_the_candidates(seed, device):
    torch.manual_seed(seed)
    clips = torch.rand(1, 3, FRAMES, 32, 32, device=device)
    with pytest.raises(HDFError, match=r"by hand[^$]*no order of axes fits") as caught:
        attach(Windows().to(device), FRAMES, example=clips)
    assert "layers.7" in str(caught.value)


def test_a_module_that_hands_the_input_on(device):
    torch.manual_seed(0)
    net = nn.Sequential(nn.Identity(), nn.Conv3d(3, 8, 3, padding=1), nn.ReLU()).to(device)
    clips = torch.rand(1, 3, FRAMES, 16, 16, device=device)
    assert [stage.name for stage in explore(net, FRAMES, clips).stages] == ["2"]


class EveryLayer(Tokens):
    """The classifier reads what every layer gives, not the last alone."""

    def forward(self, clips):
        x = rearrange(self.embed(clips), f"b c t h w -> {self.order}")
        given = [x := layer(x) for layer in self.layers]
        return self.fc(torch.stack(given).mean((0, 2)))


def test_blocks_whose_outputs_are_read_later_too(device):
    torch.manual_seed(0)
    model = EveryLayer("b (t h w) c").to(device)
    clips = torch.rand(1, 3, FRAMES, 32, 32, device=device)
    names = [stage.name for stage in explore(model, FRAMES, clips).stages]
    assert names == [f"layers.{i}" for i in (1, 3, 5, 7)]


class Pathways(nn.Module):
    """A stage of two pathways, the fast of which is fused into the slow."""

    def __init__(self, channels, stride):
        super().__init__()
        kinds = {"kernel_size": 3, "stride": (1, stride, stride), "padding": 1}
        self.slow = nn.Conv3d(channels[0], channels[1], **kinds)
        self.fast = nn.Conv3d(channels[0], channels[1], **kinds)

    def forward(self, clips):
        slow, fast = self.slow(clips[0]).relu(), self.fast(clips[1]).relu()
        return [slow + fast[:, :, ::4], fast]


class TwoPathways(nn.Module):
    def __init__(self):
        super().__init__()
        self.stage1, self.stage2 = Pathways((3, 8), 2), Pathways((8, 16), 2)
        self.fc = nn.Linear(32, 7)

    def forward(self, clips):
        ends = self.stage2(self.stage1(clips))
        return self.fc(torch.cat([end.mean((2, 3, 4)) for end in ends], 1))


def test_of_two_pathways_the_first_is_taken(device):
    torch.manual_seed(0)
    model, fast = TwoPathways().to(device), torch.rand(1, 3, 16, 32, 32, device=device)
    example = ([fast[:, :, ::4], fast],)
    stages = explore(model, 16, example).stages
    assert [(stage.name, stage.channels) for stage in stages] == [("stage1", 8), ("stage2", 16)]
    attach(model, 16, example=example)
    assert "4×16×16" in summary(model)
    model(*example).sum().backward()
    assert all(p.grad is not None for p in dam_parameters(model))


class Frames(nn.Module):
    """A network of frames, then an LSTM over time; another input beside."""

    def __init__(self):
        super().__init__()
        self.backbone = timm.create_model("resnet10t", num_classes=0)
        self.audio = nn.Linear(5, 512)
        self.lstm = nn.LSTM(512, 16, batch_first=True)
        self.fc = nn.Linear(16, 7)

    def forward(self, video, audio):
        features = self.backbone(video.flatten(0, 1)).unflatten(0, video.shape[:2])
        output, _ = self.lstm(features + self.audio(audio)[:, None])
        return {"logits": self.fc(output[:, -1])}


def test_a_video_tower_among_others(device):
    video = torch.rand(1, FRAMES, 3, 64, 64, device=device)
    example = {"video": video, "audio": torch.rand(1, 5, device=device)}
    model = attach(Frames().to(device), FRAMES, example=example)
    assert "backbone.layer4" in summary(model)
    assert summary(model).count("(b t) c h w") == 4
    model(**example)["logits"].sum().backward()
    assert all(p.grad is not None for p in dam_parameters(model))


@pytest.mark.parametrize("name", ["vit_tiny_patch16_224", "swin_tiny_patch4_window7_224"])
def test_timm_without_what_its_adapter_reads(name, device):
    """As before 0.9, where transformers tell nothing of their features."""
    torch.manual_seed(0)
    model = timm.create_model(name, num_classes=7).to(device)
    told = attach(copy.deepcopy(model), 4)
    del model.feature_info
    assert list(attach(model, 4).state_dict()) == list(told.state_dict())


@pytest.mark.parametrize("reentrant", [True, False])
@pytest.mark.filterwarnings("error")
def test_under_gradient_checkpointing(reentrant, device):
    torch.manual_seed(0)
    example = torch.rand(1, 3, FRAMES, 32, 32, device=device)
    model = Tokens("b (t h w) c", saves_memory=reentrant).to(device)
    model = attach(model, FRAMES, example=example)
    assert summary(model).count("b (t h w) c") == 4


class Net(nn.Module):
    """A small network of clips, whose name says nothing."""

    def __init__(self):
        super().__init__()
        self.net = nn.Sequential(
            nn.Sequential(nn.Conv3d(3, 8, 3, padding=1), nn.BatchNorm3d(8), nn.ReLU()),
            nn.MaxPool3d(2),
            nn.Sequential(nn.Conv3d(8, 12, 3, padding=1), nn.BatchNorm3d(12), nn.ReLU()),
            nn.Dropout(0.5),
        )
        self.fc = nn.Linear(12, 7)

    def forward(self, clips):
        return self.fc(self.net(clips).mean((2, 3, 4)))


def test_without_an_example_the_usual_clips_are_tried(caplog):
    with caplog.at_level(logging.INFO, logger="hdf_modules"):
        model = attach(Net(), FRAMES)
    assert summary(model).count("b c t h w") == 2
    written = caplog.text[caplog.text.index("stages=") :].strip()
    assert written == "stages=[Stage('net.0', 8, 'b c t h w'), Stage('net.2', 12, 'b c t h w')]"
    assert written in explain(Net(), FRAMES)


def test_nothing_of_the_model_changes_and_three_forwards_are_enough(device):
    model = Net().to(device)
    model.net[2].eval()
    clips = torch.rand(2, 3, FRAMES, 16, 16, device=device)
    model(clips).sum().backward()
    grads = [p.grad.clone() for p in model.parameters()]
    twin, state, calls = copy.deepcopy(model), torch.random.get_rng_state(), []
    hook = model.register_forward_hook(lambda *_: calls.append(1))
    explain(model, FRAMES, clips)
    assert len(calls) <= 3
    hook.remove()
    assert torch.equal(torch.random.get_rng_state(), state)
    for (name, new), old in zip(model.named_modules(), twin.modules(), strict=True):
        assert new.training == old.training, name
        assert not [*new._forward_hooks, *new._forward_pre_hooks]
        assert list(vars(new)) == list(vars(old))
    for new, old in zip(model.state_dict().values(), twin.state_dict().values(), strict=True):
        assert torch.equal(new, old)
    for p, grad in zip(model.parameters(), grads, strict=True):
        assert torch.equal(p.grad, grad)
        assert p.requires_grad


@pytest.fixture
def known_as_net():
    """An adapter of another class of the same name."""

    @register_adapter("*.Net")
    def other(model, num_frames, example):
        return [model.layer1]

    yield
    del registry._ADAPTERS["*.Net"]


def test_a_namesake_is_looked_at(known_as_net):
    assert summary(attach(Net(), FRAMES)).count("b c t h w") == 2


def test_a_namesake_without_places_says_what_it_lacks(known_as_net):
    model = Net()
    model.forward = lambda clips: clips.mean()
    with pytest.raises(HDFError, match=r"\*\.Net stands for, found one that lacks .*layer1"):
        attach(model, FRAMES)


def test_an_example_without_a_clip(device):
    with pytest.raises(
        HDFError, match=r"example: give a .*expected a clip or a frame in it.*\(4, 5\)"
    ):
        explain(nn.Linear(5, 3).to(device), FRAMES, torch.rand(4, 5, device=device))
