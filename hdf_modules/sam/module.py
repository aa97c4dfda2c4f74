"""Sharpness-aware minimization as a gradient transform around any optimizer."""

from __future__ import annotations

import math
import warnings
import weakref
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from torch.amp import GradScaler
from torch.optim import Optimizer

from hdf_modules.errors import HDFError, at_least
from hdf_modules.sam.ascent import (
    climb,
    global_norm,
    mean_over_ranks,
    restore,
    spoil,
    with_gradient,
)
from hdf_modules.sam.second_pass import RandomReplay, parts_told, second_pass
from hdf_modules.sam.wrapper import OptimizerWrapper, called_by_scaler


@dataclass
class Step:
    """Where a step stands: one object, so that whatever forwards attributes to SAM writes here too.

    Attributes:
        grad_norm: g of the last first pass.
        sharpness_gap: L(w + ε) − L(w) of the last step by closure.
        ascending: the weights are at w + ε.
        ascended: ``.grad`` holds the SAM gradient.
        aside: gradients of earlier micro-batches.
    """

    grad_norm: float = math.nan
    sharpness_gap: Any = None
    ascending: bool = False
    ascended: bool = False
    aside: dict[Tensor, Tensor] = field(default_factory=dict)


class SAM(OptimizerWrapper):
    r"""Sharpness-aware minimization: the gradient at the worst nearby weights, for any optimizer.

    Foret et al., *Sharpness-Aware Minimization for Efficiently Improving Generalization*, ICLR
    2021, Algorithm 1, and with ``adaptive`` Kwon et al., *ASAM*, ICML 2021, Section 3:

    .. math::
        \epsilon = \rho \frac{\nabla L(w)}{\|\nabla L(w)\|_2}, \qquad
        \epsilon_\text{adaptive} = \rho \frac{w^2 \nabla L(w)}{\|w \nabla L(w)\|_2}, \qquad
        \text{gradient} = \nabla L(w + \epsilon)

    The norm runs over all parameter groups together. After an ordinary backward pass, `ascend`
    moves the weights by ε for a second forward and backward pass and puts them back from copies;
    ``.grad`` then holds the SAM gradient, and clipping, scaling, schedulers and the step work as
    ever. This is a ``torch.optim.Optimizer`` that shares ``param_groups`` and ``state`` with
    ``base_optimizer``.

    Deviations: ASAM's released code adds 0.01 to \|w\| and leaves biases out; here the formula
    holds for every parameter, so a weight of exactly zero is not moved. A zero gradient moves
    nothing. A non-finite gradient moves nothing either, and the second one then counts as
    non-finite, so a ``GradScaler`` skips the step and backs off.

    Args:
        base_optimizer: the optimizer that steps. A ``rho`` or ``adaptive`` in one of its parameter
            groups holds for that group; ``rho=0`` there leaves the weights where they are.
        rho: radius ρ > 0 of the neighbourhood; the paper uses 0.05.
        adaptive: scale ε by the weights (ASAM); its authors use a ten times larger ρ.
        model: the model whose forward passes are repeated. With it, dropout masks match across the
            two passes. Running statistics are frozen either way, but in a compiled model only
            with it.
        criterion: the loss, where `ascend` and `step` are not given one. A loss with a state (group
            weights, a memory, λ) has to be known to SAM, or it counts each batch twice.
        every: make each k-th step, from the first on, a SAM step and those in between plain ones.
            `due` tells which comes next.

    Attributes:
        grad_norm: g = ‖∇L(w)‖ of the last first pass, free of the loss scale, before clipping, and
            under ``torch.distributed`` averaged over the ranks, which all have to call `ascend`.
        sharpness_gap: L(w + ε) − L(w) of the last ``step(closure)``, a diagnostic of flatness; in
            a loop of your own it is the difference of the two losses. A criterion that is rescaled
            between them reports its own, with one λ: ``criterion.terms["sharpness_gap"]``.

    Raises:
        HDFError: for an argument out of its range.

    Example:
        >>> model = torch.nn.Linear(2, 1)
        >>> sam = SAM(torch.optim.SGD(model.parameters(), lr=0.1), model=model)
        >>> x = torch.ones(4, 2)
        >>> model(x).square().mean().backward()
        >>> with sam.ascend():
        ...     model(x).square().mean().backward()
        >>> sam.step()
        >>> sam.zero_grad()
    """

    def __init__(
        self,
        base_optimizer: Optimizer,
        rho: float = 0.05,
        *,
        adaptive: bool = False,
        model: nn.Module | None = None,
        criterion: object = None,
        every: int = 1,
    ) -> None:
        if not isinstance(base_optimizer, Optimizer):
            found = type(base_optimizer).__name__
            raise HDFError("base_optimizer", "a torch.optim.Optimizer", found)
        if model is not None and not isinstance(model, nn.Module):
            raise HDFError("model", "a torch.nn.Module or None", type(model).__name__)
        _check_radius(rho, isinstance(rho, (int, float)) and 0 < rho < math.inf)
        at_least("every", every, 1)
        self.model, self.criterion, self.every = model, criterion, every
        self._now, self._replay = Step(), RandomReplay()
        super().__init__(base_optimizer, {"rho": rho, "adaptive": adaptive})
        if model is not None:
            handle = model.register_forward_pre_hook(self._replay)
            weakref.finalize(self, handle.remove)

    def __setstate__(self, state: dict[str, Any]) -> None:
        """Set the attributes and follow the base optimizer's steps, whoever calls them."""
        super().__setstate__(state)
        self.base_optimizer.register_step_post_hook(self._stepped)

    @property
    def grad_norm(self) -> float:
        """Gradient norm of the last first pass; NaN before that."""
        return self._now.grad_norm

    @property
    def sharpness_gap(self) -> Any:
        """L(w + ε) − L(w) of the last ``step(closure)``; None before that."""
        return self._now.sharpness_gap

    @property
    def due(self) -> bool:
        """Whether the next step is a SAM step."""
        return self.param_groups[0]["sam_steps"] % self.every == 0

    @contextmanager
    def ascend(self, criterion: object = None, scaler: GradScaler | None = None) -> Iterator[None]:
        """Hold the weights at w + ε for the second forward and backward pass.

        Call it after the first backward pass, with the gradients as that left them: not clipped,
        not unscaled. With DistributedDataParallel, the first forward and backward may run under
        ``no_sync()``: ε is then each rank's own. Inside, ``.grad`` starts empty, running statistics
        and the criterion's buffers keep their values, and with ``model`` given dropout repeats
        itself. On exit, by an exception too, the weights are bit for bit what they were and
        ``.grad`` holds the gradient of the second pass alone.

        Gradient accumulation, exactly: the first pass over all micro-batches, then the second one
        over all of them inside ``ascend``. One micro-batch at a time: see `micro_batch`.

        Args:
            criterion: the loss; by default SAM's own. What it has of `Criterion` is used:
                ``rescale(g)`` before the second pass, ``frozen()`` around it. One without it is not
                told, but the modules in it that have it are.
            scaler: the ``GradScaler`` that scaled the loss, so that g can be divided by its scale.

        Raises:
            HDFError: without gradients, with sparse ones, or inside another ``ascend``.
        """
        now, criterion = self._now, self.criterion if criterion is None else criterion
        if now.ascending:
            raise HDFError("ascend", "one at a time", "one inside another")
        parts = with_gradient(self.param_groups)
        norm = global_norm([part.grads for part in parts])
        scale = 1.0 if scaler is None else scaler.get_scale()
        now.grad_norm = mean_over_ranks(norm / scale, parts[0].params[0].device)
        finite = math.isfinite(now.grad_norm)
        # Under a scaler an overflow is routine and no news to the criterion.
        for part in parts_told(criterion) if finite or scaler is None else ():
            if hasattr(part, "rescale"):
                part.rescale(now.grad_norm)
        weights = [(part.params, [p.detach().clone() for p in part.params]) for part in parts]
        now.ascending = True
        try:
            with second_pass(self.model, criterion, self._replay):
                if finite:
                    climb(parts, norm)
                del parts  # or it would hold the first pass's gradients through the second
                self.base_optimizer.zero_grad()
                for p, grad in now.aside.items():
                    p.grad = grad
                now.aside = {}
                yield
        finally:
            now.ascending, now.ascended = False, True
            restore(weights)
        if not finite:
            spoil(self.param_groups)

    @contextmanager
    def micro_batch(self) -> Iterator[None]:
        """Accumulate SAM gradients one micro-batch at a time: m-sharpness, Foret et al., Section 3.

        Inside, ``.grad`` starts empty; run both passes of one micro-batch there. The gradients of
        earlier micro-batches are put aside, and the second pass adds to them. Another objective
        than the exact form: every micro-batch has its own ε.
        """
        # DDP's gradients can be views of a buffer that the next backward pass overwrites
        owners = [p for group in self.param_groups for p in group["params"] if p.grad is not None]
        self._now.aside = {p: p.grad.clone() for p in owners}
        self.zero_grad()
        try:
            yield
        finally:
            for p, grad in self._now.aside.items():  # still here after a plain step's only pass
                p.grad = grad if p.grad is None else grad.add_(p.grad)
            self._now.aside = {}

    def step(self, closure: Callable[[], Any] | None = None, *, criterion: object = None) -> Any:
        """Step the base optimizer on the gradients that are there, or run both passes first.

        Args:
            closure: clears the gradients, runs forward and backward, returns the loss; called
                twice. After `ascend`, and where no SAM step is `due`, it goes to the base
                optimizer. With a ``GradScaler`` use `ascend` and ``scaler.step(sam)`` instead.
            criterion: as for `ascend`.

        Returns:
            The loss of the first pass; None without a closure.

        Raises:
            HDFError: if the closure leaves no gradients, or if a ``GradScaler`` passes it on, whose
                scale would then multiply the update.
        """
        if closure is None:
            if not self._now.ascended and self.due and _moves(self.param_groups):
                hint = "use `with sam.ascend():` for the second pass, or step base_optimizer itself"
                warnings.warn(f"SAM.step() without ascend() is a plain step; {hint}", stacklevel=3)
            return self.base_optimizer.step()
        if called_by_scaler():
            hint = "run the passes with `with sam.ascend(scaler=scaler)`, then scaler.step(sam)"
            raise HDFError("closure", "none when a GradScaler steps", "a closure", hint)
        if self._now.ascended or not self.due:
            return self.base_optimizer.step(closure)
        with torch.enable_grad():
            loss = closure()
            with self.ascend(criterion):
                second = closure()
        with_gradient(self.param_groups)  # raises if the second pass left none
        own = None if loss is None else _value(second) - _value(loss)
        terms = getattr(self.criterion if criterion is None else criterion, "terms", None)
        told = terms if isinstance(terms, Mapping) else {}
        self._now.sharpness_gap = told.get("sharpness_gap", own)
        self.base_optimizer.step()
        return loss

    def zero_grad(self, set_to_none: bool = True) -> None:
        """Clear the gradients of all parameters."""
        if not self._now.ascending:
            self._now.ascended = False
        super().zero_grad(set_to_none)

    def complete_groups(self) -> None:
        """Give each parameter group ρ and the rest, and check what it brought."""
        super().complete_groups()
        self.param_groups[0].setdefault("sam_steps", 0)
        for group in self.param_groups:
            _check_radius(group["rho"], 0 <= group["rho"] < math.inf)

    def _stepped(self, *_: Any) -> None:
        self._replay.states.clear()
        self._now.ascended = False
        groups = self.param_groups
        groups[0]["sam_steps"] += _moves(groups)


def _check_radius(rho: Any, valid: bool) -> None:
    if not valid:
        raise HDFError("rho", "a finite number > 0", rho, "the paper uses 0.05")


def _moves(groups: list[dict[str, Any]]) -> bool:
    """Tell a step from torch.distributed.checkpoint's, which makes the state at rate zero."""
    return any(bool(group.get("lr", 1)) for group in groups)


def _value(loss: Any) -> Any:
    return loss.detach() if isinstance(loss, Tensor) else loss
