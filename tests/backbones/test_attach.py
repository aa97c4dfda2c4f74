"""attach and detach: the mechanism, on small models written here."""

import copy
import pickle
import re
import warnings
from functools import partial

import pytest
import torch
from torch import nn

from hdf_modules import (
    DistributionalAttention,
    HDFError,
    Stage,
    attach,
    detach,
    register_adapter,
    with_features,
)
from hdf_modules.attention import Layout
from hdf_modules.backbones import (
    check_optimizer,
    dam_parameter_groups,
    dam_parameters,
    dam_state_dict,
    list_backbones,
    load_dam,
    load_dam_state_dict,
    save_dam,
    summary,
)

FRAMES = 8
CLIP = (2, 3, FRAMES, 12, 12)


class Video(nn.Module):
    """Two stages, the second halving time, and a classifier."""

    def __init__(self):
        super().__init__()
        self.layer1 = nn.Sequential(nn.Conv3d(3, 4, 3, padding=1), nn.BatchNorm3d(4))
        self.layer2 = nn.Sequential(nn.Conv3d(4, 6, 3, stride=2, padding=1), nn.ReLU())
        self.fc = nn.Linear(6, 7)

    def forward(self, x):
        return self.fc(self.layer2(self.layer1(x)).mean((2, 3, 4)))


class Scale(nn.Module):
    """Attention that is one number."""

    def __init__(self, channels, num_frames, **layout):
        super().__init__()
        self.num_frames = num_frames
        self.scale = nn.Parameter(torch.tensor(2.0))

    def forward(self, x, **sizes):
        return x * self.scale


class Cropping(Scale):
    def forward(self, x, **sizes):
        return x[:, :1]


class Output(nn.Module):
    """Gives what ``wrap`` makes of its convolution's result."""

    def __init__(self, wrap, dims=3):
        super().__init__()
        self.conv = getattr(nn, f"Conv{dims}d")(3, 4, 1)
        self.wrap = wrap

    def forward(self, x):
        return self.wrap(self.conv(x))


class Noisy(Video):
    """Uses random numbers and counts its calls in a buffer, in evaluation too."""

    def __init__(self):
        super().__init__()
        self.register_buffer("calls", torch.zeros(()))

    def forward(self, x):
        self.calls += 1
        return super().forward(x + torch.rand_like(x))


STAGES = [Stage("layer1", 4), Stage("layer2", 6)]


@pytest.fixture
def attached(device):
    """Attaches to a model, that of two stages unless another is given, on the device."""

    def attached(model=None, stages=STAGES, **options):
        model = (Video() if model is None else model).to(device)
        return attach(model, FRAMES, stages=stages, **options)

    return attached


@pytest.fixture
def clip(device):
    return torch.rand(CLIP, device=device)


def test_changes_no_bit_at_first(attached, clip, device):
    model, x = Video().to(device).eval(), clip
    before = model(x)
    assert attached(model, example=x) is model
    assert torch.equal(model(x), before)


def test_gates_every_stage_once(attached, clip, device):
    model, x = Video().to(device).eval(), clip
    inner = 2 * model.layer2(2 * model.layer1(x))
    expected = model.fc(inner.mean((2, 3, 4)))
    torch.testing.assert_close(attached(model, factory=Scale, example=x)(x), expected)


def test_attention_is_a_child_of_the_last_module(attached, clip):
    model = attached(example=clip)
    names = [n for n, m in model.named_modules() if isinstance(m, DistributionalAttention)]
    assert names == ["layer1.1.dam", "layer2.1.dam"]


def test_frames_of_each_stage_are_read_from_the_sample(attached, clip):
    model = attached(example=clip)
    assert (model.layer1[1].dam.num_frames, model.layer2[1].dam.num_frames) == (8, 4)


def test_every_parameter_gets_a_gradient(attached, clip):
    model = attached(example=clip)
    for stage in (model.layer1, model.layer2):
        nn.init.constant_(stage[1].dam.strength, 0.1)
    model(clip).square().sum().backward()
    assert all(p.grad is not None and p.grad.abs().sum() > 0 for p in dam_parameters(model))


def test_precision_and_mode_follow_the_model(attached, clip):
    model = attached(Video().double().eval(), example=clip)
    assert {p.dtype for p in dam_parameters(model)} == {torch.float64}
    assert not model.layer1[1].dam.training


def test_device_follows_the_model(attached, clip, device):
    model = attached(example=clip)
    assert {p.device.type for p in dam_parameters(model)} == {device.type}
    model(clip)


