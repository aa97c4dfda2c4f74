"""Any order of public calls: each is what a naive SAM does, or an error or a warning says so."""

import copy
import warnings
from contextlib import contextmanager

import pytest
import torch
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    initialize,
    invariant,
    rule,
    run_state_machine_as_test,
)
from torch import nn

from hdf_modules import SAM, HDFError
from tests.support.reference.sam import norm

MOMENTUM = 0.9
BY, FLAG, BATCH = st.sampled_from(["sam", "base", "model"]), st.booleans(), st.integers(0, 3)
EVERY = st.sampled_from([1, 1, 2, 3])
RATES, RADII = st.sampled_from([0.0, 0.1, 0.3]), st.sampled_from([0.0, 0.2, 1.0])


def loss_of(model, x, i):
    """Every second batch leaves the last layer without a gradient."""
    hidden = model[0](x[i]).tanh()
    return (model[1](hidden).tanh() - 1).pow(4).mean() if i % 2 else hidden.pow(3).mean()


class PassError(Exception):
    """What a pass may run into."""


class Counting(nn.Module):
    """A criterion with a state: it counts batches and remembers g."""

    def __init__(self):
        super().__init__()
        self.seen, self.g, self.still = 0, None, False

    def forward(self, loss):
        self.seen += not self.still
        return loss

    def rescale(self, grad_norm):
        self.g = grad_norm

    @contextmanager
    def frozen(self):
        self.still = True
        try:
            yield
        finally:
            self.still = False


class Naive:
    """SGD with momentum at the gradient of SAM, from the definitions, on tensors of its own.

    Attributes:
        of_second: the parameters whose gradient comes from a second pass.
        spoiled: some of the gradients are those of an aborted step.
    """

    def __init__(self, model, groups, every):
        self.model, self.groups, self.every = copy.deepcopy(model), groups, every
        self.weights = list(self.model.parameters())
        self.momenta, self.steps, self.of_second, self.spoiled = {}, 0, set(), False

    @property
    def members(self):
        return [i for group in self.groups for i in group["params"]]

    @property
    def grads(self):
        return [w.grad for w in self.weights]

    @property
    def due(self):
        return self.steps % self.every == 0

    def ready(self):
        """Tell whether there are gradients of a first pass, and nothing else."""
        found = [i for i in self.members if self.weights[i].grad is not None]
        return bool(found) and not self.of_second & set(found) and not self.spoiled

    def ascend(self, second):
        """Replace the gradients by those that ``second`` leaves at w + ε; give ‖∇L(w)‖."""
        first = {i: self.weights[i].grad for i in self.members}
        first = {i: grad.clone() for i, grad in first.items() if grad is not None}
        parts = {i: g for g in self.groups for i in g["params"] if i in first}
        scale = {
            i: self.weights[i].detach().abs() if group["adaptive"] else 1
            for i, group in parts.items()
        }
        length = norm([scale[i] * grad for i, grad in first.items()])
        before = {i: self.weights[i].detach().clone() for i in first}
        with torch.no_grad():
            for i, group in parts.items():
                if length:
                    self.weights[i] += group["rho"] * scale[i] ** 2 * first[i] / length
        self.clear(self.members, in_place=False)
        second()
        with torch.no_grad():
            for i, weight in before.items():
                self.weights[i].copy_(weight)
        for i, grad in first.items():  # zeros that clearing in place left
            if self.weights[i].grad is None and not grad.any():
                self.weights[i].grad = torch.zeros_like(grad)
        self.of_second = {i for i in self.members if self.weights[i].grad is not None}
        return norm(list(first.values()))

    def step(self, closure=False):
        rates = any(group["lr"] for group in self.groups)
        own = self.of_second & set(self.members)
        # at rate zero it counts where there was something to step on
        plain = not self.due and any(g is not None and g.any() for g in self.grads)
        self.steps += bool(closure or rates or own or plain)
        self.of_second -= own
        for group in self.groups:
            for i in group["params"]:
                if (grad := self.weights[i].grad) is not None:
                    old = self.momenta.get(i)
                    self.momenta[i] = grad.clone() if old is None else MOMENTUM * old + grad
                    self.weights[i].data -= group["lr"] * self.momenta[i]

    def clear(self, places, in_place):
        for i in places:
            grad = self.weights[i].grad
            self.weights[i].grad = None if grad is None or not in_place else grad * 0

    def drop(self):
        """Drop the gradients, as an aborted pass does."""
        self.clear(self.members, in_place=False)
        self.of_second -= set(self.members)

    @contextmanager
    def aside(self):
        """Add the gradients of the body, which starts without any, to those of before."""
        kept = {i: self.weights[i].grad for i in self.members}
        self.drop()
        yield kept
        for i, grad in kept.items():
            new = self.weights[i].grad
            total = grad if new is None else new if grad is None else grad + new
            self.weights[i].grad = total
            if self.of_second and total is not None:
                self.of_second.add(i)

    def state(self):
        return copy.deepcopy((self.groups, self.momenta, self.steps))


