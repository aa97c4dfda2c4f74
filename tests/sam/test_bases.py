"""Every optimizer of torch as a base."""

import copy
import inspect
from contextlib import nullcontext
from functools import partial

import pytest
import timm.optim
import torch
from torch import nn

from hdf_modules import SAM, HDFError

RADIUS = {"Adadelta": "sam_rho"}  # it has a rho of its own
REFUSED = {"LBFGS", "Optimizer", "SparseAdam"}
BASES = sorted(
    name
    for name, kind in vars(torch.optim).items()
    if inspect.isclass(kind) and issubclass(kind, torch.optim.Optimizer) and name not in REFUSED
)


def model_of(device):
    return nn.Sequential(nn.Linear(6, 8), nn.Tanh(), nn.Linear(8, 3)).to(device)


def weights_of(model, name):
    # Muon takes matrices alone
    return [p for p in model.parameters() if name != "Muon" or p.ndim == 2]


def loss_of(model, x):
    return model(x).square().mean()


def sgd(weights):
    return torch.optim.SGD(weights, lr=0.1, momentum=0.9)


def peer(name, *given, **options):
    """Make an optimizer of pytorch_optimizer, which a machine with a GPU may not have."""
    return getattr(pytest.importorskip("pytorch_optimizer"), name)(*given, **options)


WRAPPERS = {
    "Lookahead of timm": lambda p: timm.optim.Lookahead(sgd(p)),
    "Lookahead": lambda p: peer("Lookahead", sgd(p)),
    "OrthoGrad": lambda p: peer("OrthoGrad", sgd(p)),
    "TRAC": lambda p: peer("TRAC", sgd(p)),
    "ScheduleFreeWrapper": lambda p: peer("ScheduleFreeWrapper", sgd(p)),
    "ScheduleFreeAdamW": partial(peer, "ScheduleFreeAdamW"),
    "AdaHessian": partial(peer, "AdaHessian"),
    "AdaHessian of timm": timm.optim.Adahessian,
    "SGD": sgd,
}
SECOND_ORDER = {"AdaHessian", "AdaHessian of timm", "SGD"}  # with backward(create_graph=True)


@pytest.mark.parametrize("name", WRAPPERS)
@pytest.mark.filterwarnings("ignore:Using backward.. with create_graph=True")
def test_at_radius_zero_what_others_wrap_and_take_is_itself(device, name):
    first = model_of(device)
    second, graph = copy.deepcopy(first), name in SECOND_ORDER
    batches = torch.rand(8, 5, 6, device=device)

    def train(model, optimizer, passes):
        torch.manual_seed(0)  # AdaHessian draws
        if hasattr(optimizer, "train"):
            optimizer.train()
        for x in batches:
            optimizer.zero_grad()
            for context in passes:
                with context():
                    loss_of(model, x).backward(create_graph=graph)
            optimizer.step()
        if hasattr(optimizer, "eval"):
            optimizer.eval()

    train(first, WRAPPERS[name](first.parameters()), [nullcontext])
    sam = SAM(WRAPPERS[name](second.parameters()))
    for group in sam.param_groups:
        group["rho"] = 0.0
    train(second, sam, [nullcontext, sam.ascend])
    for one, other in zip(first.parameters(), second.parameters(), strict=True):
        assert torch.equal(one, other)


def test_gradients_that_the_base_joins_by_itself(device):
    model, x = model_of(device), torch.rand(5, 6, device=device)
    sam = SAM(peer("PCGrad", sgd(model.parameters())), 1.0)

    def backward():
        y = model(x)
        sam.pc_backward([y[:, 0].mean(), y[:, 1].square().mean()])

    before = [p.detach().clone() for p in model.parameters()]
    backward()
    with sam.ascend():
        backward()
        second = [p.grad.clone() for p in model.parameters()]
    sam.step()
    for p, old, grad in zip(model.parameters(), before, second, strict=True):
        torch.testing.assert_close(p.detach(), old - 0.1 * grad, rtol=0, atol=1e-7)


def test_what_the_step_of_a_base_takes_beside_reaches_it(device):
    model, x = model_of(device), torch.rand(5, 6, device=device)
    twin = copy.deepcopy(model)
    options = {"lr": 0.1, "hessian_distribution": "gaussian"}
    sam = SAM(peer("AdaHessian", model.parameters(), **options), 1e-30)
    plain = peer("AdaHessian", twin.parameters(), **options)
    hessian = [torch.full_like(p, 0.5) for p in model.parameters()]
    for how in ("closure", "by hand"):
        loss_of(twin, x).backward()
        plain.step(hessian=hessian)
        plain.zero_grad()
        if how == "by hand":
            loss_of(model, x).backward()
            with sam.ascend():
                loss_of(model, x).backward()
            sam.step(hessian=hessian)
            sam.zero_grad()
            continue

        def closure():
            sam.zero_grad()
            loss_of(model, x).backward()

        sam.step(closure, hessian=hessian)
        sam.zero_grad()
    for one, other in zip(model.parameters(), twin.parameters(), strict=True):
        assert torch.equal(one, other)


@pytest.mark.parametrize("name", ["SAM", "LookSAM", "FriendlySAM", "BSAM"])
def test_a_sam_of_others_is_refused(device, name):
    weights = [nn.Parameter(torch.ones(2, device=device))]
    own = {"num_data": 5} if name == "BSAM" else {"base_optimizer": torch.optim.SGD, "lr": 0.1}
    with pytest.raises(
        HDFError, match=r"base_optimizer: give SAM .*expected an optimizer that is no SAM"
    ):
        SAM(peer(name, weights, **own))


@pytest.mark.parametrize("name", BASES)
def test_at_radius_zero_every_optimizer_of_torch_is_itself(device, name):
    first = model_of(device)
    second = copy.deepcopy(first)
    base = getattr(torch.optim, name)(weights_of(first, name), lr=0.01)
    inner = getattr(torch.optim, name)(
        [{"params": weights_of(second, name), RADIUS.get(name, "rho"): 0.0}], lr=0.01
    )
    sam = SAM(inner)
    for _ in range(4):
        x = torch.rand(5, 6, device=device)
        base.zero_grad()
        loss_of(first, x).backward()
        base.step()
        sam.zero_grad()
        loss_of(second, x).backward()
        with sam.ascend():
            loss_of(second, x).backward()
        sam.step()
    for one, other in zip(first.parameters(), second.parameters(), strict=True):
        assert torch.equal(one, other)


def test_the_list_is_that_of_torch():
    assert {"SGD", "Adam", "AdamW", "Adadelta", "Rprop", "NAdam"} <= set(BASES)


def test_one_that_needs_its_closure_is_refused(device):
    weights = [nn.Parameter(torch.ones(2, device=device))]
    with pytest.raises(HDFError, match="base_optimizer"):
        SAM(torch.optim.LBFGS(weights))
    with pytest.raises(HDFError, match="base_optimizer"):
        SAM(SAM(torch.optim.SGD(weights, lr=0.1)))
