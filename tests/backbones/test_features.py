"""with_features: logits and what the classifier reads, from one forward."""

import copy
import pickle

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
        with pytest.raises(HDFError, match="a layer that the forward calls, found 'unused'"):
            with_features(net, classifier="unused")(torch.rand(2, 4, device=device))

    def test_no_linear_layer(self, device):
        with pytest.raises(HDFError, match="a linear classification layer, found none"):
            with_features(nn.Sequential(nn.ReLU()))(torch.ones(1, device=device))

    def test_no_classifier(self):
        with pytest.raises(HDFError, match="a model with a classifier, found num_classes=0"):
            with_features(timm.create_model("resnet18", num_classes=0))

    def test_attach_afterwards(self):
        with pytest.raises(HDFError, match="wrapped by with_features; attach"):
            attach(with_features(Net()), 8, stages=[Stage("model.body", 5)])