def test_a_meta_model_is_attached_without_running_it(clip):
    with torch.device("meta"):
        model = Video()
    attach(model, FRAMES, stages=STAGES, example=clip)
    assert {p.device.type for p in dam_parameters(model)} == {"meta"}


def test_options_go_through_partial(attached):
    model = attached(factory=partial(DistributionalAttention, dct_size=3))
    assert model.layer1[1].dam.frequency.dct_size == 3


@pytest.mark.parametrize("arguments", [lambda x: (x,), lambda x: {"x": x}])
def test_examples_may_be_arguments(arguments, attached, clip):
    assert attached(example=arguments(clip)).layer2[1].dam.num_frames == 4


def test_the_probe_leaves_no_trace(attached, clip, device):
    model = Noisy().to(device)
    model.layer1.eval()
    flags = {name: m.training for name, m in model.named_modules()}
    state = copy.deepcopy(model.state_dict())
    torch.manual_seed(3)
    attached(model, factory=Scale, example=clip)
    found = torch.rand(5, device=device)
    torch.manual_seed(3)
    assert torch.equal(found, torch.rand(5, device=device))
    assert {n: m.training for n, m in model.named_modules() if n in flags} == flags
    for name, value in state.items():
        torch.testing.assert_close(model.state_dict()[name], value, rtol=0, atol=0)


def test_nothing_changes_when_a_factory_fails(attached):
    def failing(channels, *args, **kwargs):
        if channels == 6:
            raise RuntimeError("no")
        return Scale(channels, 1)

    model = Video()
    keys = list(model.state_dict())
    with pytest.raises(RuntimeError, match="no"):
        attached(model, factory=failing)
    assert list(model.state_dict()) == keys
    attached(model)


def halves(x):
    return x, "aux"


def mvit(x):
    return x.flatten(2).transpose(1, 2), x.shape[2:]


def dictionary(x):
    return {"x": x, "aux": 1}


def take(output):
    return output["x"]


def put(output, gated):
    return {**output, "x": gated}


class TestOutputs:
    """Outputs that are not just a tensor."""

    def test_tuples_keep_their_other_elements(self, attached, clip, device):
        model = nn.Sequential(Output(halves)).to(device)
        expected, aux = model(clip)
        attached(model, [Stage("0", 4)], factory=Scale, example=clip)
        gated, kept = model(clip)
        assert kept == aux
        assert torch.equal(gated, 2 * expected)

    def test_run_time_sizes_are_used(self, attached, device):
        model = nn.Sequential(Output(mvit)).to(device)
        x = torch.rand(2, 3, 8, 6, 4, device=device)
        attached(model, [Stage("0", 4, "b (t h w) c")], example=x)
        assert model[0].dam.num_frames == 8
        nn.init.constant_(model[0].dam.strength, 1.0)
        x = torch.rand(2, 3, 4, 5, 3, device=device)
        tokens, _ = model(x)
        flat = model[0].conv(x)
        reference = copy.deepcopy(model[0].dam)
        reference.layout = DistributionalAttention(4).layout
        torch.testing.assert_close(tokens, reference(flat).flatten(2).transpose(1, 2))

    def test_escape_hatch(self, attached, clip, device):
        model = nn.Sequential(Output(dictionary)).to(device)
        expected = model(clip)["x"]
        attached(model, [Stage("0", 4, unpack=take, pack=put)], factory=Scale, example=clip)
        assert torch.equal(model(clip)["x"], 2 * expected)
        assert model(clip)["aux"] == 1

    def test_anything_else_is_an_error(self, attached, clip):
        model = nn.Sequential(Output(dictionary))
        with pytest.raises(
            HDFError, match=r"stage '0': name another .*expected a module that returns a tensor"
        ):
            attached(model, [Stage("0", 4)], example=clip)


class TestFolded:
    """Models of images, with a clip's frames in the batch."""

    STAGES = (Stage("0", 4, "(b t) c h w"),)

    def model(self):
        return nn.Sequential(nn.Conv2d(3, 4, 3))

    def test_one_frame_serves_as_example(self, attached, device):
        model = attached(self.model(), self.STAGES, example=torch.rand(1, 3, 9, 9, device=device))
        assert model(torch.rand(2 * FRAMES, 3, 9, 9, device=device)).shape == (16, 4, 7, 7)

    def test_a_broken_clip_names_the_stage(self, attached, device):
        model = attached(self.model(), self.STAGES)
        with pytest.raises(HDFError, match=r"stage '0'.*multiple of num_frames=8.*found 12"):
            model(torch.rand(12, 3, 9, 9, device=device))

    def test_another_clip_length_at_a_stage(self, attached, device):
        stages = [Stage("0", 4, "(b t) c h w", num_frames=5)]
        model = attached(self.model(), stages)
        assert model(torch.rand(15, 3, 9, 9, device=device)).shape == (15, 4, 7, 7)


