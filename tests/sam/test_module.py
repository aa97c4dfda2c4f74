"""SAM's gradient, its optimizer interface, and what it says about bad use."""

import copy
import math
import warnings

import pytest
import torch
from torch import nn

from hdf_modules import SAM, HDFError, HeterogeneityAwareLoss
from hdf_modules.sam import Criterion
from tests.support.reference.sam import sam_gradient


def sgd(model, **options):
    return torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9, **options)


def toy(device, dtype=torch.float64):
    model = nn.Sequential(nn.Linear(5, 7), nn.Tanh(), nn.Linear(7, 3)).to(device, dtype)
    return model, torch.randn(11, 5, device=device, dtype=dtype)


def loss_of(model, x):
    return (model(x) - 1).pow(4).mean()


def both_passes(sam, model, x, **options):
    loss_of(model, x).backward()
    with sam.ascend(**options):
        loss_of(model, x).backward()


def weights_of(model):
    return [p.detach().clone() for p in model.parameters()]


def equal(first, second):
    return all(torch.equal(a, b) for a, b in zip(first, second, strict=True))


@pytest.mark.parametrize("adaptive", [False, True])
@pytest.mark.parametrize("rho", [0.05, 2.0])
def test_gradient_is_the_reference(device, adaptive, rho):
    model, x = toy(device)
    sam = SAM(sgd(model), rho, adaptive=adaptive)
    names = [name for name, _ in model.named_parameters()]

    def loss(*weights):
        output = torch.func.functional_call(model, dict(zip(names, weights, strict=True)), (x,))
        return (output - 1).pow(4).mean()

    before = weights_of(model)
    expected, grad_norm = sam_gradient(loss, [(list(model.parameters()), rho, adaptive)])
    both_passes(sam, model, x)
    for p, gradient in zip(model.parameters(), expected, strict=True):
        torch.testing.assert_close(p.grad, gradient, rtol=1e-11, atol=1e-14)
    assert sam.grad_norm == pytest.approx(grad_norm, rel=1e-13)
    assert equal(before, weights_of(model))


def test_groups_have_their_own_radius_and_adaptivity(device):
    model, x = toy(device)
    first, last = list(model[0].parameters()), list(model[2].parameters())
    options = [(first, 0.5, True), (last, 0.1, False)]
    groups = [{"params": p, "rho": rho, "adaptive": a} for p, rho, a in options]
    sam = SAM(torch.optim.SGD(groups, lr=0.1))

    def loss(a, b, c, d):
        return (torch.tanh(x @ a.T + b) @ c.T + d - 1).pow(4).mean()

    expected, _ = sam_gradient(loss, options)
    both_passes(sam, model, x)
    for p, gradient in zip(model.parameters(), expected, strict=True):
        torch.testing.assert_close(p.grad, gradient, rtol=1e-11, atol=1e-14)


def test_group_with_radius_zero_stays(device):
    model, x = toy(device)
    groups = [{"params": model[0].parameters(), "rho": 0}, {"params": model[2].parameters()}]
    sam = SAM(torch.optim.SGD(groups, lr=0.1), rho=0.3)
    before = weights_of(model)
    loss_of(model, x).backward()
    with sam.ascend():
        moved = weights_of(model)
    assert equal(before[:2], moved[:2])
    distance = math.sqrt(
        sum(float((a - b).square().sum()) for a, b in zip(before, moved, strict=True))
    )
    assert 0 < distance < 0.3


def test_distance_moved_is_rho(device):
    model, x = toy(device)
    sam = SAM(sgd(model), 0.3)
    before = weights_of(model)
    loss_of(model, x).backward()
    with sam.ascend():
        moved = weights_of(model)
    distance = sum(float((a - b).square().sum()) for a, b in zip(before, moved, strict=True))
    assert math.sqrt(distance) == pytest.approx(0.3, rel=1e-12)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_weights_come_back_bit_for_bit(device, dtype):
    # adding and subtracting ε, as others do, does not return to the start
    model, x = toy(device, dtype)
    sam = SAM(sgd(model), 0.7)
    before = weights_of(model)
    both_passes(sam, model, x)
    assert equal(before, weights_of(model))


