"""Whatever becomes of a step, the next one is right or an error says what is wrong."""

import copy
import gc
import weakref

import pytest
import torch
from torch import nn
from torch.optim import optimizer

from hdf_modules import SAM, HDFError


class Loop:
    """A small model, its SAM and a closure that counts its calls."""

    def __init__(self, device, clear=None, **options):
        torch.manual_seed(0)
        self.model = nn.Linear(3, 2).to(device).double()
        self.x = torch.randn(4, 3, device=device, dtype=torch.float64)
        base = torch.optim.SGD(self.model.parameters(), lr=0.1, momentum=0.9)
        self.sam = SAM(base, 0.3, **options)
        self.clear = clear or self.sam.zero_grad
        self.calls = 0

    def loss(self):
        return self.model(self.x).square().mean()

    def closure(self):
        self.calls += 1
        self.clear()
        loss = self.loss()
        loss.backward()
        return loss

    def ascend(self):
        self.loss().backward()
        with self.sam.ascend():
            self.loss().backward()

    @property
    def weights(self):
        return torch.cat([p.detach().flatten() for p in self.model.parameters()])

    @property
    def grads(self):
        return torch.cat([p.grad.flatten() for p in self.model.parameters()])


def fail_after(_):
    raise RuntimeError("out of memory")


def one_step(device):
    loop = Loop(device)
    loop.sam.step(loop.closure)
    return loop.weights


def in_the_second_pass(loop):
    loop.loss().backward()
    with pytest.raises(RuntimeError, match="out of memory"), loop.sam.ascend():
        fail_after(loop.loss().backward())


def in_the_second_call(loop):
    def fails():
        if calls:
            raise RuntimeError("out of memory")
        calls.append(1)
        return loop.closure()

    calls = []
    with pytest.raises(RuntimeError, match="out of memory"):
        loop.sam.step(fails)


def in_the_first_call(loop):
    def fails():
        raise RuntimeError("out of memory")

    loop.ascend()
    with pytest.raises(RuntimeError, match="out of memory"):
        loop.sam.step(fails)


def given_up(loop):
    loop.ascend()


def empty(loop):
    loop.loss().backward()
    with loop.sam.ascend():
        pass


def restored(loop):
    loop.ascend()
    loop.sam.base_optimizer.load_state_dict(loop.sam.base_optimizer.state_dict())


BEFORE = [in_the_second_pass, in_the_second_call, in_the_first_call, given_up, empty, restored]
CLEARS = {
    "sam": lambda loop: loop.sam.zero_grad(),
    "base": lambda loop: loop.sam.base_optimizer.zero_grad(),
    "model": lambda loop: loop.model.zero_grad(),
    "sam, in place": lambda loop: loop.sam.zero_grad(set_to_none=False),
    "model, in place": lambda loop: loop.model.zero_grad(set_to_none=False),
}


@pytest.mark.parametrize("clear", CLEARS)
@pytest.mark.parametrize("before", BEFORE)
def test_a_closure_is_a_sam_step_after_everything(device, before, clear):
    loop = Loop(device)
    loop.clear = lambda: CLEARS[clear](loop)
    before(loop)
    loop.calls = 0
    loop.sam.step(loop.closure)
    assert loop.calls == 2
    assert torch.equal(loop.weights, one_step(device))


@pytest.mark.parametrize("clear", ["sam", "base", "model", "sam, in place"])
@pytest.mark.parametrize("before", BEFORE)
def test_a_step_by_hand_is_right_after_everything(device, before, clear):
    loop = Loop(device)
    before(loop)
    CLEARS[clear](loop)
    loop.ascend()
    loop.sam.step()
    assert torch.equal(loop.weights, one_step(device))


@pytest.mark.parametrize("clear", ["sam", "base", "model"])
def test_a_plain_step_after_a_step_that_was_given_up_says_so(device, clear):
    loop = Loop(device)
    loop.ascend()
    CLEARS[clear](loop)
    loop.loss().backward()
    with pytest.warns(UserWarning, match=r"without ascend\(\) is a plain step"):
        loop.sam.step()


def test_the_gradients_of_an_earlier_ascend_are_no_first_pass(device):
    loop = Loop(device)
    loop.ascend()
    loop.loss().backward()  # accumulates on the SAM gradient
    with pytest.raises(HDFError, match="those of a first pass, found an earlier ascend"):
        loop.sam.ascend().__enter__()


