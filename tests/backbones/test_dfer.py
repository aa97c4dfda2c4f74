"""Adapters of code bases of dynamic facial expression recognition, on stand-ins of their models."""

from functools import partial

import pytest
import torch

from hdf_modules import HDFError, Stage, attach
from hdf_modules.attention import Layout
from hdf_modules.backbones import dam_parameters
from tests.support.standins import (
    convolutional,
    dfer_clip,
    former_dfer,
    ial,
    m3dfel,
    mma_dfer,
    model_finetuning,
    modeling_finetune,
)
from tests.support.standins.clip.model import VisionTransformer as ClipEncoder
from tests.support.verify import verify

FRAMES = 16
FRAMES_FIRST = (1, FRAMES, 3, 112, 112)


@pytest.fixture
def rand(device):
    return partial(torch.rand, device=device)


def names(stages):
    return [stage.name for stage in stages]


def layers(prefix, start=1):
    return [f"{prefix}{i}" for i in range(start, start + 4)]


def test_m3dfel_sees_clips_not_bags(rand, device):
    stages = verify(m3dfel.M3DFEL(num_frames=8), 8, rand(1, 8, 3, 48, 48), device)
    assert names(stages) == layers("features.")
    assert [stage.channels for stage in stages] == [64, 128, 256, 512]
    assert [stage.num_frames for stage in stages] == [8, 4, 2, 2]


def test_m3dfel_bags_follow_each_other_in_time(rand, device):
    stage = verify(m3dfel.M3DFEL(num_frames=8), 8, rand(1, 8, 3, 32, 32), device)[0]
    clips = rand(2, 8, 5, 3, 4)  # batch, time, channels, height, width
    bags = clips.unflatten(1, (2, 4)).flatten(0, 1).transpose(1, 2)
    assert torch.equal(stage.unpack(bags), clips)
    assert torch.equal(stage.pack(bags, clips), bags)


def test_former_dfer(rand, device):
    stages = verify(former_dfer.GenerateModel(), FRAMES, rand(FRAMES_FIRST), device)
    assert names(stages) == layers("s_former.layer")
    assert {stage.num_frames for stage in stages} == {16}


def test_ial_keeps_its_tuples_and_has_15_differences(rand, device):
    stages = verify(ial.GenerateModel(), FRAMES, rand(FRAMES_FIRST), device)
    assert names(stages) == layers("s_former.layer")
    assert [(stage.channels, stage.num_frames) for stage in stages] == [
        (64, 16),
        (128, 16),
        (256, 16),
        (256, 15),
    ]


def test_clip_puts_the_sequence_first(rand, device):
    stages = verify(ClipEncoder(), FRAMES, rand(FRAMES, 3, 64, 64), device)
    assert names(stages) == [f"transformer.resblocks.{i}" for i in (1, 2, 4)]
    assert {stage.layout for stage in stages} == {Layout("(h w) (b t) c", prefix_tokens=1)}


def test_dfer_clip(rand, device):
    stages = verify(dfer_clip.GenerateModel(), FRAMES, rand(1, FRAMES, 3, 64, 64), device)
    assert names(stages) == [f"image_encoder.transformer.resblocks.{i}" for i in (1, 2, 4)]


def test_dfer_clip_loads_its_original_checkpoint():
    """The encoder is there under two names, so every key of attention is too."""
    original, model = dfer_clip.GenerateModel(), attach(dfer_clip.GenerateModel(), FRAMES)
    with pytest.warns(UserWarning, match="no weights for the attached attention"):
        model.load_state_dict(original.state_dict(), strict=True)


@pytest.mark.parametrize(("tokens", "chosen"), [("org", (0, 1, 2, 3)), ("region", (0, 1, 2))])
def test_mae_dfer_joins_its_regions(tokens, chosen, rand, device):
    model = modeling_finetune.VisionTransformer(lg_classify_token_type=tokens)
    stages = verify(model, FRAMES, rand(1, 3, FRAMES, 64, 64), device)
    assert names(stages) == [f"blocks.{i}" for i in chosen]
    assert {stage.num_frames for stage in stages} == {8}


