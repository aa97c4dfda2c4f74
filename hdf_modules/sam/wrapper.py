"""An optimizer around another one, with nothing of its own but what it adds."""

from __future__ import annotations

import inspect
import math
import sys
import weakref
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any

from torch import Tensor
from torch.optim import Optimizer

from hdf_modules.errors import HDFError
from hdf_modules.sam.ascent import SECOND, grads_of, mark, moves, radius
from hdf_modules.sam.second_pass import RandomReplay

HOOKS = (
    "_optimizer_step_pre_hooks",
    "_optimizer_step_post_hooks",
    "_optimizer_state_dict_pre_hooks",
    "_optimizer_state_dict_post_hooks",
    "_optimizer_load_state_dict_pre_hooks",
    "_optimizer_load_state_dict_post_hooks",
)
INNER = ("base_optimizer", "optimizer", "_base_optimizer", "_optimizer")
OPTIONS = ("rho", "adaptive")  # of a parameter group; with "sam_" before where the base has them


def layers(optimizer: Any) -> list[Any]:
    """Return the optimizer and those that it wraps, the outermost first."""
    found = [optimizer]
    while True:
        attributes = getattr(found[-1], "__dict__", {})
        inner = [attributes[name] for name in INNER if hasattr(attributes.get(name), "step")]
        if not inner or any(inner[0] is layer for layer in found):
            return found
        found.append(inner[0])


@dataclass
class Step:
    """Where a step stands: one object, so that whatever forwards attributes to SAM writes here too.

    Attributes:
        every: of how many steps one is a SAM step.
        replay: holds the random states of the first pass.
        grad_norm: g of the last first pass.
        sharpness_gap: L(w + ε) − L(w) of the last step by closure.
        ascending: the weights are at w + ε.
        aside: gradients of earlier micro-batches; None outside `SAM.micro_batch`.
        given_up: what makes the gradients of the step useless, until they are cleared.
        empty: the last second pass left no gradient.
        views: it left views of a buffer that outlives them, on which no mark is put (DDP).
        in_place: the gradients were cleared to zeros.
        count: how many steps there are with the one that the base takes now.
    """

    every: int
    replay: RandomReplay = field(default_factory=RandomReplay)
    grad_norm: float = math.nan
    sharpness_gap: Any = None
    ascending: bool = False
    aside: dict[Tensor, Tensor] | None = None
    given_up: str = ""
    empty: bool = False
    views: bool = False
    in_place: bool = False
    count: int = 0

    def due(self, groups: Sequence[dict[str, Any]]) -> bool:
        """Tell whether the next step is a SAM step; every group knows how many there were."""
        return max((group.get("sam_steps", 0) for group in groups), default=0) % self.every == 0

    @property
    def stale(self) -> bool:
        """Whether there may be nothing to step on."""
        return self.empty or bool(self.given_up)

    def of_second_pass(self, groups: Sequence[dict[str, Any]]) -> bool:
        """Tell whether the gradients are those that `SAM.ascend` left."""
        return self.views or any(hasattr(grad, SECOND) for grad in grads_of(groups))

    def left(self, groups: Sequence[dict[str, Any]]) -> None:
        """Note what gradients a second pass left."""
        grads = grads_of(groups)
        self.empty, self.views = not grads, any(grad._is_view() for grad in grads)
        mark([grad for grad in grads if not grad._is_view()], SECOND)

    def cleared(self, groups: Sequence[dict[str, Any]], set_to_none: bool) -> None:
        """Note that the gradients are no more."""
        mark(grads_of(groups), SECOND, False)
        self.replay.cleared()
        self.given_up, self.empty, self.views = "", False, False
        self.in_place = not set_to_none

    def before(self, optimizer: Any, args: Any, kwargs: Any) -> None:
        """Refuse a step inside a pass, and number it: called before each step of the base."""
        groups = optimizer.param_groups
        if self.ascending or self.aside is not None:
            hint = "step after the block of ascend() or micro_batch(), whose end undoes it"
            raise HDFError("step", "outside of a pass", "one inside", hint)
        self.count = max((group.get("sam_steps", 0) for group in groups), default=0)
        plain = self.count % self.every != 0
        closure = any(callable(each) for each in (*args[1:], kwargs.get("closure")))
        self.count += closure or moves(groups, zero_rate=plain) or self.of_second_pass(groups)

    def after(self, optimizer: Any, *_: Any) -> None:
        """Begin a new step: called after each step of the base optimizer."""
        self.replay.states.clear()
        self.empty = self.views = False
        mark(grads_of(optimizer.param_groups), SECOND, False)
        for group in optimizer.param_groups:
            group["sam_steps"] = self.count


