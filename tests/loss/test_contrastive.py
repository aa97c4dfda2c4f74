"""Robust contrastive loss and covariance trace against naive loops, dense and tile by tile."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from hdf_modules import HDFError
from hdf_modules.functional import covariance_trace, robust_contrastive_loss
from hdf_modules.loss import contrastive
from tests.support.reference import losses as reference

BLOCKS = [None, 1, 3, 4, 64]


@pytest.fixture(scope="module")
def batch(device):
    def batch(n, dimensions=5, classes=4, *, soft=False, dtype=torch.float64):
        features = torch.randn(n, dimensions, dtype=dtype, device=device) * 3
        labels = torch.randn(n, classes, dtype=dtype, device=device).softmax(1)
        target = labels if soft else torch.randint(classes, (n,), device=device)
        return features.requires_grad_(), target

    return batch


def value_and_gradient(loss, features):
    (gradient,) = torch.autograd.grad(loss, features)
    return loss.detach(), gradient


@pytest.mark.parametrize("block_size", BLOCKS)
@pytest.mark.parametrize("with_groups", [False, True])
@pytest.mark.parametrize("with_memory", [False, True])
@pytest.mark.parametrize("soft", [False, True])
@pytest.mark.parametrize("weight_gradient", [False, True])
@pytest.mark.parametrize("n", [2, 7, 13])
def test_value_and_gradient_equal_the_loops(
    n, weight_gradient, soft, with_memory, with_groups, block_size, device, batch
):
    features, target = batch(n, soft=soft)
    groups = torch.randint(3, (n,), device=device) if with_groups else None
    memory = None
    if with_memory:
        old, labels = batch(6, soft=soft)
        sources = [torch.randint(3, (6,), device=device)] if with_groups else []
        memory = (old.detach(), labels, *sources)
    for temperature, eta in ((0.1, 0.2), (1.0, 0.2), (0.07, 0.5)):
        expected = reference.contrastive(
            features, target, temperature, eta, memory, groups, weight_gradient
        )
        found = robust_contrastive_loss(
            features,
            target,
            temperature=temperature,
            eta=eta,
            groups=groups,
            memory=memory,
            block_size=block_size,
            weight_gradient=weight_gradient,
        )
        for one, other in zip(
            value_and_gradient(found, features), value_and_gradient(expected, features), strict=True
        ):
            torch.testing.assert_close(one, other, rtol=1e-11, atol=1e-12)


def test_soft_labels_that_are_one_hot_equal_hard_labels(batch):
    features, target = batch(12)
    hot = torch.nn.functional.one_hot(target, 4).double()
    hard = value_and_gradient(robust_contrastive_loss(features, target), features)
    soft = value_and_gradient(robust_contrastive_loss(features, hot), features)
    torch.testing.assert_close(soft, hard)


@pytest.mark.parametrize("block_size", [None, 2])
def test_gradcheck(block_size, batch):
    features, target = batch(6, 3)
    options = {"temperature": 0.5, "block_size": block_size, "weight_gradient": True}
    assert torch.autograd.gradcheck(
        lambda x: robust_contrastive_loss(x, target, **options), features
    )
    assert torch.autograd.gradcheck(covariance_trace, features)


def test_the_dense_path_can_be_differentiated_twice(batch):
    features, target = batch(5, 3)
    old, labels = batch(2, 3)
    options = {"temperature": 0.5, "memory": (old.detach(), labels), "weight_gradient": True}
    assert torch.autograd.gradgradcheck(
        lambda x: robust_contrastive_loss(x, target, **options), features
    )


@pytest.mark.parametrize("weight_gradient", [False, True])
@pytest.mark.parametrize("block_size", [None, 2])
def test_function_transforms(block_size, weight_gradient, batch):
    features, target = batch(6, 3)

    def loss(features):
        options = {"block_size": block_size, "weight_gradient": weight_gradient}
        return robust_contrastive_loss(features, target, **options)

    (expected,) = torch.autograd.grad(loss(features), features)
    features = features.detach()
    torch.testing.assert_close(torch.func.grad(loss)(features), expected)
    tangent = torch.randn_like(features)
    _, found = torch.func.jvp(loss, (features,), (tangent,))
    torch.testing.assert_close(found, (expected * tangent).sum())
    both = torch.stack([features, features.flip(0)])
    found = torch.func.vmap(loss)(both)
    torch.testing.assert_close(found, torch.stack([loss(each) for each in both]))


def test_memory_is_linear_where_the_batch_is_large(batch, monkeypatch):
    features, target = batch(60, 3)
    expected = value_and_gradient(robust_contrastive_loss(features, target), features)
    monkeypatch.setattr(contrastive, "_AT_ONCE", 32)
    monkeypatch.setattr(contrastive, "_SIDE", 16)
    kept = []
    with torch.autograd.graph.saved_tensors_hooks(
        lambda x: kept.append(x.numel()) or x, lambda x: x
    ):
        loss = robust_contrastive_loss(features, target)
    assert max(kept) < 60 * 60
    torch.testing.assert_close(value_and_gradient(loss, features), expected)


def similar_pair(cosine, device):
    """Two unit vectors of different classes at this cosine, and a positive for the first."""
    second = [cosine, (1 - cosine**2) ** 0.5]
    features = torch.tensor([[1.0, 0.0], second, [1.0, 0.0]], dtype=torch.float64, device=device)
    return features.requires_grad_(), torch.tensor([0, 1, 0], device=device)


@pytest.mark.parametrize("cosine", [0.3, 0.8, 0.99])
def test_similar_negatives_are_pushed_apart_unless_the_weights_have_a_gradient(cosine, device):
    features, target = similar_pair(cosine, device)
    away = {}
    for weight_gradient in (False, True):
        loss = robust_contrastive_loss(
            features, target, temperature=0.1, weight_gradient=weight_gradient
        )
        (gradient,) = torch.autograd.grad(loss, features)
        away[weight_gradient] = (gradient[1] @ features[0]).item()
    assert away[False] > 0
    assert (away[True] > 0) == (cosine < 0.6)  # η + η²/τ, where the weighted exponential peaks


@pytest.mark.parametrize("block_size", [1, 100, 512])
def test_tiles_equal_the_dense_path_in_float32(block_size, batch):
    features, target = batch(700, 32, 7, dtype=torch.float32)
    if block_size == 1:
        features, target = features[:40].detach().requires_grad_(), target[:40]
    dense = value_and_gradient(robust_contrastive_loss(features, target), features)
    tiles = robust_contrastive_loss(features, target, block_size=block_size)
    torch.testing.assert_close(value_and_gradient(tiles, features), dense, rtol=1e-6, atol=1e-7)


@pytest.mark.parametrize("block_size", [None, 2])
@pytest.mark.parametrize("target", [[0], [], [0, 1, 2, 3]])
def test_without_a_positive_it_is_a_zero_with_a_graph(target, block_size, device):
    features = torch.randn(len(target), 3, requires_grad=True, device=device)
    target = torch.tensor(target, dtype=torch.int64, device=device)
    loss = robust_contrastive_loss(features, target, block_size=block_size)
    assert loss == 0
    loss.backward()
    assert torch.equal(features.grad, torch.zeros_like(features))


def test_anchors_without_a_positive_are_left_out_of_the_mean(device, batch):
    features, _ = batch(6)
    alone = torch.tensor([0, 0, 0, 1, 2, 2], device=device)
    expected = reference.contrastive(features, alone, 0.05, 0.2)
    torch.testing.assert_close(robust_contrastive_loss(features, alone), expected)
    twice = features.new_tensor([[1.0, 0, 0], [1.0, 0, 0], [0, 1.0, 0], [0, 0.3, 0.7]])
    expected = reference.contrastive(features[:4], twice, 0.05, 0.2)
    torch.testing.assert_close(robust_contrastive_loss(features[:4], twice), expected)


@pytest.mark.parametrize("soft", [False, True])
def test_within_one_group_nothing_is_a_positive(soft, device, batch):
    features, target = batch(9, soft=soft, dtype=torch.float32)
    groups = torch.full((9,), 3, device=device)
    loss = robust_contrastive_loss(features, target, groups=groups)
    assert loss == 0
    loss.backward()
    assert torch.equal(features.grad, torch.zeros_like(features))
    groups[0] = 0
    expected = reference.contrastive(features, target, 0.05, 0.2, groups=groups)
    found = robust_contrastive_loss(features, target, groups=groups)
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-5)


def test_a_memory_gives_a_single_sample_its_positive(device):
    features = torch.randn(1, 3, dtype=torch.float64, requires_grad=True, device=device)
    target = torch.tensor([0, 1], device=device)
    memory = (torch.randn(2, 3, dtype=torch.float64, device=device), target)
    loss = robust_contrastive_loss(features, target[:1], memory=memory)
    expected = reference.contrastive(features, target[:1], 0.05, 0.2, memory)
    torch.testing.assert_close(loss, expected)
    assert loss != 0


@pytest.mark.parametrize("block_size", [None, 5])
def test_with_flat_weights_it_is_the_peers_supcon(block_size, batch):
    """As η grows, every weight becomes exp(−½): SupCon, less ½."""
    features, target = batch(23)
    peers = pytest.importorskip("pytorch_metric_learning.losses")
    expected = peers.SupConLoss(temperature=0.05)(features, target)
    found = robust_contrastive_loss(features, target, eta=1e9, block_size=block_size)
    both = (value_and_gradient(loss, features) for loss in (found + 0.5, expected))
    torch.testing.assert_close(*both)


def test_it_has_a_gradient_at_the_papers_temperature(batch):
    """The released weighting is dead at τ = 0.07: gradient norm below 1e-8."""
    features, target = batch(32, 64, 7)
    loss = robust_contrastive_loss(features, target, temperature=0.07)
    assert value_and_gradient(loss, features)[1].norm() > 1e-3


@pytest.mark.parametrize("block_size", [None, 2])
def test_extreme_temperatures_neither_overflow_nor_vanish(block_size, device):
    rows = [[1.0, 0.0], [-1.0, 1e-3], [-1.0, 0.0]]
    features = torch.tensor(rows, requires_grad=True, device=device)
    for temperature, eta in ((1e-3, 0.2), (0.1, 0.01), (1e3, 1e3)):
        loss = robust_contrastive_loss(
            features,
            torch.tensor([0, 0, 1], device=device),
            temperature=temperature,
            eta=eta,
            block_size=block_size,
        )
        value, gradient = value_and_gradient(loss, features)
        assert value.isfinite()
        assert gradient.isfinite().all()


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
def test_zero_tiny_and_huge_features_are_safe(dtype, device):
    big = torch.finfo(dtype).max / 4
    rows = [[0, 0], [0, 0], [big, big], [1e-3, 0], [1, 1]]
    features = torch.tensor(rows, dtype=dtype, device=device, requires_grad=True)
    loss = robust_contrastive_loss(features, torch.tensor([0, 0, 1, 1, 1], device=device))
    loss.backward()
    assert loss.isfinite()
    assert features.grad.isfinite().all()
    assert not features.grad[:2].any(), "a vector without direction gets no gradient"
    assert features.grad[3:].any()


def test_length_of_the_features_does_not_matter(device, batch):
    features, target = batch(9)
    scale = torch.logspace(-5, 12, 9, dtype=torch.float64, device=device)[:, None]
    torch.testing.assert_close(
        robust_contrastive_loss(features * scale, target), robust_contrastive_loss(features, target)
    )


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize("block_size", [None, 5])
def test_autocast_and_half_precision_compute_in_float32(dtype, block_size, device, batch):
    features, target = batch(16, dtype=torch.float32)
    half = features.detach().to(dtype).requires_grad_()
    with torch.autocast(device.type, dtype):
        loss = robust_contrastive_loss(half, target, block_size=block_size)
        loss.backward()
    wide = half.detach().float().requires_grad_()
    expected = value_and_gradient(robust_contrastive_loss(wide, target), wide)
    assert loss.dtype == torch.float32
    torch.testing.assert_close(loss.detach(), expected[0], rtol=1e-6, atol=1e-6)
    torch.testing.assert_close(half.grad, expected[1].to(dtype), rtol=1e-2, atol=1e-3)


@pytest.mark.parametrize("n", [1, 2, 9])
def test_covariance_trace_equals_the_trace_of_the_matrix(n, batch):
    features, _ = batch(n)
    expected = value_and_gradient(reference.covariance_trace(features), features)
    torch.testing.assert_close(value_and_gradient(covariance_trace(features), features), expected)


def test_covariance_trace_of_nothing_is_a_zero_with_a_graph(device):
    features = torch.empty(0, 4, requires_grad=True, device=device)
    loss = covariance_trace(features)
    loss.backward()
    assert loss == 0


@given(st.integers(0, 9), st.integers(1, 5), st.integers(1, 4), st.booleans(), st.integers(1, 11))
def test_every_size_is_finite_and_tiles_agree(batch, n, dimensions, classes, soft, block_size):
    features, target = batch(n, dimensions, classes, soft=soft)
    dense = value_and_gradient(robust_contrastive_loss(features, target), features)
    tiles = robust_contrastive_loss(features, target, block_size=block_size)
    assert dense[0].isfinite()
    torch.testing.assert_close(value_and_gradient(tiles, features), dense)


CALLS = [
    (
        lambda x, ids: {"features": x[:, 0]},
        r"features: give one .*expected a floating point tensor of shape \(N",
    ),
    (lambda x, ids: {"features": x.long()}, "features: .* found shape .*int64"),
    (lambda x, ids: {"features": x.cfloat()}, "features: .*complex64"),
    (lambda x, ids: {"target": ids[:3]}, "target: expected 4 labels, one for each feature"),
    (lambda x, ids: {"target": ids.float()}, "target: expected integer class ids"),
    (lambda x, ids: {"target": ids.bool()}, "target: expected integer class ids"),
    (lambda x, ids: {"target": ids.reshape(4, 1)}, "target: expected integer class ids"),
    (lambda x, ids: {"temperature": 0.0}, "temperature: expected a finite number > 0"),
    (lambda x, ids: {"eta": -0.2}, "eta: expected a finite number > 0, found -0.2"),
    (lambda x, ids: {"block_size": 0}, "block_size: expected an integer >= 1 or None"),
    (lambda x, ids: {"memory": (x.repeat(1, 2), ids)}, "memory: expected"),
    (lambda x, ids: {"memory": (x[:3], ids)}, "target: expected 3 labels"),
    (lambda x, ids: {"groups": ids[:3]}, "groups: expected 4 ids"),
    (lambda x, ids: {"groups": ids.float()}, "groups: number the .*expected integer ids"),
    (
        lambda x, ids: {"groups": ids, "memory": (x, ids)},
        "memory: expected features and targets, and groups if .* found 2 tensors",
    ),
    (lambda x, ids: {"groups": ids, "memory": (x, ids, ids[:3])}, "groups: expected 4 ids"),
]


@pytest.mark.parametrize(("change", "message"), CALLS)
def test_bad_input_is_named(change, message, device):
    features = torch.zeros(4, 2, device=device)
    target = torch.zeros(4, dtype=torch.int64, device=device)
    with pytest.raises(HDFError, match=message):
        robust_contrastive_loss(
            **{"features": features, "target": target} | change(features, target)
        )


def test_covariance_of_a_vector_is_refused(device):
    with pytest.raises(HDFError, match=r"features: give one .*expected"):
        covariance_trace(torch.zeros(3, device=device))