def test_mae_dfer_regions_lie_where_they_came_from(rand, device):
    """Attention over regions equals attention over the grid that they were cut from."""
    model = modeling_finetune.VisionTransformer()
    stage = verify(model, FRAMES, rand(1, 3, FRAMES, 64, 64), device)[0]
    grid = rand(2, 8, 4, 4, 32)
    sizes = {"nt": 4, "t": 2, "nh": 2, "h": 2, "nw": 1, "w": 4}
    regions = grid.new_empty(2, 8, 17, 32)
    for n in range(8):
        t, h = 2 * (n // 2), 2 * (n % 2)
        regions[:, n, 1:] = grid[:, t : t + sizes["t"], h : h + sizes["h"]].flatten(1, 3)
    regions = regions.flatten(0, 1)
    assert torch.equal(stage.unpack(regions), grid)
    torch.testing.assert_close(stage.pack(regions, grid), regions, equal_nan=True)


def test_videomae_has_plain_tokens(rand, device):
    model = modeling_finetune.VisionTransformer(attn_type="joint")
    stages = verify(model, FRAMES, rand(1, 3, FRAMES, 64, 64), device)
    assert names(stages) == layers("blocks.", 0)
    assert {(s.layout, s.num_frames) for s in stages} == {(Layout("b (t h w) c", grid=(4, 4)), 8)}


@pytest.mark.parametrize(("pooling", "chosen"), [("token", (1, 2, 4)), ("avg", (1, 2, 4, 5))])
def test_s2d_takes_landmarks_too(pooling, chosen, rand, device):
    model = model_finetuning.VisionTransformer(global_pool=pooling)
    sample = {"x": rand(1, 3, FRAMES, 64, 64), "a": rand(FRAMES, 128, 4, 4)}
    stages = verify(model, FRAMES, sample, device)
    assert names(stages) == [f"blocks.{i}" for i in chosen]


def test_mma_dfer_has_prompts_behind_the_patches(rand, device):
    sample = {"image": rand(1, FRAMES, 3, 64, 64), "audio": rand(1, 5, 8)}
    stages = verify(mma_dfer.GenerateModel(), FRAMES, sample, device)
    assert names(stages) == [f"image_encoder.blocks.{i}" for i in (1, 2, 4)]
    assert {s.layout for s in stages} == {Layout("(b t) (h w) c", 1, mma_dfer.PROMPTS)}


@pytest.mark.parametrize("cls", [convolutional.I3D, convolutional.InceptionI3d])
def test_i3d(cls, rand, device):
    stages = verify(cls(), FRAMES, rand(1, 3, FRAMES, 64, 64), device)
    assert [(s.name, s.channels, s.num_frames) for s in stages] == [
        ("Mixed_3c", 480, 8),
        ("Mixed_4f", 832, 4),
        ("Mixed_5c", 1024, 2),
    ]


def test_c3d(rand, device):
    stages = verify(convolutional.C3D(), FRAMES, rand(1, 3, FRAMES, 64, 64), device)
    assert [(s.name, s.channels, s.num_frames) for s in stages] == [
        ("pool1", 64, 16),
        ("pool2", 128, 8),
        ("pool3", 256, 4),
        ("pool4", 512, 2),
    ]


class GenerateModel(torch.nn.Module):
    """Named as theirs, but none of them."""

    def __init__(self):
        super().__init__()
        self.body = torch.nn.Linear(3, 3)


def test_another_generate_model_is_refused():
    with pytest.raises(
        HDFError, match=r"model: name its stages by hand.* lacks .*s_former nor image_encoder"
    ):
        attach(GenerateModel(), FRAMES)


def test_two_lines_by_hand_do_the_same():
    """What the README offers where a fork has renamed its class."""
    known, renamed = former_dfer.GenerateModel(), former_dfer.ResNet()
    stages = [Stage(f"layer{i}", 32 * 2**i, "(b t) c h w") for i in range(1, 5)]
    attach(renamed, FRAMES, stages=stages)
    attach(known, FRAMES)
    assert len(dam_parameters(renamed)) == len(dam_parameters(known))