def test_a_step_after_an_empty_second_pass_is_refused(device):
    loop = Loop(device)
    empty(loop)
    with pytest.raises(
        HDFError, match=r"gradients: run one .*expected those of a backward pass, found none"
    ):
        loop.sam.step()


def test_what_an_aborted_second_pass_leaves_is_gone(device):
    loop = Loop(device)
    before = loop.weights
    in_the_second_pass(loop)
    assert all(p.grad is None for p in loop.model.parameters())
    assert torch.equal(before, loop.weights)


@pytest.mark.parametrize("by", ["sam", "base", "closure"])
def test_a_step_inside_a_pass_is_refused(device, by):
    loop = Loop(device)
    step = {
        "sam": loop.sam.step,
        "base": loop.sam.base_optimizer.step,
        "closure": lambda: loop.sam.step(loop.closure),
    }[by]
    loop.loss().backward()
    before = loop.weights
    with loop.sam.ascend():
        loop.loss().backward()
        with pytest.raises(HDFError, match=r"step: (leave the|step after) .*expected"):
            step()
    with loop.sam.micro_batch():
        loop.loss().backward()
        with pytest.raises(HDFError, match=r"step: (leave the|step after) .*expected"):
            step()
    assert torch.equal(before, loop.weights)


def test_micro_batches_do_not_nest(device):
    loop = Loop(device)
    with loop.sam.micro_batch():
        with pytest.raises(HDFError, match=r"micro_batch: leave the .*expected one at a time"):
            loop.sam.micro_batch().__enter__()
        loop.ascend()
    with loop.sam.micro_batch():
        loop.loss().backward()
        with (
            loop.sam.ascend(),
            pytest.raises(HDFError, match=r"micro_batch: leave the first; expected one"),
        ):
            loop.sam.micro_batch().__enter__()


@pytest.mark.parametrize("clear", ["sam", "model"])
def test_clearing_in_the_second_pass_of_a_micro_batch_is_refused(device, clear):
    loop = Loop(device)
    with loop.sam.micro_batch():
        loop.ascend()
    message = (
        "zero_grad: clear before .*expected outside"
        if clear == "sam"
        else "zero_grad.. in the second pass"
    )

    def micro_batch():
        with loop.sam.micro_batch():
            loop.loss().backward()
            with loop.sam.ascend():
                CLEARS[clear](loop)
                loop.loss().backward()

    with pytest.raises(HDFError, match=message):
        micro_batch()
    for go_on in (loop.sam.step, loop.sam.ascend().__enter__, loop.sam.micro_batch().__enter__):
        with pytest.raises(HDFError, match="the gradients of a whole step"):
            go_on()
    loop.sam.zero_grad()
    loop.sam.step(loop.closure)
    assert torch.equal(loop.weights, one_step(device))


@pytest.mark.parametrize("where", ["first", "second", "after"])
def test_an_exception_in_a_micro_batch(device, where):
    loop = Loop(device)
    with loop.sam.micro_batch():
        loop.ascend()
    earlier = loop.grads.clone()

    def micro_batch():
        with loop.sam.micro_batch():
            loop.loss().backward()
            if where == "first":
                raise RuntimeError("here")
            with loop.sam.ascend():
                loop.loss().backward()
                if where == "second":
                    raise RuntimeError("here")
            raise RuntimeError("here")

    with pytest.raises(RuntimeError, match="here"):
        micro_batch()
    if where == "second":  # it had begun to add to the earlier ones
        with pytest.raises(HDFError, match="an exception in the second pass"):
            loop.sam.step()
    else:
        torch.testing.assert_close(loop.grads, earlier * (1 if where == "first" else 2))
        loop.sam.step()


@pytest.mark.parametrize("in_place", [False, True])
def test_gradients_from_before_a_closure_that_adds_to_them_are_refused(device, in_place):
    loop = Loop(device, clear=lambda: None)
    loop.closure()
    loop.closure()
    before, weights = loop.grads, loop.weights
    with pytest.raises(
        HDFError,
        match=r"closure: accumulate without .*expected one that clears the gradients before",
    ):
        loop.sam.step(loop.closure)
    assert torch.equal(weights, loop.weights)
    assert before.isfinite().all()
    loop.sam.zero_grad(set_to_none=not in_place)
    loop.sam.step(loop.closure)
    expected = Loop(device, clear=None)
    expected.ascend()
    torch.testing.assert_close(loop.weights.isfinite(), expected.weights.isfinite())


