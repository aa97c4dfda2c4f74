"""Sharpness-aware minimization as a gradient transform around any optimizer."""

from __future__ import annotations

import math
import warnings
import weakref
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.amp import GradScaler
from torch.optim import Optimizer

from hdf_modules.errors import HDFError
from hdf_modules.sam.ascent import global_norm, mean_over_ranks, perturb, restore, spoil
from hdf_modules.sam.second_pass import (
    RandomReplay,
    discard_gathered,
    frozen_statistics,
    no_stale_casts,
)
from hdf_modules.sam.step import (
    Step,
    check_arguments,
    check_criterion,
    check_gradients,
    check_rho,
    with_gradient,
)
from hdf_modules.sam.wrapper import OptimizerWrapper, called_by_scaler


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
        every: int = 1,
    ) -> None:
        check_arguments(base_optimizer, rho, model, every)
        self.model, self.every = model, every
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
    def ascend(self, criterion: Any = None, scaler: GradScaler | None = None) -> Iterator[None]:
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
            criterion: its ``rescale(g)`` is called before the second pass.
            scaler: the ``GradScaler`` that scaled the loss, so that g can be divided by its scale.

        Raises:
            HDFError: without gradients, with sparse ones, inside another ``ascend``, or for a
                criterion without ``rescale``.
        """
        if self._now.ascending:
            raise HDFError("ascend", "one at a time", "one inside another")
        gradients = with_gradient(self.param_groups)
        check_gradients(gradients)
        self._measure(gradients, criterion, scaler)
        weights = list(gradients)
        del gradients  # or it would hold the first pass's gradients through the second
        copies = [p.detach().clone() for p in weights]
        self._now.ascending = True
        try:
            with frozen_statistics(self.model, criterion), self._replay.again(), no_stale_casts():
                if math.isfinite(self.grad_norm):
                    perturb(self.param_groups)
                self._clear_gradients()
                yield
        finally:
            self._now.ascending, self._now.ascended = False, True
            restore(weights, copies)
            discard_gathered(self.model)
        if not math.isfinite(self.grad_norm):
            spoil(self.param_groups)

    @contextmanager
    def micro_batch(self) -> Iterator[None]:
        """Accumulate SAM gradients one micro-batch at a time: m-sharpness, Foret et al., Section 3.

        Inside, ``.grad`` starts empty; run both passes of one micro-batch there. The gradients of
        earlier micro-batches are put aside, and the second pass adds to them. Another objective
        than the exact form: every micro-batch has its own ε.
        """
        # DDP's gradients can be views of a buffer that the next backward pass overwrites
        self._now.aside = {p: grad.clone() for p, grad in with_gradient(self.param_groups).items()}
        self.zero_grad()
        try:
            yield
        finally:
            for p, grad in self._now.aside.items():  # still here after a plain step's only pass
                p.grad = grad if p.grad is None else grad.add_(p.grad)
            self._now.aside = {}

    def step(self, closure: Callable[[], Any] | None = None, *, criterion: Any = None) -> Any:
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
            self._warn_if_plain()
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
        check_gradients(with_gradient(self.param_groups))
        own = None if loss is None else _value(second) - _value(loss)
        self._now.sharpness_gap = getattr(criterion, "terms", {}).get("sharpness_gap", own)
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
            check_rho(group["rho"], 0 <= group["rho"] < math.inf)

    def _measure(
        self, gradients: dict[Tensor, Tensor], criterion: Any, scaler: GradScaler | None
    ) -> None:
        check_criterion(criterion)
        scale = 1.0 if scaler is None else scaler.get_scale()
        norm = global_norm(list(gradients.values())) / scale
        self._now.grad_norm = mean_over_ranks(norm, next(iter(gradients)).device)
        # Under a scaler an overflow is routine and no news to the criterion.
        if criterion is not None and (scaler is None or math.isfinite(self.grad_norm)):
            criterion.rescale(self.grad_norm)

    def _clear_gradients(self) -> None:
        self.zero_grad()
        for p, grad in self._now.aside.items():
            p.grad = grad
        self._now.aside = {}

    def _stepped(self, *_: Any) -> None:
        self._replay.forget()
        self._now.ascended = False
        self.param_groups[0]["sam_steps"] += self._moves()

    def _moves(self) -> bool:
        """Tell a step from torch.distributed.checkpoint's, which makes the state at rate zero."""
        return any(bool(group.get("lr", 1)) for group in self.param_groups)

    def _warn_if_plain(self) -> None:
        if self.due and not self._now.ascended and self._moves():
            hint = "run the second pass in `with sam.ascend():`, or step base_optimizer if meant so"
            warnings.warn(f"SAM.step() without ascend() is a plain step; {hint}", stacklevel=4)


def _value(loss: Any) -> Any:
    return loss.detach() if isinstance(loss, Tensor) else loss