def test_half_precision_norm_is_summed_in_float32(device):
    p = nn.Parameter(torch.zeros(1000, dtype=torch.bfloat16, device=device))
    p.grad = torch.full_like(p, 0.01)
    sam = SAM(torch.optim.SGD([p], lr=0.1))
    with sam.ascend():
        pass
    entry = float(torch.tensor(0.01, dtype=torch.bfloat16, device=device))
    assert sam.grad_norm == pytest.approx(entry * 1000**0.5, 1e-6)


def test_an_exception_inside_restores_the_weights(device):
    model, x = toy(device)
    sam = SAM(sgd(model), 0.7)
    before = weights_of(model)
    loss_of(model, x).backward()
    with pytest.raises(RuntimeError, match="second pass"), sam.ascend():
        raise RuntimeError("in the second pass")
    assert equal(before, weights_of(model))
    both_passes(sam, model, x)  # and the next one works


def test_parameters_with_a_gradient_in_one_pass_only(device):
    a, b, c = (nn.Parameter(torch.ones(3, device=device)) for _ in range(3))
    sam = SAM(torch.optim.SGD([a, b, c], lr=1.0), 0.3)
    (a + b).square().sum().backward()
    with sam.ascend():
        (b + c).square().sum().backward()
    assert a.grad is None
    torch.testing.assert_close(c.grad, b.grad)
    for p in (a, b, c):
        assert torch.equal(p, torch.ones_like(p))
    sam.step()
    assert torch.equal(a, torch.ones_like(a))


def test_zero_gradient_moves_nothing(device):
    model, x = toy(device)
    sam = SAM(sgd(model), 0.5)
    (loss_of(model, x) * 0).backward()
    before = weights_of(model)
    with sam.ascend():
        assert equal(before, weights_of(model))
        loss_of(model, x).backward()
    assert sam.grad_norm == 0.0
    assert all(p.grad.isfinite().all() for p in model.parameters())


@pytest.mark.parametrize("foreach", [True, False])
@pytest.mark.parametrize("name", ["SGD", "AdamW", "RMSprop"])
def test_any_base_steps_on_the_sam_gradient(device, name, foreach):
    model, x = toy(device)
    twin = copy.deepcopy(model)
    make = getattr(torch.optim, name)
    sam = SAM(make(model.parameters(), lr=0.01, foreach=foreach))
    plain = make(twin.parameters(), lr=0.01, foreach=foreach)
    for _ in range(3):
        both_passes(sam, model, x)
        for p, q in zip(model.parameters(), twin.parameters(), strict=True):
            q.grad = p.grad.clone()
        sam.step()
        plain.step()
        sam.zero_grad()
    assert equal(weights_of(model), weights_of(twin))


def test_closure_equals_the_context_and_returns_the_first_loss(device):
    model, x = toy(device)
    twin = copy.deepcopy(model)
    sam, other = SAM(sgd(model)), SAM(sgd(twin))
    losses = []

    def closure():
        sam.zero_grad()
        losses.append(loss_of(model, x))
        losses[-1].backward()
        return losses[-1]

    returned = sam.step(closure)
    both_passes(other, twin, x)
    other.step()
    assert equal(weights_of(model), weights_of(twin))
    assert returned is losses[0]
    assert len(losses) == 2
    assert sam.sharpness_gap == losses[1] - losses[0] > 0


def test_closure_that_returns_nothing(device):
    model, x = toy(device)
    sam = SAM(sgd(model))

    def closure():
        sam.zero_grad()
        loss_of(model, x).backward()

    assert sam.step(closure) is None
    assert sam.sharpness_gap is None


def test_every_second_step_is_plain(device):
    model, x = toy(device)
    twin = copy.deepcopy(model)
    sam, other = SAM(sgd(model), every=2), SAM(sgd(twin), every=2)
    calls = []

    def closure():
        calls.append(sam.due)
        sam.zero_grad()
        loss = loss_of(model, x)
        loss.backward()
        return loss

    for _ in range(5):
        sam.step(closure)
        other.zero_grad()
        loss_of(twin, x).backward()
        if other.due:
            with other.ascend():
                loss_of(twin, x).backward()
        other.step()
    assert calls == [True, True, False, True, True, False, True, True]
    assert equal(weights_of(model), weights_of(twin))


def test_the_criterion_gets_g(device):
    model, x = toy(device)
    criterion = HeterogeneityAwareLoss().to(device)
    sam = SAM(sgd(model))
    both_passes(sam, model, x, criterion=criterion)
    g = sam.grad_norm
    assert float(criterion.balance.lambda_ce) == pytest.approx(g / (g + 1))