class OptimizerWrapper(Optimizer):
    """A real ``torch.optim.Optimizer`` whose parameter groups and state are the base optimizer's.

    Whatever reads or writes one sees the other: schedulers, scalers, clippers, checkpoints. What a
    subclass adds lives in the parameter groups, so that every way of saving an optimizer saves it:
    as ``rho``, or ``sam_rho`` around an optimizer that has a ``rho`` of its own (Adadelta). Hooks
    are those of the innermost optimizer, whose step runs them once.

    Args:
        base_optimizer: the optimizer that owns groups and state.
        options: what each parameter group gets unless it brings its own.
        now: where the step stands.

    Attributes:
        names: what the options are called in a group.
    """

    base_optimizer: Any
    now: Step
    names: dict[str, str]

    def __init__(self, base_optimizer: Any, options: dict[str, Any], now: Step) -> None:
        # Optimizer.__init__ would replace the groups and the state that the base owns; __setstate__
        # is how torch itself sets up an optimizer around existing ones.
        inner = layers(base_optimizer)[-1]
        before = dict(getattr(inner, "defaults", {}))
        self.__setstate__({"base_optimizer": base_optimizer, "options": options, "now": now})
        for name in self.names.values() if "sam_steps" in before else ():
            for group in self.param_groups:  # what a wrapper before this one gave it
                if group[name] == before[name]:
                    group[name] = self.defaults[name]

    def __setstate__(self, state: dict[str, Any]) -> None:
        """Set the attributes and link to the base optimizer, which pickles without its hooks."""
        every = layers(state["base_optimizer"])
        inner, base = every[-1], [getattr(layer, "defaults", {}) for layer in every]
        wrapped = "sam_steps" in base[-1]  # then some of these are this class's
        self.names = {
            name: f"sam_{name}"
            if any(name in each for each in base) and (not wrapped or f"sam_{name}" in base[-1])
            else name
            for name in OPTIONS
        }
        own = {self.names.get(name, name): value for name, value in state["options"].items()}
        super().__setstate__({**state, "defaults": base[0] | own})
        for name in HOOKS:
            if hasattr(inner, name):
                setattr(self, name, getattr(inner, name))
        base[-1].update(own)  # so that groups which are added to it get them too
        self._runs_hooks = getattr(type(inner).step, "hooked", False)
        # None of these holds the wrapper, or the base optimizer would hold what holds it.
        for handle in (
            self.register_step_pre_hook(self.now.before),
            self.register_step_post_hook(self.now.after),
            self.register_load_state_dict_pre_hook(partial(_completed, tuple(own))),
        ):
            weakref.finalize(self, handle.remove)
        self.complete_groups()
        offer_to_accelerate()

    def __getstate__(self) -> dict[str, Any]:
        """Return the attributes without hooks and without the wrapper a scheduler puts on step."""
        if self.now.ascending or self.now.aside is not None:
            hint = "copy after the block of ascend() or micro_batch(), which moved what it copies"
            raise HDFError("copy", "outside of a pass", "one inside", hint)
        skipped = ("_optimizer_", "_zero_grad_", "_opt_called")
        return {k: v for k, v in vars(self).items() if k != "step" and not k.startswith(skipped)}

    def __getattr__(self, name: str) -> Any:
        """Return what only the base optimizer has, such as ``train`` and ``eval``."""
        base = vars(self).get("base_optimizer")
        if base is None or name.startswith("_"):
            raise AttributeError(f"{type(self).__name__} has no attribute {name!r}")
        return getattr(base, name)

    @property
    def param_groups(self) -> list[dict[str, Any]]:
        """The base optimizer's parameter groups."""
        return self.base_optimizer.param_groups

    @param_groups.setter
    def param_groups(self, groups: list[dict[str, Any]]) -> None:
        self.base_optimizer.param_groups = groups

    @property
    def state(self) -> Any:
        """The base optimizer's state."""
        return self.base_optimizer.state

    @state.setter
    def state(self, state: Any) -> None:
        self.base_optimizer.state = state

    def add_param_group(self, param_group: dict[str, Any]) -> None:
        """Add a group to the base optimizer; it may bring its own options."""
        self.base_optimizer.add_param_group(param_group)
        self.complete_groups()

    def state_dict(self) -> dict[str, Any]:
        """Return the base optimizer's state dict, whose groups carry this one's options too."""
        return self.base_optimizer.state_dict()

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Load a state dict of this optimizer, or of the base optimizer alone."""
        self.base_optimizer.load_state_dict(_completed(tuple(self.defaults), self, state_dict))
        self.complete_groups()
        offer_to_accelerate()

    def zero_grad(self, set_to_none: bool = True) -> None:
        """Clear the gradients of all parameters."""
        self.base_optimizer.zero_grad(set_to_none)

    def complete_groups(self) -> None:
        """Give each parameter group the options that it lacks, and check its ρ."""
        for group in self.param_groups:
            for name, value in self.defaults.items():
                group.setdefault(name, value)
            group[self.names["rho"]] = radius(group[self.names["rho"]], zero=True)

    def step_base(self, *closure: Callable[[], Any], **options: Any) -> Any:
        """Step the base optimizer, its hooks around it."""
        if self._runs_hooks:
            return self.base_optimizer.step(*closure, **options)
        run: Any = Optimizer.profile_hook_step(
            lambda self, *a, **k: self.base_optimizer.step(*a, **k)
        )
        return run(self, *closure, **options)

    def _patch_step_function(self) -> None:
        """Leave `step` as it is: torch would run hooks around it, and the base's step does."""


