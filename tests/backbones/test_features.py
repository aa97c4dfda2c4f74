"""with_features: logits and what the classifier reads, from one forward."""

import copy
import pickle
from concurrent.futures import ThreadPoolExecutor

import pytest
import timm
import torch
import torchvision
from torch import nn

from hdf_modules import HDFError, Stage, attach, with_features


class Net(nn.Module):
    """The classifier is registered before the layer that feeds it."""

    def __init__(self):
        super().__init__()
        self.fc = nn.Linear(5, 7)
        self.body = nn.Sequential(nn.Linear(4, 5), nn.BatchNorm1d(5), nn.Dropout(0.5))

    def forward(self, x, scale=1.0):
        return self.fc(self.body(x) * scale)


def same(first, second):
    return all(torch.equal(a, b) for a, b in zip(first, second, strict=True))


def test_features_are_what_the_classifier_reads(device):
    net, x = Net().to(device).eval(), torch.rand(3, 4, device=device)
    logits, features = with_features(net)(x, scale=2.0)
    assert torch.equal(features, net.body(x) * 2)
    assert torch.equal(logits, net.fc(features))


def test_one_forward_and_one_graph(device):
    """Batch statistics advance once, also while the classifier is looked for."""
    net = Net().to(device)
    wrapped = with_features(net)
    for step in range(1, 3):
        _, features = wrapped(torch.rand(6, 4, device=device))
        assert net.body[1].num_batches_tracked == step
    features.sum().backward()
    assert net.body[0].weight.grad is not None
    assert net.fc.weight.grad is None


def test_state_dict_is_the_models_own(device):
    net = Net().to(device)
    wrapped = with_features(net)
    assert list(wrapped.state_dict()) == list(net.state_dict())
    assert wrapped.state_dict()._metadata.keys() >= net.state_dict()._metadata.keys()
    other = Net().to(device)
    other.load_state_dict(wrapped.state_dict())
    wrapped.load_state_dict(Net().state_dict())
    assert not torch.equal(other.fc.weight, net.fc.weight)
    outer = nn.Sequential(wrapped)
    assert list(outer.state_dict()) == [f"0.{key}" for key in net.state_dict()]
    outer.load_state_dict(outer.state_dict())


def test_a_model_with_a_child_called_model(device):
    inner = nn.Sequential()
    inner.model = nn.Linear(3, 2, device=device)
    inner.weight = nn.Parameter(torch.ones(1, device=device))
    wrapped = with_features(inner)
    assert set(wrapped.state_dict()) == {"weight", "model.weight", "model.bias"}
    wrapped.load_state_dict(wrapped.state_dict())


@pytest.mark.parametrize("copied", [copy.deepcopy, lambda m: pickle.loads(pickle.dumps(m))])
@pytest.mark.parametrize("warm", [False, True])
def test_copies_are_independent(copied, warm, device):
    wrapped, x = with_features(Net().to(device).eval()), torch.rand(3, 4, device=device)
    if warm:
        wrapped(x)
    twin = copied(wrapped)
    assert same(twin(x), wrapped(x))
    nn.init.zeros_(twin.model.body[0].weight)
    assert not same(twin(x), wrapped(x))
    assert list(twin.state_dict()) == list(wrapped.state_dict())


def test_compiles_to_one_graph(device):
    wrapped, x = with_features(Net().to(device).eval()), torch.rand(3, 4, device=device)
    expected = wrapped(x)
    compiled = torch.compile(wrapped, fullgraph=True, backend="aot_eager")
    torch.testing.assert_close(compiled(x), expected)
    torch.testing.assert_close(compiled(x), expected)


@pytest.mark.parametrize(
    ("name", "channels"),
    [("resnet18", 512), ("vit_tiny_patch16_224", 192), ("mobilenetv3_small_050", 1024)],
)
def test_timm(name, channels, device):
    model = timm.create_model(name, num_classes=7).to(device).eval()
    x = torch.rand(2, 3, 224, 224, device=device)
    with torch.no_grad():
        expected = model.forward_head(model.forward_features(x), pre_logits=True)
        logits, features = with_features(model)(x)
    assert features.shape == (2, channels)
    torch.testing.assert_close(features, expected.flatten(1))
    torch.testing.assert_close(logits, model(x))


def test_timm_with_a_convolution_as_classifier(device):
    model = timm.create_model("dla46_c", num_classes=7).to(device).eval()
    logits, features = with_features(model)(torch.rand(2, 3, 64, 64, device=device))
    expected = nn.functional.conv2d(features[:, :, None, None], model.fc.weight, model.fc.bias)
    torch.testing.assert_close(logits, expected.flatten(1))


def test_torchvision_video(device):
    model = torchvision.models.video.r3d_18(num_classes=7).to(device).eval()
    logits, features = with_features(attach(model, 8))(torch.rand(1, 3, 8, 32, 32, device=device))
    assert features.shape == (1, 512)
    torch.testing.assert_close(logits, model.fc(features))