def test_the_criterion_gets_g_from_a_closure_too(device):
    model, x = toy(device)
    criterion = HeterogeneityAwareLoss().to(device)
    sam = SAM(sgd(model))

    def closure():
        sam.zero_grad()
        loss_of(model, x).backward()

    sam.step(closure, criterion=criterion)
    assert float(criterion.balance.grad_norm) == pytest.approx(sam.grad_norm)


def test_schedulers_accept_it_without_a_warning(device):
    model, x = toy(device)
    sam = SAM(sgd(model))
    scheduler = torch.optim.lr_scheduler.StepLR(sam, 1, 0.5)
    for _ in range(3):
        both_passes(sam, model, x)
        sam.step()
        scheduler.step()
        sam.zero_grad()
    assert sam.param_groups[0]["lr"] == sam.base_optimizer.param_groups[0]["lr"] == 0.1 / 8


def test_clipping_acts_on_the_sam_gradient_and_not_on_g(device):
    model, x = toy(device)
    sam = SAM(sgd(model))
    both_passes(sam, model, x)
    g = sam.grad_norm
    assert float(nn.utils.clip_grad_norm_(model.parameters(), 1e-3)) > 1e-3
    assert sam.grad_norm == g > 1e-3


def test_step_hooks_run(device):
    model, x = toy(device)
    sam, calls = SAM(sgd(model)), []
    sam.register_step_pre_hook(lambda *_: calls.append("pre"))
    sam.register_step_post_hook(lambda *_: calls.append("post"))
    both_passes(sam, model, x)
    sam.step()
    assert calls == ["pre", "post"]


def test_groups_and_state_are_shared(device):
    model, x = toy(device)
    sam = SAM(sgd(model), 0.3)
    extra = nn.Parameter(torch.ones(2, device=device))
    sam.add_param_group({"params": [extra], "lr": 0.5})
    assert sam.param_groups is sam.base_optimizer.param_groups
    assert sam.param_groups[1]["rho"] == 0.3
    assert sam.param_groups[1]["momentum"] == 0.9
    both_passes(sam, model, x)
    sam.base_optimizer.step()  # a loop that knows only the base
    assert sam.state is sam.base_optimizer.state
    assert "momentum_buffer" in sam.state[next(model.parameters())]
    assert not hasattr(sam, "_step_supports_amp_scaling")


def test_a_plain_step_that_was_not_asked_for_says_so(device):
    # stacks that call step() without a closure would train without SAM in silence
    model, x = toy(device)
    sam = SAM(sgd(model))
    loss_of(model, x).backward()
    with pytest.warns(UserWarning, match=r"without ascend\(\) is a plain step"):
        sam.step()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        sam.base_optimizer.step()


def test_a_step_at_rate_zero_is_not_counted(device):
    # torch.distributed.checkpoint takes one to make the optimizer's state
    model, x = toy(device)
    sam = SAM(torch.optim.SGD(model.parameters(), lr=0.0, momentum=0.9), every=2)
    loss_of(model, x).backward()
    sam.step()
    assert sam.due
    sam.param_groups[0]["lr"] = 0.1
    both_passes(sam, model, x)
    sam.step()
    assert not sam.due


def test_the_sharpness_gap_is_taken_at_one_balance(device):
    # the criterion's λ changes between the passes, which is no rise of the loss
    model, x = toy(device, torch.float32)
    criterion, target = HeterogeneityAwareLoss().to(device), torch.arange(11, device=device) % 3
    sam = SAM(sgd(model))
    losses = []

    def closure():
        sam.zero_grad()
        loss = criterion(model(x), target)
        losses.append(nn.functional.cross_entropy(model(x), target).item())
        loss.backward()
        return loss

    sam.step(closure, criterion=criterion)
    rise = float(criterion.balance.lambda_ce) * (losses[1] - losses[0])
    assert float(sam.sharpness_gap) == pytest.approx(rise, rel=1e-3)


def test_whatever_forwards_attributes_writes_to_the_optimizer(device):
    # as Lightning's wrapper does: a subclass of both, without the optimizer's attributes
    model, x = toy(device)
    sam = SAM(sgd(model))

    class Proxy(SAM):
        def __init__(self):
            pass

        def __getattr__(self, name):
            return getattr(sam, name)

    both_passes(Proxy(), model, x)
    assert sam.grad_norm == Proxy().grad_norm > 0
    sam.step()  # without a warning that it is a plain one