class Twice(Video):
    def forward(self, x):
        return super().forward(self.layer1(x)[:, :3])


class Unused(Video):
    def forward(self, x):
        return self.layer1(x)


class Looping(nn.ModuleDict):
    def forward(self, x):
        for child in self.values():
            x = child(x)
        return x


class TestRefusals:
    """Each mistake is named, and leaves the model as it was."""

    @pytest.fixture
    def refuses(self, attached):
        def refuses(model, match, stages=STAGES, **options):
            before = list(model.state_dict())
            with pytest.raises(HDFError, match=match):
                attached(model, stages, **options)
            assert list(model.state_dict()) == before
            assert not any(m._forward_hooks for m in model.modules())

        return refuses

    def test_attached_already(self, attached):
        with pytest.raises(HDFError, match=r"detach.* without attention, found one at 'layer1\.1'"):
            attached(attached())

    def test_compiled(self, refuses):
        refuses(torch.compile(Video()), "attach .* first.* wrapped by torch.compile")
        model = Video()
        model.compile()
        refuses(model, r"wrapped by Module\.compile")

    def test_data_parallel(self, refuses):
        refuses(nn.DataParallel(Video()), "wrapped by DataParallel")

    @pytest.mark.filterwarnings("ignore:.*torch.jit.script.*")
    def test_scripted(self):
        scripted = torch.jit.script(nn.Sequential(nn.ReLU()))
        with pytest.raises(HDFError, match=r"wrapped by torch\.jit"):
            attach(scripted, 8, stages=[Stage("0", 3)])

    def test_no_module(self):
        with pytest.raises(HDFError, match=r"model: expected an nn\.Module, found str"):
            attach("resnet18", 8)

    def test_unknown_backbone(self):
        with pytest.raises(
            HDFError, match=r"model: name its stages by hand.* known backbone .*Linear; "
        ):
            attach(nn.Linear(3, 3), 8)

    @pytest.mark.parametrize("num_frames", [0, 2.5, None])
    def test_num_frames(self, num_frames):
        with pytest.raises(HDFError, match="num_frames: expected an integer >= 1"):
            attach(Video(), num_frames, stages=STAGES)

    def test_unknown_stage(self, refuses):
        hint = "did you mean 'layer"
        refuses(Video(), hint, [Stage("layer3", 4)])

    @pytest.mark.parametrize("stages", ["layer1", ["layer1"], [("layer1", 4)]])
    def test_not_a_stage(self, stages, refuses):
        refuses(Video(), "a name alone .*Stage.name, channels, layout., found .*layer1", stages)

    def test_no_stage(self, refuses):
        refuses(Video(), "one or more Stage.*found none", [])

    def test_same_stage_twice(self, refuses):
        refuses(Video(), "each module once", [STAGES[0], STAGES[0]])
        same = [Stage("layer1", 4), Stage("layer1.1", 4)]
        refuses(Video(), "each module once, found .*'layer1.1'", same)

    def test_called_twice(self, refuses, clip):
        refuses(Twice(), "'layer1': name a .*expected .* calls once, found 2 calls", example=clip)

    def test_never_called(self, refuses, clip):
        refuses(Unused(), "'layer2': name a .*expected .* calls once, found 0 calls", example=clip)

    def test_channels(self, refuses, clip):
        wrong = [Stage("layer1", 5)]
        match = (
            "channels of stage 'layer1': write channels=4; expected 4, as the module gives, found 5"
        )
        refuses(Video(), match, wrong, example=clip)

    def test_rank(self, refuses, clip):
        wrong = [Stage("layer1", 4, "(b t) c h w")]
        refuses(Video(), "x at stage 'layer1': expected 4 dimensions", wrong, example=clip)

    def test_frames(self, refuses, clip):
        wrong = [Stage("layer2", 6, num_frames=8)]
        match = (
            "num_frames of stage 'layer2': write num_frames=4; "
            "expected 4, as the module gives, found 8"
        )
        refuses(Video(), match, wrong, example=clip)

    def test_example_that_does_not_fit(self, refuses, device):
        match = "example: give one .*expected a sample that the model accepts, found RuntimeError: "
        refuses(Video(), match, example=torch.rand(1, 1, 8, 9, 9, device=device))

    def test_containers_that_loop_over_their_children(self, refuses):
        model = nn.Sequential(Looping({"a": nn.Conv3d(3, 4, 1)}))
        match = "do not loop over their children, found '0', a Looping"
        refuses(model, match, [Stage("0", 4)])

    def test_a_child_called_dam(self, refuses):
        model = Video()
        model.layer1[1].dam = nn.Identity()
        refuses(model, "modules without an attribute 'dam'")

    def test_a_factory_of_something_else(self, refuses):
        match = r"factory: expected a function that makes an nn\.Module, found int"
        refuses(Video(), match, factory=lambda *_, **__: 3)

    def test_attention_that_changes_the_shape(self, attached, clip):
        model = attached(factory=Cropping)
        with pytest.raises(HDFError, match=r"factory, at stage 'layer1': expected .* keeps the sh"):
            model(clip)