class Dense(nn.Sequential):
    """A classifier at every position, averaged later."""

    def forward(self, x):
        return super().forward(x).mean((1, 2, 3))


def test_a_classifier_at_many_positions(device):
    model = with_features(Dense(nn.Linear(4, 7)).to(device))
    _, features = model(torch.ones(2, 3, 5, 6, 4, device=device))
    assert torch.equal(features, torch.ones(2, 4, device=device))


def test_the_classifier_by_name(device):
    net, x = Net().to(device).eval(), torch.rand(3, 4, device=device)
    _, features = with_features(net, classifier="body.0")(x)
    assert torch.equal(features, x)


class TestErrors:
    def test_unknown_name(self):
        with pytest.raises(HDFError, match=r"classifier: expected a name from .* found 'head'"):
            with_features(Net(), classifier="head")

    def test_layer_that_is_not_called(self, device):
        net = Net().to(device)
        net.unused = nn.Linear(1, 1)
        with pytest.raises(HDFError, match="calls once, with tensors, found 'unused' with 0 calls"):
            with_features(net, classifier="unused")(torch.rand(2, 4, device=device))

    def test_no_linear_layer(self, device):
        with pytest.raises(
            HDFError, match=r"model: name the .*made by one layer with weights, found none"
        ):
            with_features(nn.Sequential(nn.ReLU()))(torch.ones(1, device=device))

    def test_no_classifier(self):
        with pytest.raises(HDFError, match="a model with a classifier, found num_classes=0"):
            with_features(timm.create_model("resnet18", num_classes=0))

    def test_attach_afterwards(self):
        with pytest.raises(HDFError, match=r"model: attach .*wrapped by with_features"):
            attach(with_features(Net()), 8, stages=[Stage("model.body", 5)])


class Folded(nn.Module):
    """A frame network whose clips' logits are the mean over frames, in an order of choice."""

    def __init__(self, order):
        super().__init__()
        self.order, self.body, self.fc = order, nn.Linear(4, 5), nn.Linear(5, 7)

    def forward(self, clips):
        b, t, _ = clips.shape
        frames = clips if self.order == "b t" else clips.transpose(0, 1)
        each = self.fc(self.body(frames.flatten(0, 1)))
        return (
            each.unflatten(0, (b, t)).mean(1)
            if self.order == "b t"
            else each.view(t, b, -1).mean(0)
        )


class SequenceFirst(nn.Module):
    def __init__(self):
        super().__init__()
        self.lstm, self.fc = nn.LSTM(4, 5), nn.Linear(5, 7)

    def forward(self, clips):
        return self.fc(self.lstm(clips.transpose(0, 1))[0]).mean(0)


class TestRows:
    """Rows of features are rows of the logits, wherever the classifier keeps them."""

    @pytest.mark.parametrize("order", ["b t", "t b"])
    @pytest.mark.parametrize("frames", [1, 2, 3, 6])
    def test_frames_in_the_batch(self, order, frames, device):
        net = Folded(order).to(device)
        clips = torch.rand(3, frames, 4, device=device)
        _, features = with_features(net)(clips)
        torch.testing.assert_close(features, net.body(clips).mean(1))

    @pytest.mark.parametrize("frames", [2, 3, 6])
    def test_sequence_first(self, frames, device):
        net = SequenceFirst().to(device)
        clips = torch.rand(3, frames, 4, device=device)
        logits, features = with_features(net)(clips)
        torch.testing.assert_close(features, net.lstm(clips.transpose(0, 1))[0].mean(0))
        torch.testing.assert_close(logits, net.fc(features))

    def test_found_again_after_a_first_batch_of_one(self, device):
        net, clips = SequenceFirst().to(device), torch.rand(3, 4, 4, device=device)
        wrapped = with_features(net)
        first = wrapped(clips[:1])[1]
        torch.testing.assert_close(wrapped(clips)[1][:1], first)

    def test_a_clip_without_a_batch(self, device):
        net = nn.Sequential(nn.Linear(4, 5), nn.ReLU(), nn.Linear(5, 7)).to(device)
        logits, features = with_features(net)(torch.rand(4, device=device))
        assert logits.shape == (7,)
        assert features.shape == (5,)

    def test_one_logit_a_row(self, device):
        class Squeezed(Net):
            def forward(self, x):
                return super().forward(x)[:, 0]

        _, features = with_features(Squeezed().eval().to(device))(torch.rand(3, 4, device=device))
        assert features.shape == (3, 5)

    def test_rows_that_are_not_the_logits(self, device):
        """As where texts of the classes go through the layer that runs last."""

        class Texts(Net):
            def forward(self, x):
                return self.body(x) @ self.fc(torch.ones(6, 5, device=x.device))[:, :5].T

        with pytest.raises(
            HDFError, match=r"model: name the .*expected logits made by one layer .*'fc'"
        ):
            with_features(Texts().to(device))(torch.rand(3, 4, device=device))
        named = with_features(Texts().to(device), "body")
        assert named(torch.rand(3, 4, device=device))[1].shape == (3, 5)
        with pytest.raises(HDFError, match="3 rows of features, each read by its own row"):
            with_features(Texts().to(device), "fc")(torch.rand(3, 4, device=device))

    def test_a_classifier_whose_weights_are_zero(self, device):
        net, x = SequenceFirst().to(device), torch.rand(3, 6, 4, device=device)
        nn.init.zeros_(net.fc.weight)
        assert with_features(net)(x)[1].shape == (3, 5)


