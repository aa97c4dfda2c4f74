"""Robust contrastive loss and covariance trace against naive loops, dense and tile by tile."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from pytorch_metric_learning.losses import SupConLoss

from hdf_modules import HDFError
from hdf_modules.functional import covariance_trace, robust_contrastive_loss
from tests.support.reference import losses as reference

BLOCKS = [None, 1, 3, 4, 64]


def batch(n, dimensions=5, classes=4, *, soft=False, dtype=torch.float64):
    features = torch.randn(n, dimensions, dtype=dtype) * 3
    labels = torch.randn(n, classes, dtype=dtype).softmax(1)
    target = labels if soft else torch.randint(classes, (n,))
    return features.requires_grad_(), target


def value_and_gradient(loss, features):
    (gradient,) = torch.autograd.grad(loss, features)
    return loss.detach(), gradient


@pytest.mark.parametrize("block_size", BLOCKS)
@pytest.mark.parametrize("with_groups", [False, True])
@pytest.mark.parametrize("with_memory", [False, True])
@pytest.mark.parametrize("soft", [False, True])
@pytest.mark.parametrize("n", [2, 7, 13])
def test_value_and_gradient_equal_the_loops(n, soft, with_memory, with_groups, block_size):
    features, target = batch(n, soft=soft)
    groups = torch.randint(3, (n,)) if with_groups else None
    memory = None
    if with_memory:
        old, labels = batch(6, soft=soft)
        memory = (old.detach(), labels, *([torch.randint(3, (6,))] if with_groups else []))
    for temperature, eta in ((0.1, 0.2), (1.0, 0.2), (0.07, 0.5)):
        expected = reference.contrastive(features, target, temperature, eta, memory, groups)
        found = robust_contrastive_loss(
            features,
            target,
            temperature=temperature,
            eta=eta,
            groups=groups,
            memory=memory,
            block_size=block_size,
        )
        for one, other in zip(
            value_and_gradient(found, features), value_and_gradient(expected, features), strict=True
        ):
            torch.testing.assert_close(one, other, rtol=1e-11, atol=1e-12)


def test_soft_labels_that_are_one_hot_equal_hard_labels():
    features, target = batch(12)
    hot = torch.nn.functional.one_hot(target, 4).double()
    hard = value_and_gradient(robust_contrastive_loss(features, target), features)
    soft = value_and_gradient(robust_contrastive_loss(features, hot), features)
    torch.testing.assert_close(soft, hard)


@pytest.mark.parametrize("block_size", [None, 2])
def test_gradcheck(block_size):
    features, target = batch(6, 3)
    assert torch.autograd.gradcheck(
        lambda x: robust_contrastive_loss(x, target, temperature=0.5, block_size=block_size),
        features,
    )
    assert torch.autograd.gradcheck(covariance_trace, features)


def test_the_dense_path_can_be_differentiated_twice():
    features, target = batch(5, 3)
    old, labels = batch(2, 3)
    assert torch.autograd.gradgradcheck(
        lambda x: robust_contrastive_loss(
            x, target, temperature=0.5, memory=(old.detach(), labels)
        ),
        features,
    )


@pytest.mark.parametrize("block_size", [1, 100, 512])
def test_tiles_equal_the_dense_path_in_float32(block_size, device):
    features, target = batch(700, 32, 7, dtype=torch.float32)
    features = features.detach().to(device).requires_grad_()
    target = target.to(device)
    if block_size == 1:
        features, target = features[:40].detach().requires_grad_(), target[:40]
    dense = value_and_gradient(robust_contrastive_loss(features, target), features)
    tiles = robust_contrastive_loss(features, target, block_size=block_size)
    torch.testing.assert_close(value_and_gradient(tiles, features), dense, rtol=1e-6, atol=1e-7)


@pytest.mark.parametrize("block_size", [None, 2])
@pytest.mark.parametrize("target", [[0], [], [0, 1, 2, 3]])
def test_without_a_positive_it_is_a_zero_with_a_graph(target, block_size):
    features = torch.randn(len(target), 3, requires_grad=True)
    target = torch.tensor(target, dtype=torch.int64)
    loss = robust_contrastive_loss(features, target, block_size=block_size)
    assert loss == 0
    loss.backward()
    assert torch.equal(features.grad, torch.zeros_like(features))


def test_anchors_without_a_positive_are_left_out_of_the_mean():
    features, _ = batch(6)
    alone = torch.tensor([0, 0, 0, 1, 2, 2])
    expected = reference.contrastive(features, alone, 0.05, 0.2)
    torch.testing.assert_close(robust_contrastive_loss(features, alone), expected)
    twice = torch.tensor([[1.0, 0, 0], [1.0, 0, 0], [0, 1.0, 0], [0, 0.3, 0.7]]).double()
    expected = reference.contrastive(features[:4], twice, 0.05, 0.2)
    torch.testing.assert_close(robust_contrastive_loss(features[:4], twice), expected)


@pytest.mark.parametrize("soft", [False, True])
def test_within_one_group_nothing_is_a_positive(soft):
    features, target = batch(9, soft=soft, dtype=torch.float32)
    groups = torch.full((9,), 3)
    loss = robust_contrastive_loss(features, target, groups=groups)
    assert loss == 0
    loss.backward()
    assert torch.equal(features.grad, torch.zeros_like(features))
    groups[0] = 0
    expected = reference.contrastive(features, target, 0.05, 0.2, groups=groups)
    found = robust_contrastive_loss(features, target, groups=groups)
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-5)


def test_a_memory_gives_a_single_sample_its_positive():
    features = torch.randn(1, 3, dtype=torch.float64, requires_grad=True)
    memory = (torch.randn(2, 3, dtype=torch.float64), torch.tensor([0, 1]))
    loss = robust_contrastive_loss(features, torch.tensor([0]), memory=memory)
    expected = reference.contrastive(features, torch.tensor([0]), 0.05, 0.2, memory)
    torch.testing.assert_close(loss, expected)
    assert loss != 0


@pytest.mark.parametrize("block_size", [None, 5])
def test_with_flat_weights_it_is_the_peers_supcon(block_size):
    """As η grows, every weight becomes exp(−½): SupCon, less ½."""
    features, target = batch(23)
    expected = SupConLoss(temperature=0.05)(features, target)
    found = robust_contrastive_loss(features, target, eta=1e9, block_size=block_size)
    both = (value_and_gradient(loss, features) for loss in (found + 0.5, expected))
    torch.testing.assert_close(*both)


def test_it_has_a_gradient_at_the_papers_temperature():
    """The released weighting is dead at τ = 0.07: gradient norm below 1e-8."""
    features, target = batch(32, 64, 7)
    loss = robust_contrastive_loss(features, target, temperature=0.07)
    assert value_and_gradient(loss, features)[1].norm() > 1e-3


@pytest.mark.parametrize("block_size", [None, 2])
def test_extreme_temperatures_neither_overflow_nor_vanish(block_size):
    features = torch.tensor([[1.0, 0.0], [-1.0, 1e-3], [-1.0, 0.0]], requires_grad=True)
    for temperature, eta in ((1e-3, 0.2), (0.1, 0.01), (1e3, 1e3)):
        loss = robust_contrastive_loss(
            features,
            torch.tensor([0, 0, 1]),
            temperature=temperature,
            eta=eta,
            block_size=block_size,
        )
        value, gradient = value_and_gradient(loss, features)
        assert value.isfinite()
        assert gradient.isfinite().all()


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
def test_zero_tiny_and_huge_features_are_safe(dtype):
    big = torch.finfo(dtype).max / 4
    features = torch.tensor([[0, 0], [0, 0], [big, big], [1e-3, 0], [1, 1]], dtype=dtype)
    features = features.requires_grad_()
    loss = robust_contrastive_loss(features, torch.tensor([0, 0, 1, 1, 1]))
    loss.backward()
    assert loss.isfinite()
    assert features.grad.isfinite().all()
    assert not features.grad[:2].any(), "a vector without direction gets no gradient"
    assert features.grad[3:].any()


def test_length_of_the_features_does_not_matter():
    features, target = batch(9)
    scale = torch.logspace(-5, 12, 9, dtype=torch.float64)[:, None]
    torch.testing.assert_close(
        robust_contrastive_loss(features * scale, target), robust_contrastive_loss(features, target)
    )


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize("block_size", [None, 5])
def test_autocast_and_half_precision_compute_in_float32(dtype, block_size, device):
    features, target = batch(16, dtype=torch.float32)
    half = features.detach().to(device, dtype).requires_grad_()
    target = target.to(device)
    with torch.autocast(device.type, dtype):
        loss = robust_contrastive_loss(half, target, block_size=block_size)
        loss.backward()
    wide = half.detach().float().requires_grad_()
    expected = value_and_gradient(robust_contrastive_loss(wide, target), wide)
    assert loss.dtype == torch.float32
    torch.testing.assert_close(loss.detach(), expected[0], rtol=1e-6, atol=1e-6)
    torch.testing.assert_close(half.grad, expected[1].to(dtype), rtol=1e-2, atol=1e-3)


@pytest.mark.parametrize("n", [1, 2, 9])
def test_covariance_trace_equals_the_trace_of_the_matrix(n):
    features, _ = batch(n)
    expected = value_and_gradient(reference.covariance_trace(features), features)
    torch.testing.assert_close(value_and_gradient(covariance_trace(features), features), expected)


def test_covariance_trace_of_nothing_is_a_zero_with_a_graph():
    features = torch.empty(0, 4, requires_grad=True)
    loss = covariance_trace(features)
    loss.backward()
    assert loss == 0


@given(st.integers(0, 9), st.integers(1, 5), st.integers(1, 4), st.booleans(), st.integers(1, 11))
def test_every_size_is_finite_and_tiles_agree(n, dimensions, classes, soft, block_size):
    features, target = batch(n, dimensions, classes, soft=soft)
    dense = value_and_gradient(robust_contrastive_loss(features, target), features)
    tiles = robust_contrastive_loss(features, target, block_size=block_size)
    assert dense[0].isfinite()
    torch.testing.assert_close(value_and_gradient(tiles, features), dense)


IDS = torch.zeros(4, dtype=torch.int64)


@pytest.mark.parametrize(
    ("features", "target", "options", "message"),
    [
        (torch.zeros(4), IDS, {}, r"features: expected a floating point tensor of shape \(N, D\)"),
        (torch.zeros(4, 2, dtype=torch.int64), IDS, {}, "features: .* found shape .*int64"),
        (torch.zeros(4, 2, dtype=torch.complex64), IDS, {}, "features: .*complex64"),
        (torch.zeros(4, 2), IDS[:3], {}, "target: expected 4 labels, one for each feature"),
        (torch.zeros(4, 2), IDS.float(), {}, "target: expected integer class ids"),
        (torch.zeros(4, 2), IDS.bool(), {}, "target: expected integer class ids"),
        (torch.zeros(4, 2), IDS.reshape(4, 1), {}, "target: expected integer class ids"),
        (torch.zeros(4, 2), IDS, {"temperature": 0.0}, "temperature: expected a finite number > 0"),
        (torch.zeros(4, 2), IDS, {"eta": -0.2}, "eta: expected a finite number > 0, found -0.2"),
        (torch.zeros(4, 2), IDS, {"block_size": 0}, "block_size: expected an integer >= 1 or None"),
        (torch.zeros(4, 2), IDS, {"memory": (torch.zeros(3, 5), IDS[:3])}, "memory: expected"),
        (torch.zeros(4, 2), IDS, {"memory": (torch.zeros(3, 2), IDS)}, "target: expected 3 labels"),
        (torch.zeros(4, 2), IDS, {"groups": IDS[:3]}, "groups: expected 4 ids"),
        (torch.zeros(4, 2), IDS, {"groups": IDS.float()}, "groups: expected integer ids"),
        (
            torch.zeros(4, 2),
            IDS,
            {"groups": IDS, "memory": (torch.zeros(4, 2), IDS)},
            "memory: expected features and targets, and groups if .* found 2 tensors",
        ),
        (
            torch.zeros(4, 2),
            IDS,
            {"groups": IDS, "memory": (torch.zeros(4, 2), IDS, IDS[:3])},
            "groups: expected 4 ids",
        ),
    ],
)
def test_bad_input_is_named(features, target, options, message):
    with pytest.raises(HDFError, match=message):
        robust_contrastive_loss(features, target, **options)


def test_covariance_of_a_vector_is_refused():
    with pytest.raises(HDFError, match="features: expected"):
        covariance_trace(torch.zeros(3))