class TestFirstForward:
    """Where no sample is known, the first forward is checked, once."""

    @pytest.mark.parametrize(("model", "calls"), [(Twice, "'layer1'.*2"), (Unused, "r2'.*0")])
    def test_calls(self, model, calls, attached, clip):
        model = attached(model())
        for _ in range(2):  # an error that somebody caught does not make it right
            with pytest.raises(HDFError, match=f"{calls} calls"):
                model(clip)

    def test_goes_away(self, attached, clip):
        model = attached()
        model(clip)
        assert not model._forward_hooks
        assert not model._forward_pre_hooks

    def test_waits_for_a_forward_that_succeeds(self, attached, clip, device):
        model = attached(Twice())
        with pytest.raises(RuntimeError):
            model(torch.rand(1, 1, 1, 1, 1, device=device))
        with pytest.raises(HDFError, match="2 calls"):
            model(clip)

    @pytest.mark.parametrize("copied", [copy.deepcopy, lambda m: pickle.loads(pickle.dumps(m))])
    def test_is_copied_with_the_model(self, copied, attached, clip):
        model = copied(attached(Twice()))
        with pytest.raises(HDFError, match="2 calls"):
            model(clip)


class TestDetach:
    def test_of_a_model_with_features(self, attached, clip):
        model = with_features(attached(Video().eval()))
        assert detach(model) is model
        assert not any(".dam." in name for name, _ in model.named_parameters())

    def test_restores_keys_outputs_and_attributes(self, attached, clip, device):
        model, x = Video().to(device).eval(), clip
        keys, before = list(model.state_dict()), model(x)
        attributes = {name: sorted(vars(m)) for name, m in model.named_modules()}
        assert detach(attached(model, factory=Scale)) is model
        assert list(model.state_dict()) == keys
        assert torch.equal(model(x), before)
        assert {name: sorted(vars(m)) for name, m in model.named_modules()} == attributes
        assert not any(m._forward_hooks or m._load_state_dict_pre_hooks for m in model.modules())

    @pytest.mark.parametrize("copied", [copy.deepcopy, lambda m: pickle.loads(pickle.dumps(m))])
    def test_works_on_copies(self, copied, attached, clip):
        model, x = attached(Video().eval(), factory=Scale), clip
        after = model(x)
        twin = copied(model)
        assert torch.equal(twin(x), after)
        detach(twin)
        assert not torch.equal(twin(x), after)
        assert torch.equal(model(x), after)

    def test_again(self, attached):
        attached(detach(attached()))

    def test_nothing_to_detach(self):
        with pytest.raises(HDFError, match="a model with attached attention, found none"):
            detach(Video())