def check_base(base: Any) -> None:
    """Raise unless this optimizer steps on the gradients that are there."""
    parts = ("param_groups", "step", "zero_grad")
    if isinstance(base, type) or not all(hasattr(base, part) for part in parts):
        found = base.__name__ if isinstance(base, type) else type(base).__name__
        raise HDFError("base_optimizer", "a torch.optim.Optimizer", found)
    for layer in layers(base):
        name = type(layer).__name__
        if isinstance(layer, OptimizerWrapper) or name.endswith("SAM"):
            hint = "give SAM the optimizer inside: one moves the weights already"
            raise HDFError("base_optimizer", "an optimizer that is no SAM", name, hint)
        closure = inspect.signature(layer.step).parameters.get("closure")
        if closure is not None and closure.default is inspect.Parameter.empty:
            hint = "use it without SAM, or another base: it evaluates the loss where it likes"
            raise HDFError("base_optimizer", "one that steps without a closure", name, hint)


def _completed(names: Iterable[str], optimizer: Any, state_dict: Any) -> Any:
    """Return a state dict whose groups say all that those of the optimizer do.

    One of the base alone leaves out what it does not know, and torch would then forget it.
    """
    saved = [dict(group) for group in state_dict.get("param_groups", ())]
    if len(saved) != len(optimizer.param_groups):
        return state_dict  # the base says what is wrong
    steps = [group["sam_steps"] for group in saved if "sam_steps" in group]
    for group, now in zip(saved, optimizer.param_groups, strict=True):
        for name in names:
            if name in now:
                group.setdefault(name, max(steps) if name == "sam_steps" and steps else now[name])
    return {**state_dict, "param_groups": saved}


def offer_to_accelerate() -> None:
    """Let what ``accelerator.prepare`` makes of such an optimizer offer all that this one does."""
    wrapper: Any = getattr(sys.modules.get("accelerate.optimizer"), "AcceleratedOptimizer", None)
    if wrapper is None or "__getattr__" in vars(wrapper):
        return

    def forward(self: Any, name: str) -> Any:
        inner = vars(self).get("optimizer")
        if isinstance(inner, OptimizerWrapper) and not name.startswith("_"):
            return getattr(inner, name)
        raise AttributeError(f"{type(self).__name__} has no attribute {name!r}")

    wrapper.__getattr__ = forward