def test_gradients_of_some_parameters_that_survive_a_closure_are_refused(device):
    loop = Loop(device)
    loop.clear = lambda: setattr(loop.model.bias, "grad", None)
    loop.closure()
    with pytest.raises(HDFError, match=r"closure: accumulate without .*expected one that clears"):
        loop.sam.step(loop.closure)


def test_a_closure_after_clearing_in_place_outside(device):
    loop = Loop(device)
    loop.sam.step(loop.closure)
    loop.sam.zero_grad(set_to_none=False)
    loop.clear = lambda: None

    def clears_before_the_second_call():
        loop.calls += 1
        loss = loop.loss()
        loss.backward()
        return loss

    loop.calls = 0
    loop.sam.step(clears_before_the_second_call)
    twin = Loop(device)
    twin.sam.step(twin.closure)
    twin.sam.step(twin.closure)
    assert loop.calls == 2
    assert torch.equal(loop.weights, twin.weights)


def test_a_closure_that_does_nothing_after_ascend_steps_on_its_gradient(device):
    loop = Loop(device)
    loop.ascend()
    assert loop.sam.step(lambda: 3.0) == 3.0
    assert torch.equal(loop.weights, one_step(device))


def test_steps_at_rate_zero_count_where_they_are_steps(device):
    loop = Loop(device, every=2)
    schedule = torch.optim.lr_scheduler.LambdaLR(loop.sam, lambda step: max(0.0, step - 3))
    due = []
    for _ in range(5):
        due.append(loop.sam.due)
        loop.loss().backward()
        if loop.sam.due:
            with loop.sam.ascend():
                loop.loss().backward()
        loop.sam.step()
        schedule.step()
        loop.sam.zero_grad()
    assert due == [True, False, True, False, True]


def test_a_state_made_by_a_step_without_gradients_is_no_step(device):
    loop = Loop(device, every=2)
    loop.ascend()
    loop.sam.step()
    assert not loop.sam.due
    loop.sam.param_groups[0]["lr"] = 0.0
    for p in loop.model.parameters():
        p.grad = torch.zeros_like(p)
    loop.sam.step()  # as torch.distributed.checkpoint does
    assert not loop.sam.due


def test_a_checkpoint_of_the_base_alone_leaves_the_groups_their_radius(device):
    a, b = (nn.Parameter(torch.ones(2, device=device)) for _ in range(2))
    plain = torch.optim.SGD([{"params": [a]}, {"params": [b]}], lr=0.1).state_dict()
    for load in ("sam", "base"):
        groups = [{"params": [a], "rho": 0.5}, {"params": [b], "adaptive": True}]
        sam = SAM(torch.optim.SGD(groups, lr=0.3), 0.2)
        (sam if load == "sam" else sam.base_optimizer).load_state_dict(plain)
        found = [(g["lr"], g["rho"], g["adaptive"]) for g in sam.param_groups]
        assert found == [(0.1, 0.5, False), (0.1, 0.2, True)]


def test_an_old_checkpoint_winds_back_the_steps(device):
    a, b = (nn.Parameter(torch.ones(2, device=device)) for _ in range(2))
    sam = SAM(torch.optim.SGD([{"params": [a]}, {"params": [b]}], lr=0.1), every=3)
    saved = copy.deepcopy(sam.state_dict())
    del saved["param_groups"][1]["sam_steps"]  # 0.1 counted in the first group alone
    (a + b).sum().backward()
    with sam.ascend():
        (a + b).sum().backward()
    sam.step()
    assert not sam.due
    sam.load_state_dict(saved)
    assert sam.due


def test_a_copy_amid_a_step_begins_anew(device):
    loop = Loop(device)
    loop.ascend()
    model, sam = copy.deepcopy((loop.model, loop.sam))  # torch copies no gradients
    (model(loop.x)).square().mean().backward()
    with sam.ascend():
        (model(loop.x)).square().mean().backward()
    sam.step()
    loop.sam.step()
    for p, q in zip(model.parameters(), loop.model.parameters(), strict=True):
        assert torch.equal(p, q)