class TestCheckpoints:
    def test_original_checkpoint_loads_strictly_and_says_so(self, attached, device):
        original = Video().to(device)
        checkpoint = original.state_dict()
        keys = list(checkpoint)
        model = attached()
        before = copy.deepcopy(dam_state_dict(model))
        with pytest.warns(UserWarning, match="no weights for the attached attention"):
            model.load_state_dict(checkpoint, strict=True)
        assert list(checkpoint) == keys
        assert torch.equal(model.fc.weight, original.fc.weight)
        assert all(torch.equal(v, before[k]) for k, v in dam_state_dict(model).items())

    def test_own_checkpoint_loads_silently(self, attached):
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            attached().load_state_dict(attached().state_dict())

    def test_damaged_checkpoint_fails(self, attached):
        state = attached().state_dict()
        del state["layer1.1.dam.strength"]
        with pytest.raises(RuntimeError, match=r"layer1\.1\.dam\.strength"):
            attached().load_state_dict(state)

    def test_inside_a_larger_model(self, attached):
        outer = nn.Sequential(attached())
        with pytest.warns(UserWarning, match="no weights"):
            outer.load_state_dict(nn.Sequential(Video()).state_dict())

    def test_attention_alone(self, attached):
        model, other = attached(), attached()
        nn.init.constant_(model.layer1[1].dam.strength, 0.5)
        state = dam_state_dict(model)
        assert state.keys() == model.state_dict().keys() - Video().state_dict().keys()
        load_dam_state_dict(other, state)
        assert other.layer1[1].dam.strength == 0.5

    def test_attention_alone_with_wrong_keys(self, attached, device):
        state = dam_state_dict(attached())
        del state["layer1.1.dam.strength"]
        state["x"] = torch.ones((), device=device)
        match = "state: attach to .*" + re.escape(
            "1 missing (layer1.1.dam.strength), 1 unknown (x)"
        )
        with pytest.raises(HDFError, match=match):
            load_dam_state_dict(attached(), state)

    @pytest.mark.parametrize("function", [dam_parameters, dam_state_dict])
    def test_of_a_model_without_attention(self, function):
        with pytest.raises(HDFError, match=r"model: call attach first; expected .*, found none"):
            function(Video())


def test_optimizer_built_too_early(attached, device):
    model = Video().to(device)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    attached(model)
    with pytest.raises(
        HDFError, match=r"optimizer: build it after attach, .* of them missing, 'layer1\.1\.dam"
    ):
        check_optimizer(optimizer, model)
    check_optimizer(torch.optim.SGD(model.parameters(), lr=0.1), model)


def test_optimizer_of_frozen_attention(attached, device):
    """As after a loop that freezes all but the names it knows."""
    model = attached(Video().to(device))
    for name, p in model.named_parameters():
        p.requires_grad_("strength" not in name)
    with pytest.raises(
        HDFError, match=r"optimizer: thaw .*\d of them frozen, 'layer1\.1\.dam\.strength' first"
    ):
        check_optimizer(torch.optim.SGD(model.parameters(), lr=0.1), model)


class TestParameterGroups:
    def rates(self, model, groups):
        optimizer = torch.optim.SGD(groups, lr=0.1)
        check_optimizer(optimizer, model)
        names = {id(p): name for name, p in model.named_parameters()}
        return {names[id(p)]: g["lr"] for g in optimizer.param_groups for p in g["params"]}

    @pytest.mark.parametrize("layer_decay", [False, True])
    def test_attention_has_its_own(self, layer_decay, attached, device):
        model = attached(Video().to(device))
        given = model.parameters()
        if layer_decay:
            given = [{"params": [p], "lr": 1e-9, "name": n} for n, p in model.named_parameters()]
        found = self.rates(model, dam_parameter_groups(given, model, lr=3.0))
        assert found.keys() == dict(model.named_parameters()).keys()
        assert {name for name, rate in found.items() if rate == 3} == set(dam_state_dict(model))

    def test_policies_by_leaf_modules(self, attached, device):
        """TSN's and TSM's: leaves of a kind that they do not know are errors to them."""
        model = attached(Video().to(device))
        known = (nn.Linear, nn.Conv3d, nn.BatchNorm3d)
        layers = [m for m in model.modules() if isinstance(m, known)]
        others = [m for m in model.modules() if not isinstance(m, known) and not len(m._modules)]
        assert not [p for m in others for p in m.parameters()]
        policies = [{"params": [p for m in layers for p in m.parameters(recurse=False)]}]
        found = self.rates(model, dam_parameter_groups(policies, model, lr=3.0))
        assert found.keys() == dict(model.named_parameters()).keys()


def test_attention_alone_in_a_file(attached, tmp_path, device):
    model, path = attached(Video().to(device)), tmp_path / "attention.safetensors"
    save_dam(model, path)
    assert [p.name for p in tmp_path.iterdir()] == [path.name]
    other = attached(Video().to(device))
    load_dam(other, path)
    pairs = zip(dam_parameters(model), dam_parameters(other), strict=True)
    assert all(torch.equal(a, b) for a, b in pairs)
    with pytest.raises(HDFError, match="unknown"):
        load_dam(attach(Video().to(device), 8, stages=[Stage("layer1", 4)]), path)