def refused(call):
    with pytest.raises(HDFError):
        call()


INSIDE = {
    "step": lambda m: refused(m.sam.step),
    "step of the base": lambda m: refused(m.sam.base_optimizer.step),
    "step(closure)": lambda m: refused(lambda: m.sam.step(lambda: m.real_pass(1))),
    "ascend": lambda m: refused(lambda: m.sam.ascend().__enter__()),
    "micro_batch": lambda m: refused(lambda: m.sam.micro_batch().__enter__()),
    "copy": lambda m: refused(lambda: copy.deepcopy((m.model, m.sam))),
    "zero_grad": lambda m: m.sam.zero_grad(),
    "state_dict": lambda m: m.state_dict(by="sam"),
    "load_state_dict": lambda m: m.load_state_dict(by="sam"),
}


class Machine(RuleBasedStateMachine):
    """SAM and `Naive` side by side: every rule calls both."""

    device = None

    @initialize(rho=RADII, other=RADII, adaptive=FLAG, every=EVERY)
    def begin(self, rho, other, adaptive, every):
        torch.manual_seed(0)
        self.model = nn.Sequential(nn.Linear(3, 4), nn.Linear(4, 2)).to(self.device).double()
        self.x = torch.randn(4, 5, 3, device=self.device, dtype=torch.float64)
        self.radius, self.save, self.older = 0.5, None, []
        expected = [
            {"params": [0, 1], "rho": rho, "adaptive": False, "lr": 0.1},
            {"params": [2], "rho": other, "adaptive": adaptive, "lr": 0.1},
        ]  # the last parameter is left for a group that comes later
        self.naive, weights = Naive(self.model, expected, every), list(self.model.parameters())
        groups = [{**group, "params": [weights[i] for i in group["params"]]} for group in expected]
        self.sam = SAM(torch.optim.SGD(groups, momentum=MOMENTUM), self.radius, every=every)
        self.criterion, self.counted = Counting(), 0

    # what steps are made of; those with "real" or "naive" are for one side

    def real_pass(self, *batches):
        for i in batches:
            self.criterion(loss_of(self.model, self.x, i)).backward()

    def naive_pass(self, *batches):
        for i in batches:
            loss_of(self.naive.model, self.x, i).backward()

    def backward(self, *batches):
        self.real_pass(*batches)
        self.naive_pass(*batches)
        self.counted += len(batches)

    def real_clear(self, by, in_place):
        who = {"sam": self.sam, "base": self.sam.base_optimizer, "model": self.model}[by]
        who.zero_grad(set_to_none=not in_place)

    def naive_clear(self, by, in_place):
        places = range(4) if by == "model" else self.naive.members
        self.naive.clear(places, in_place)
        if by == "sam" or not in_place:  # in place, nobody else takes the mark of a pass away
            self.naive.of_second -= set(places)
        if by == "sam":
            self.naive.spoiled = False

    def real_ascend(self, told, *batches, fails=False, inside=lambda: None):
        with self.sam.ascend(self.criterion if told else None):
            inside()
            self.real_pass(*batches)
            if fails:
                raise PassError

    def naive_ascend(self, told, *batches):
        g = self.naive.ascend(lambda: self.naive_pass(*batches))
        self.note(g, told, len(batches))

    def note(self, g, told, count):
        assert self.sam.grad_norm == pytest.approx(g, rel=1e-9)
        self.counted += 0 if told else count
        if told:
            assert self.criterion.g == self.sam.grad_norm

    @property
    def empty(self):
        return all(self.naive.weights[i].grad is None for i in self.naive.members)

    @property
    def zeros(self):
        grads = [self.naive.weights[i].grad for i in self.naive.members]
        return not self.empty and not any(g is not None and g.any() for g in grads)

    # gradients

    @rule(i=BATCH)
    def one_backward(self, i):
        self.backward(i)

    @rule(by=BY, in_place=FLAG)
    def zero_grad(self, by, in_place):
        self.real_clear(by, in_place)
        self.naive_clear(by, in_place)

    @rule(told=FLAG, batches=st.lists(BATCH, max_size=2))
    def ascend(self, told, batches):
        if self.naive.ready():
            self.real_ascend(told, *batches)
            self.naive_ascend(told, *batches)
        else:
            with pytest.raises(HDFError):
                self.real_ascend(told, *batches)

    @rule(told=FLAG, i=BATCH)
    def ascend_fails(self, told, i):
        if self.naive.ready():
            with pytest.raises(PassError):
                self.real_ascend(told, i, fails=True)
            self.naive_ascend(told, i)
            self.naive.drop()

    @rule(i=BATCH, what=st.sampled_from([*INSIDE]))
    def ascend_with_a_call_inside(self, i, what):
        if self.naive.ready():
            self.real_ascend(True, i, inside=lambda: INSIDE[what](self))
            self.naive_ascend(True, i)

    @rule(i=BATCH, passes=st.sampled_from(["as due", "first"]), told=FLAG)
    def micro_batch(self, i, passes, told):
        second = self.naive.due and passes == "as due"

        def real():
            with self.sam.micro_batch():
                self.real_pass(i)
                if second:
                    self.real_ascend(told, i)

        if self.naive.spoiled:
            with pytest.raises(
                HDFError, match=r"micro_batch: clear .*expected the gradients of a whole"
            ):
                real()
            return
        real()
        self.counted += 1
        with self.naive.aside():
            self.naive_pass(i)
            if second:
                self.naive_ascend(told, i)

    @rule(i=BATCH, where=st.sampled_from(["first", "second", "after"]))
    def micro_batch_fails(self, i, where):
        if self.naive.spoiled:
            return
        marks, earlier = set(self.naive.of_second), not self.empty

        def real():
            with self.sam.micro_batch():
                self.real_pass(i)
                if where != "first":
                    self.real_ascend(True, i, fails=where == "second")
                raise PassError

        with pytest.raises(PassError):
            real()
        self.counted += 1
        with self.naive.aside() as kept:
            self.naive_pass(i)
            if where != "first":
                self.naive_ascend(True, i)
        if where == "first":
            for p, grad in kept.items():
                self.naive.weights[p].grad = grad
            # one mark stands for all
            self.naive.of_second = {p for p in kept if marks & set(self.naive.members)}
        if where == "second":
            self.naive.drop()
            self.naive.spoiled = earlier

    # steps

    @rule()
    def step(self):
        plain = not self.naive.of_second & set(self.naive.members)
        rates = any(group["lr"] for group in self.naive.groups)
        if self.naive.spoiled:
            with pytest.raises(
                HDFError, match=r"step: clear the .*expected the gradients of a whole step"
            ):
                self.sam.step()
            return
        with warnings.catch_warnings(record=True) as seen:
            warnings.simplefilter("always")
            try:
                self.sam.step()
            except HDFError:
                assert self.empty
                return
        assert len(seen) == (plain and self.naive.due and rates)
        self.naive.step()

    @rule()
    def step_of_the_base(self):
        self.sam.base_optimizer.step()
        self.naive.step()

    @rule(i=BATCH, by=BY, in_place=FLAG, told=FLAG)
    def step_closure(self, i, by, in_place, told):
        def closure(clear, run):
            clear(by, in_place)
            return run(i)

        due = self.naive.due
        self.sam.step(
            lambda: closure(self.real_clear, self.real_pass),
            criterion=self.criterion if told else None,
        )
        self.counted += 1
        closure(self.naive_clear, self.naive_pass)
        if due:
            self.naive.spoiled = False
            g = self.naive.ascend(lambda: closure(self.naive_clear, self.naive_pass))
            self.note(g, told, 1)
        self.naive.step(closure=True)

    @rule(i=BATCH)
    def step_closure_that_never_clears(self, i):
        due, zeros, empty = self.naive.due, self.zeros, self.empty
        if due and not empty:
            try:
                self.sam.step(lambda: self.real_pass(i))
            except HDFError:
                self.counted += 1
                self.naive_pass(i)
                self.naive.drop()
                return
            assert zeros
        else:
            self.sam.step(lambda: self.real_pass(i))
        self.counted += 1
        self.naive_pass(i)
        if due:
            self.naive.spoiled = False
            self.naive_ascend(False, i)
        self.naive.step(closure=True)

    @rule()
    def step_closure_that_does_nothing(self):
        marked = bool(self.naive.of_second & set(self.naive.members))
        if self.naive.due and self.naive.spoiled and not self.zeros:
            with pytest.raises(
                HDFError, match=r"closure: clear .*expected the gradients of a whole"
            ):
                self.sam.step(lambda: None)
            return
        with warnings.catch_warnings(record=True) as seen:
            warnings.simplefilter("always")
            self.sam.step(lambda: None)
        assert len(seen) == (self.naive.due and not marked and not self.zeros)
        self.naive.step(closure=True)

    @rule(i=BATCH, by=BY, in_place=FLAG, when=st.sampled_from(["first", "after", "second"]))
    def step_closure_fails(self, i, by, in_place, when):
        calls, due = [], self.naive.due

        def closure():
            calls.append(1)
            if when == "first":
                raise PassError
            self.real_clear(by, in_place)
            self.real_pass(i)
            if when == "after" or len(calls) == 2 or not due:
                raise PassError

        with pytest.raises(PassError):
            self.sam.step(closure)
        if when != "first":
            self.counted += len(calls)
            self.naive_clear(by, in_place)
            self.naive_pass(i)
        if len(calls) == 2:
            self.naive.spoiled = False
            self.naive.ascend(lambda: (self.naive_clear(by, in_place), self.naive_pass(i)))
        if due:
            self.naive.drop()

    # the optimizer's life

    @rule(by=st.sampled_from(["sam", "base"]))
    def state_dict(self, by):
        optimizer = self.sam if by == "sam" else self.sam.base_optimizer
        self.save = copy.deepcopy(optimizer.state_dict()), self.naive.state()

    @rule(by=st.sampled_from(["sam", "base"]))
    def load_state_dict(self, by):
        if self.save is None:
            return
        optimizer, (real, naive) = self.sam if by == "sam" else self.sam.base_optimizer, self.save
        if len(naive[0]) != len(self.naive.groups):
            with pytest.raises(ValueError, match="different number of parameter groups"):
                optimizer.load_state_dict(copy.deepcopy(real))
            return
        optimizer.load_state_dict(copy.deepcopy(real))
        self.naive.groups, self.naive.momenta, self.naive.steps = copy.deepcopy(naive)

    @rule(by=st.sampled_from(["sam", "base"]), rho=st.none() | RADII)
    def add_param_group(self, by, rho):
        if len(self.naive.groups) == 3:
            return
        optimizer = self.sam if by == "sam" else self.sam.base_optimizer
        own = {} if rho is None else {"rho": rho}
        optimizer.add_param_group({"params": [self.model[1].bias], "lr": 0.2} | own)
        found = {"params": [3], "rho": self.radius, "adaptive": False, "lr": 0.2} | own
        self.naive.groups.append(found)

    @rule(place=st.sampled_from([0, 1]), rho=RADII, lr=RATES)
    def set_options(self, place, rho, lr):
        for groups in (self.sam.param_groups, self.naive.groups):
            groups[place] |= {"rho": rho, "lr": lr}

    @rule()
    def copy_model_and_optimizer(self):
        self.model, self.sam = copy.deepcopy((self.model, self.sam))
        self.older.clear()
        self.naive.clear(range(4), in_place=False)  # torch copies no gradients
        self.naive.of_second.clear()

    @rule(rho=st.sampled_from([0.3, 0.5]), every=EVERY, keep=FLAG)
    def wrap_again(self, rho, every, keep):
        if keep:
            self.older.append(self.sam)
        self.sam = SAM(self.sam.base_optimizer, rho, every=every)
        for group in self.naive.groups:
            if group["rho"] == self.radius:
                group["rho"] = rho
        self.radius, self.naive.every, self.naive.spoiled = rho, every, False

    # after each of them

    def same(self, found, expected, into):
        """Compare, and let the next call start from the very same bits."""
        assert (found is None) == (expected is None)
        if found is not None:
            torch.testing.assert_close(found, expected, rtol=1e-11, atol=1e-13)
            into.copy_(found)

    @invariant()
    def equal(self):
        if not hasattr(self, "sam"):
            return
        pairs = zip(self.model.parameters(), self.naive.weights, strict=True)
        for i, (p, w) in enumerate(pairs):
            self.same(p.detach(), w.detach(), into=w.data)
            self.same(p.grad, w.grad, into=w.grad)
            momentum = self.naive.momenta.get(i)
            state = self.sam.state.get(p, {})
            self.same(state.get("momentum_buffer"), momentum, into=momentum)
        assert self.sam.due == self.naive.due
        assert self.criterion.seen == self.counted
        for found, group in zip(self.sam.param_groups, self.naive.groups, strict=True):
            assert {name: found[name] for name in ("rho", "adaptive", "lr")} == {
                name: group[name] for name in ("rho", "adaptive", "lr")
            }


def test_any_order_of_calls(device):
    Machine.device = device
    run_state_machine_as_test(Machine, settings=settings(max_examples=150, stateful_step_count=25))