def test_a_model_that_is_its_classifier(device):
    x = torch.rand(2, 3, device=device)
    assert torch.equal(with_features(nn.Linear(3, 7).to(device))(x)[1], x)


class TestNamed:
    def test_the_output_of_a_module(self, device):
        net, x = Net().eval().to(device), torch.rand(3, 4, device=device)
        _, features = with_features(net, "body")(x)
        assert torch.equal(features, net.body(x))

    def test_fc_norm(self, device):
        model = timm.create_model("vit_tiny_patch16_224", num_classes=7, global_pool="avg")
        model, x = model.to(device).eval(), torch.rand(2, 3, 224, 224, device=device)
        logits, features = with_features(model, "fc_norm")(x)
        torch.testing.assert_close(logits, model.head(features))

    def test_logits_are_not_features(self, device):
        with pytest.raises(
            HDFError, match=r"take what it reads by .*='fc'.* found 'fc', which gives them"
        ):
            with_features(Net().to(device), "fc")(torch.rand(3, 4, device=device))

    def test_both(self):
        with pytest.raises(
            HDFError, match=r"features, classifier: leave one .*expected one of them"
        ):
            with_features(Net(), "body", classifier="fc")

    def test_blocks_whose_axes_are_not_known(self, device):
        model = timm.create_model("vit_tiny_patch16_224", num_classes=7).to(device)
        with pytest.raises(HDFError, match=r"channels are known: .*, found 'blocks\.3'"):
            with_features(model, "blocks.3")(torch.rand(2, 3, 224, 224, device=device))


class Cosine(nn.Module):
    """A classifier of one's own."""

    def __init__(self):
        super().__init__()
        self.weight = nn.Parameter(torch.randn(7, 8))

    def forward(self, x):
        return nn.functional.normalize(x) @ nn.functional.normalize(self.weight).T


@pytest.mark.parametrize("head", ["convolution", "container", "cosine"])
def test_heads(head, device):
    pool = nn.AdaptiveAvgPool3d(1)
    heads = {
        "convolution": [nn.Dropout(), nn.Conv3d(8, 7, 1), nn.ReLU(), pool, nn.Flatten()],
        "container": [pool, nn.Flatten(), nn.Sequential(nn.Dropout(), nn.Linear(8, 7))],
        "cosine": [pool, nn.Flatten(), Cosine()],
    }
    net = nn.Sequential(nn.Conv3d(3, 8, 3), nn.Sequential(*heads[head])).eval().to(device)
    x = torch.rand(2, 3, 4, 6, 6, device=device)
    torch.testing.assert_close(with_features(net)(x)[1], net[0](x).mean((2, 3, 4)))


class TestTheCallCarriesThem:
    def test_threads(self, device):
        net = Net().eval().to(device)
        wrapped = with_features(net)
        wrapped(torch.rand(2, 4, device=device))

        def right(seed):
            x = torch.full((2, 4), float(seed), device=device)
            return all(torch.equal(wrapped(x)[1], net.body(x)) for _ in range(50))

        with ThreadPoolExecutor(8) as pool:
            assert all(pool.map(right, range(16)))

    def test_nothing_stays_on_the_model(self, device):
        wrapped = with_features(Net().to(device))
        wrapped(torch.rand(3, 4, device=device))
        wrapped.model(torch.rand(3, 4, device=device))
        held = [v for m in wrapped.modules() for v in vars(m).values() if torch.is_tensor(v)]
        assert not held

    def test_a_replaced_classifier(self, device):
        net, x = Net().eval().to(device), torch.rand(3, 4, device=device)
        wrapped = with_features(net)
        wrapped(x)
        net.fc = nn.Linear(5, 2, device=device)
        logits, features = wrapped(x)
        torch.testing.assert_close(logits, net.fc(features))

    def test_reset_classifier(self, device):
        model = timm.create_model("resnet18", num_classes=7).eval().to(device)
        wrapped, x = with_features(model), torch.rand(2, 3, 32, 32, device=device)
        wrapped(x)
        model.reset_classifier(3)
        model.to(device)
        logits, features = wrapped(x)
        torch.testing.assert_close(logits, model.fc(features))
        model.reset_classifier(0)
        with pytest.raises(HDFError, match="num_classes=0"):
            wrapped(x)

    def test_inference_mode(self, device):
        wrapped = with_features(Net().eval().to(device))
        with torch.inference_mode():
            logits, features = wrapped(torch.rand(2, 4, device=device))
            torch.testing.assert_close(logits, wrapped.model.fc(features))