def test_summary_has_the_sizes_seen(clip, device):
    model = attach(Video().to(device), 8, stages=[Stage("layer1", 4)], example=clip)
    sizes = Video().to(device).layer1(clip).shape[2:]
    assert f"  {'×'.join(map(str, sizes))}  " in summary(model)


class TestStage:
    def test_where_there_is_no_picture(self, device):
        net = nn.Sequential(nn.LSTM(4, 6)).to(device)
        clips = torch.rand(8, 2, 4, device=device)
        with pytest.raises(
            HDFError, match=r"view what .* with h = w = 1, in a Stage by unpack and pack"
        ):
            attach(net, 8, stages=[Stage("0", 6)], example=clips)
        with pytest.raises(
            HDFError, match=r"layout: view what .* by unpack and pack; .*found 'b t c'"
        ):
            Stage("0", 6, "b t c")

    @pytest.mark.parametrize(
        ("arguments", "match"),
        [
            (("", 4), r"Stage\.name"),
            (("a", 0), r"Stage\.channels of 'a': expected an integer >= 1, found 0"),
            (("a", 4.0), r"Stage\.channels"),
            (("a", 4, "b c t h w", 0), r"Stage\.num_frames of 'a'"),
            (("a", 4, "b c t h"), "layout"),
            (("a", 4, ("b c t h w", 1)), "layout"),
        ],
    )
    def test_bad_values(self, arguments, match):
        with pytest.raises(HDFError, match=match):
            Stage(*arguments)

    @pytest.mark.parametrize("keyword", ["prefix_tokens", "suffix_tokens", "grid"])
    def test_keywords_of_the_first_release_are_told_their_new_spelling(self, keyword):
        with pytest.raises(
            HDFError, match=rf"{keyword}: expected layout=Layout\(pattern, {keyword}="
        ):
            Stage("a", 4, "(b t) (h w) c", **{keyword: 1})

    def test_a_pattern_is_kept_as_a_layout(self):
        stage = Stage("a", 4, "(b t) c h w")
        assert stage == Stage("a", 4, Layout("(b t) c h w"))
        assert stage.layout == Layout("(b t) c h w")

    def test_half_an_escape_hatch(self):
        with pytest.raises(HDFError, match="both or neither"):
            Stage("a", 4, unpack=take)

    def test_functions_that_cannot_be_pickled(self):
        with pytest.raises(HDFError, match="defined at module level"):
            Stage("a", 4, unpack=lambda output: output, pack=put)


class Registered(Video):
    pass


class Derived(Registered):
    pass


@register_adapter(
    "*test_attach.Registered",
    example=lambda model, frames: model.fc.weight.new_ones(1, 3, frames, 9, 9),
)
def registered(model, num_frames, example):
    return STAGES


class TestRegistry:
    @pytest.mark.parametrize("cls", [Registered, Derived])
    def test_found_along_the_class_hierarchy(self, cls, device):
        assert attach(cls().to(device), 8).layer2[1].dam.num_frames == 4

    def test_twice(self):
        with pytest.raises(HDFError, match=r"not registered, found '\*test_attach\.Registered'"):
            register_adapter("*test_attach.Registered")(registered)


def test_a_summary_tells_places_sizes_strengths_and_what_is_trained(device):
    stages = [Stage("layer1", 4), Stage("layer2", 6)]
    model = attach(Video().to(device), FRAMES, stages=stages)
    first, second = model.layer1[-1].dam, model.layer2[-1].dam
    first.strength.data.fill_(0.25)
    first.requires_grad_(False)
    second.strength.requires_grad_(False)
    count = sum(p.numel() for p in first.parameters())
    lines = summary(model).splitlines()
    assert lines[1].split() == [
        *["layer1", "b", "c", "t", "h", "w", "4", "-"],
        str(count),
        "0.250",
        "no",
    ]
    assert lines[2].endswith("0.000     in part")
    assert str(sum(p.numel() for p in Video().parameters())) in lines[-1]
    with pytest.raises(HDFError, match="call attach first"):
        summary(Video())


def test_an_unknown_model_is_told_of_its_nearest_namesake():
    class VideoResNets(nn.Module):
        pass

    with pytest.raises(HDFError, match=r"nearest: .*VideoResNet"):
        attach(VideoResNets(), FRAMES)
    assert list_backbones("*VIDEORESNET") == ["torchvision.models.video.*.VideoResNet"]
    assert not list_backbones("nothing")