def test_nothing_holds_what_is_let_go(device):
    gc.collect()
    gc.disable()  # no cycle needs it
    try:
        loop = Loop(device)
        loop.sam.step(loop.closure)
        base, dead = loop.sam.base_optimizer, weakref.ref(loop.sam)
        loop.clear = None
        loop.sam = None
        assert dead() is None
        assert [
            len(getattr(base, f"_optimizer_step_{when}_hooks")) for when in ("pre", "post")
        ] == [
            0,
            0,
        ]
        assert not base._optimizer_load_state_dict_pre_hooks
        dead = weakref.ref(base)
        del base
        assert dead() is None
    finally:
        gc.enable()


def test_global_hooks_and_those_of_the_base_run_once(device):
    calls = []
    handles = [
        optimizer.register_optimizer_step_pre_hook(lambda *_: calls.append("any, before")),
        optimizer.register_optimizer_step_post_hook(lambda *_: calls.append("any, after")),
    ]
    loop = Loop(device)
    loop.sam.base_optimizer.register_step_post_hook(lambda *_: calls.append("base"))
    loop.sam.register_step_post_hook(lambda *_: calls.append("sam"))
    loop.sam.step(loop.closure)
    for handle in handles:
        handle.remove()
    assert calls == ["any, before", "base", "sam", "any, after"]


@pytest.mark.parametrize("where", ["ascend", "micro_batch"])
def test_a_copy_inside_of_a_pass_is_refused(device, where):
    # it would stand at w + ε for ever
    loop = Loop(device)
    loop.loss().backward()
    with getattr(loop.sam, where)():
        with pytest.raises(
            HDFError, match=r"copy: copy after .*expected outside of a pass, found one inside"
        ):
            copy.deepcopy((loop.model, loop.sam))
        loop.loss().backward()
    copy.deepcopy((loop.model, loop.sam))


@pytest.mark.parametrize("in_place", [False, True])
def test_an_exception_at_the_end_of_the_first_call_leaves_no_gradient(device, in_place):
    loop = Loop(device)
    loop.loss().backward()  # of another batch

    def fails():
        loop.sam.zero_grad(set_to_none=not in_place)
        fail_after(loop.loss().backward())

    with pytest.raises(RuntimeError, match="out of memory"):
        loop.sam.step(fails)
    assert all(p.grad is None for p in loop.model.parameters())


def test_a_refused_closure_leaves_no_gradient(device):
    # it had been added to some of the earlier ones
    loop = Loop(device, clear=lambda: None)
    loop.closure()
    with pytest.raises(HDFError, match=r"closure: accumulate without .*expected one that clears"):
        loop.sam.step(loop.closure)
    assert all(p.grad is None for p in loop.model.parameters())


def test_a_closure_that_leaves_one_gradient_and_makes_another_is_refused(device):
    loop = Loop(device)
    loop.model.bias.grad = torch.ones_like(loop.model.bias)
    with pytest.raises(HDFError, match=r"closure: accumulate without .*expected one that clears"):
        loop.sam.step(lambda: loop.model.weight.square().sum().backward())


def test_plain_steps_by_closure_count_at_rate_zero_too(device):
    loop, due = Loop(device, every=3), []
    loop.sam.param_groups[0]["lr"] = 0.0
    for _ in range(4):
        due.append(loop.sam.due)
        loop.sam.step(loop.closure)
        loop.sam.zero_grad()
    assert due == [True, False, False, True]


def test_a_closure_that_clears_in_place_after_a_pass_that_left_zeros(device):
    loop = Loop(device)
    loop.loss().backward()
    loop.sam.zero_grad(set_to_none=False)
    with loop.sam.ascend():
        pass  # the zeros come back, with the mark of a second pass
    loop.clear = lambda: loop.sam.base_optimizer.zero_grad(set_to_none=False)
    loop.sam.step(loop.closure)
    assert torch.equal(loop.weights, one_step(device))


def test_a_closure_that_does_nothing_after_a_step_that_was_given_up_is_refused(device):
    loop = Loop(device)
    with loop.sam.micro_batch():
        loop.ascend()

    def clears_earlier_ones():
        with loop.sam.micro_batch():
            loop.loss().backward()
            with loop.sam.ascend():
                loop.model.zero_grad()
                loop.loss().backward()

    with pytest.raises(HDFError, match=r"zero_grad.. in the second pass"):
        clears_earlier_ones()
    loop.loss().backward()
    with pytest.raises(
        HDFError, match=r"closure: clear the .*expected the gradients of a whole step"
    ):
        loop.sam.step(lambda: 1.0)