@pytest.mark.parametrize("rho", [0, -1, math.nan, math.inf, "0.1", None])
def test_bad_radius(rho):
    with pytest.raises(HDFError, match=r"rho: try 0\.05, .*expected a finite number > 0"):
        SAM(sgd(nn.Linear(2, 2)), rho)


def test_bad_radius_in_a_group():
    groups = [{"params": nn.Linear(2, 2).parameters(), "rho": -1.0}]
    with pytest.raises(
        HDFError, match=r"rho: try 0\.05, .*expected a finite number > 0, found -1.0"
    ):
        SAM(torch.optim.SGD(groups, lr=0.1))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"base_optimizer": torch.optim.SGD}, "base_optimizer: expected a torch.optim.Optimizer"),
        ({"model": "resnet"}, "model: expected a torch.nn.Module or None, found str"),
        ({"every": 0}, "every: expected an integer >= 1, found 0"),
        ({"every": 1.5}, "every: expected an integer >= 1, found 1.5"),
    ],
)
def test_bad_arguments(arguments, message):
    with pytest.raises(HDFError, match=message):
        SAM(**{"base_optimizer": sgd(nn.Linear(2, 2))} | arguments)


def test_ascend_without_gradients(device):
    sam = SAM(sgd(toy(device)[0]))
    with pytest.raises(
        HDFError, match=r"gradients: run forward .*expected those of a backward pass, found none"
    ):
        sam.ascend().__enter__()


def test_nested_ascend_is_refused_and_harmless(device):
    model, x = toy(device)
    sam = SAM(sgd(model))
    before = weights_of(model)
    loss_of(model, x).backward()
    with sam.ascend():
        loss_of(model, x).backward()
        with pytest.raises(HDFError, match=r"ascend: leave the .*expected one at a time"):
            sam.ascend().__enter__()
    assert equal(before, weights_of(model))


def test_sparse_gradients_are_refused(device):
    model = nn.Embedding(4, 3, sparse=True, device=device)
    sam = SAM(torch.optim.SGD(model.parameters(), lr=0.1))
    model(torch.tensor([1, 2], device=device)).sum().backward()
    with pytest.raises(
        HDFError, match=r"gradients: make the .*expected dense tensors, found a sparse one"
    ):
        sam.ascend().__enter__()
    before = weights_of(model)
    with pytest.warns(UserWarning, match="is a plain step"):
        sam.step(lambda: None)
    assert not equal(before, weights_of(model))
    model(torch.tensor([1, 2], device=device)).sum().backward()
    with pytest.raises(HDFError, match="expected dense tensors, found a sparse one"):
        sam.step(lambda: model(torch.tensor([1], device=device)).sum().backward())


class Told:
    """Has one part of what SAM asks of a loss."""

    def rescale(self, grad_norm):
        self.grad_norm = grad_norm


def test_a_criterion_is_told_what_it_takes_and_another_one_nothing(device):
    gradients = []
    for criterion in (None, nn.CrossEntropyLoss(), nn.functional.cross_entropy, Told()):
        torch.manual_seed(0)
        model, x = toy(device)
        sam = SAM(sgd(model))
        both_passes(sam, model, x, criterion=criterion)
        gradients.append([p.grad for p in model.parameters()])
    assert criterion.grad_norm == sam.grad_norm
    for found in gradients[1:]:
        assert all(torch.equal(a, b) for a, b in zip(found, gradients[0], strict=True))


def test_the_loss_is_what_sam_asks_for():
    assert isinstance(HeterogeneityAwareLoss(), Criterion)


@pytest.mark.parametrize("backward", [True, False])
def test_a_closure_without_a_pass_is_a_plain_step_that_says_so(device, backward):
    # a batch that is skipped, and loops that hand over the loss of a pass they ran themselves
    (plain, x), (model, _) = toy(device), toy(device)
    model.load_state_dict(plain.state_dict())
    base, sam = sgd(plain), SAM(sgd(model))
    for net in (plain, model) if backward else ():
        loss_of(net, x).backward()
    base.step()
    with pytest.warns(UserWarning, match="without a backward pass in it is a plain step"):
        assert sam.step(lambda: 3.5) == 3.5
    assert equal(weights_of(plain), weights_of(model))
    assert all((p.grad is not None) == backward for p in model.parameters())
