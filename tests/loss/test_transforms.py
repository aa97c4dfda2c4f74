"""The contrastive loss inside ``torch.func`` transforms and ``torch.compile``."""

import pytest
import torch
from torch.func import grad, hessian, jacfwd, jacrev, jvp, vmap

from hdf_modules import HeterogeneityAwareLoss
from hdf_modules.functional import covariance_trace, robust_contrastive_loss
from hdf_modules.loss import RobustContrastive

BATCHES, N, D = 3, 7, 4
KINDS = ["ids", "soft", "memory", "groups"]


@pytest.fixture
def several(device):
    """Features and class ids of several batches."""
    features = torch.randn(BATCHES, N, D, dtype=torch.float64, device=device)
    return features, torch.arange(BATCHES * N, device=device).reshape(BATCHES, N) ** 2 % 5 % 3


@pytest.fixture(params=[None, 3], ids=["dense", "tiles"])
def loss_of(request, device):
    def loss_of(kind, **further):
        target, options = torch.arange(N, device=device) % 3, {"block_size": request.param}
        if kind == "soft":
            target = torch.eye(3, dtype=torch.float64, device=device)[target] * 0.7 + 0.1
        if kind == "memory":
            old = torch.randn(2, D, dtype=torch.float64, device=device)
            options["memory"] = (old, target[:2])
        if kind == "groups":
            options["groups"] = torch.arange(N, device=device) % 2
        options |= {"temperature": 0.5, **further}
        return lambda features: robust_contrastive_loss(features, target, **options)

    return loss_of


def gradient(loss, features):
    leaf = features.clone().requires_grad_()
    return torch.autograd.grad(loss(leaf), leaf)[0]


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("weight_gradient", [False, True])
def test_every_first_derivative_is_that_of_backward(kind, weight_gradient, loss_of, several):
    batches, _ = several
    loss = loss_of(kind, weight_gradient=weight_gradient)
    expected = torch.stack([gradient(loss, batch) for batch in batches])
    values = torch.stack([loss(batch) for batch in batches])
    torch.testing.assert_close(vmap(loss)(batches), values)
    torch.testing.assert_close(vmap(grad(loss))(batches), expected)
    for derivative in (grad, jacrev, jacfwd):
        torch.testing.assert_close(derivative(loss)(batches[0]), expected[0])
    value, rise = jvp(loss, (batches[0],), (batches[1],))
    torch.testing.assert_close(value, values[0])
    torch.testing.assert_close(rise, (expected[0] * batches[1]).sum())


@pytest.mark.parametrize("block_size", [None, 2])
def test_labels_and_memories_may_be_mapped_over_too(block_size, several):
    def loss(features, target, old):
        memory = (old, target)
        return robust_contrastive_loss(features, target, memory=memory, block_size=block_size)

    batches, targets = several
    found = vmap(grad(loss), in_dims=(None, 0, 0))(batches[0], targets, batches)
    for one, target, old in zip(found, targets, batches, strict=True):
        expected = gradient(lambda x, t=target, o=old: loss(x, t, o), batches[0])
        torch.testing.assert_close(one, expected)


@pytest.mark.parametrize("weight_gradient", [False, True])
def test_second_derivatives_of_the_dense_path(weight_gradient, several, device):
    def loss(x):
        return robust_contrastive_loss(x, target, temperature=0.5, weight_gradient=weight_gradient)

    features, target = several[0][0], several[1][0]
    expected = torch.autograd.functional.hessian(loss, features)
    torch.testing.assert_close(hessian(loss)(features), expected)
    assert vmap(grad(covariance_trace))(several[0]).shape == several[0].shape


@pytest.mark.parametrize("contrastive", [None, "robust", RobustContrastive(block_size=3)])
def test_the_whole_loss_inside_grad_and_jvp(contrastive, several):
    criterion = HeterogeneityAwareLoss(weighting="chi2", contrastive=contrastive)
    features, target = several[0][0], several[1][0]
    head = several[0][1, :D, :D]

    def loss(features):
        return criterion(features @ head, target, features)

    expected = gradient(loss, features)
    torch.testing.assert_close(grad(loss)(features), expected)
    torch.testing.assert_close(jvp(loss, (features,), (features,))[1], (expected * features).sum())
    assert all(value.isfinite() for value in criterion.terms.values()), "terms outlive a transform"
    torch.testing.assert_close(gradient(loss, features), expected)


# torch 2.6's compiler does that itself, to any function of autograd.
@pytest.mark.filterwarnings("ignore:.*should not be instantiated:DeprecationWarning")
@pytest.mark.parametrize("kind", ["ids", "soft", "memory"])
def test_it_compiles_into_one_graph(kind, loss_of, several):
    loss, leaf = loss_of(kind), several[0][0].requires_grad_()
    compiled = torch.compile(loss, backend="aot_eager", fullgraph=True)(leaf)
    torch.testing.assert_close(compiled, loss(leaf))
    torch.testing.assert_close(torch.autograd.grad(compiled, leaf)[0], gradient(loss, leaf))
