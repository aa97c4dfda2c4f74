"""Sharpness-aware minimization as a gradient transform around any optimizer."""

from __future__ import annotations

import math
import weakref
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.amp import GradScaler

from hdf_modules.errors import HDFError, at_least, choose
from hdf_modules.sam.ascent import (
    FIRST,
    SECOND,
    climb,
    give,
    global_norm,
    grads_of,
    keep_zeros,
    lost,
    mark,
    mean_over_ranks,
    moves,
    radius,
    restore,
    spoil,
    with_gradient,
)
from hdf_modules.sam.closure import called_by_scaler, first_call, warn_of_plain_step
from hdf_modules.sam.second_pass import parts_told, second_pass
from hdf_modules.sam.wrapper import OptimizerWrapper, Step, check_base


class SAM(OptimizerWrapper):
    r"""Sharpness-aware minimization: the gradient at the worst nearby weights, for any optimizer.

    Foret et al., *Sharpness-Aware Minimization for Efficiently Improving Generalization*, ICLR
    2021, Algorithm 1, and with ``adaptive`` Kwon et al., *ASAM*, ICML 2021, Section 3::

        ε = ρ ∇L(w) / ‖∇L(w)‖₂,   ε_adaptive = ρ w² ∇L(w) / ‖w ∇L(w)‖₂
        gradient = ∇L(w + ε)

    The norm runs over all parameter groups together. After an ordinary backward pass, `ascend`
    moves the weights by ε for a second forward and backward pass and puts them back from copies;
    ``.grad`` then holds the SAM gradient, and clipping, scaling, schedulers and the step work as
    ever. This is a ``torch.optim.Optimizer`` that shares ``param_groups`` and ``state`` with
    ``base_optimizer``.

    Deviations: ASAM's released code adds 0.01 to |w| and leaves biases out; here the formula
    holds for every parameter, so a weight of exactly zero is not moved. A zero gradient moves
    nothing. A non-finite gradient moves nothing either, and the second one then counts as
    non-finite, so a ``GradScaler`` skips the step and backs off.

    Args:
        base_optimizer: the optimizer that steps. A ``rho`` or ``adaptive`` in one of its parameter
            groups holds for that group; ``rho=0`` there leaves the weights where they are.
        rho: radius ρ > 0 of the neighbourhood; the paper uses 0.05.
        adaptive: scale ε by the weights (ASAM); its authors use a ten times larger ρ.
        model: the model whose forward passes are repeated. With it, dropout masks match across the
            two passes. Buffers keep their values either way, but in a compiled model only with it.
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
        HDFError: for an argument out of its range, and an optimizer that needs its closure (LBFGS).

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
        base_optimizer: Any,
        rho: float = 0.05,
        *,
        adaptive: bool = False,
        model: nn.Module | None = None,
        criterion: object = None,
        every: int = 1,
    ) -> None:
        check_base(base_optimizer)
        if model is not None and not isinstance(model, nn.Module):
            raise HDFError("model", "a torch.nn.Module or None", type(model).__name__)
        choose("adaptive", adaptive, (True, False))
        at_least("every", every, 1)
        self.model, self.criterion = model, criterion
        options = {"rho": radius(rho), "adaptive": adaptive, "sam_steps": 0}
        super().__init__(base_optimizer, options, Step(every))
        for handle in self._replay.attach(model) if model is not None else ():
            weakref.finalize(self, handle.remove)

    def __setstate__(self, state: dict[str, Any]) -> None:
        """Set the attributes and own the hooks of the model."""
        super().__setstate__(state)
        self._replay = self.now.replay
        self._replay.owner = weakref.ref(self)

    @property
    def grad_norm(self) -> float:
        """Gradient norm of the last first pass; NaN before that."""
        return self.now.grad_norm

    @property
    def sharpness_gap(self) -> Any:
        """L(w + ε) − L(w) of the last ``step(closure)``; None before that."""
        return self.now.sharpness_gap

    @property
    def due(self) -> bool:
        """Whether the next step is a SAM step."""
        return self.now.due(self.param_groups)

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
            HDFError: without gradients, with sparse ones, with those that an earlier ``ascend``
                left, or inside another ``ascend``.
        """
        now, criterion = self.now, self.criterion if criterion is None else criterion
        groups, options = self.param_groups, {k: self.defaults[k] for k in self.names.values()}
        if now.ascending or now.given_up:
            self._refuse("ascend")
        parts = with_gradient(groups, options)
        norm, norms = global_norm([part.grads for part in parts])
        scale = 1.0 if scaler is None else scaler.get_scale()
        now.grad_norm = mean_over_ranks(norm / scale, parts[0].params[0].device)
        finite = math.isfinite(now.grad_norm)
        told = parts_told(criterion)
        # Under a scaler an overflow is routine and no news to the criterion.
        for part in told if finite or scaler is None else ():
            if hasattr(part, "rescale"):
                part.rescale(now.grad_norm)
        weights = [(part.params, [p.detach().clone() for p in part.params]) for part in parts]
        pairs = [pair for part in parts for pair in zip(part.params, part.grads, strict=True)]
        graphs = [p for p, grad in pairs if grad.requires_grad]
        earlier = now.aside or {}
        if earlier:
            mark([grad for part in parts for grad in part.grads], FIRST)
        now.ascending, done = True, False
        try:
            with second_pass(self.model, criterion, told, now.replay, graphs):
                if finite:
                    climb(parts, norm)
                del parts, pairs  # or it would hold the first pass's gradients through the second
                give(groups, earlier)
                yield
            done = True
        finally:
            now.ascending = False
            restore(weights)
            if not done:  # what an aborted pass leaves is nobody's gradient
                give(groups, {})
                now.given_up = "an exception in the second pass" if earlier else ""
            now.aside = None if now.aside is None else {}
        if earlier and lost(earlier):
            now.given_up = "a zero_grad() in the second pass, which cleared earlier micro-batches"
            self._refuse("micro_batch")
        if any(p.grad is None for params, _ in weights for p in params):
            keep_zeros([params for params, _ in weights], norms)
        if not finite:
            spoil(groups)
        now.left(groups)

    @contextmanager
    def micro_batch(self) -> Iterator[None]:
        """Accumulate SAM gradients one micro-batch at a time: m-sharpness, Foret et al., Section 3.

        Inside, ``.grad`` starts empty; run both passes of one micro-batch there. The gradients of
        earlier micro-batches are put aside, and the second pass adds to them. Another objective
        than the exact form: every micro-batch has its own ε.
        """
        now, groups = self.now, self.param_groups
        if now.aside is not None or now.ascending or now.given_up:
            self._refuse("micro_batch")
        # DDP's gradients can be views of a buffer that the next backward pass overwrites
        owners, whole = [p for group in groups for p in group["params"]], now.of_second_pass(groups)
        aside = {p: p.grad.clone() for p in owners if p.grad is not None}
        self.zero_grad()
        now.aside, done = aside, False
        try:
            yield
            done = True
        finally:
            if not done and not now.of_second_pass(groups):
                give(groups, now.aside)
                mark(grads_of(groups), SECOND, whole)
            for p, grad in now.aside.items() if done else ():  # after a plain step's only pass
                p.grad = grad if p.grad is None else grad.add_(p.grad)
            now.aside = None

    def step(self, closure: Any = None, *, criterion: object = None, **options: Any) -> Any:
        """Step the base optimizer on the gradients that are there, or run both passes first.

        Args:
            closure: clears the gradients, runs forward and backward, returns the loss; called twice
                where a SAM step is `due`, and once if it does nothing: after `ascend`, or for a
                plain step. With a ``GradScaler`` use ``scaler.step(sam)``.
            criterion: as for `ascend`.
            options: what else the base's step takes, such as ``hessian``.

        Returns:
            The loss of the first pass; None without a closure.

        Raises:
            HDFError: if only the closure's second call leaves no gradients, if it adds to earlier
                ones, or a scaler calls.
        """
        now, groups = self.now, self.param_groups
        if now.ascending or now.aside is not None or (closure is None and now.stale):
            self._refuse("step")
        if closure is None:
            plain = not now.of_second_pass(groups)
            if plain and now.due(groups) and moves(groups, zero_rate=False):
                warn_of_plain_step("step() without ascend()")
            return self.step_base(**options)
        if called_by_scaler():
            hint = "run the passes with `with sam.ascend(scaler=scaler)`, then scaler.step(sam)"
            raise HDFError("closure", "none when a GradScaler steps", "a closure", hint)
        if not self.due:
            return self.step_base(closure, **options)
        done = now.of_second_pass(groups)
        with torch.enable_grad():
            loss, untouched = first_call(closure, groups, zeros=now.in_place)
            if untouched or not grads_of(groups):  # no pass, which a second one could follow
                if now.given_up:
                    self._refuse("closure")
                if not done:
                    warn_of_plain_step("step(closure) without a backward pass in it")
                return self.step_base(lambda: loss, **options)
            now.given_up = ""
            with self.ascend(criterion):
                second = closure()
        if now.empty:
            self._refuse("step")
        before, after = (x.detach() if isinstance(x, Tensor) else x for x in (loss, second))
        own = None if loss is None else after - before
        terms = getattr(self.criterion if criterion is None else criterion, "terms", None)
        now.sharpness_gap = (terms if isinstance(terms, Mapping) else {}).get("sharpness_gap", own)
        self.step_base(*(() if second is None else (lambda: second,)), **options)
        return loss

    def zero_grad(self, set_to_none: bool = True) -> None:
        """Clear the gradients of all parameters."""
        now = self.now
        if now.ascending and now.aside:
            hint = "clear before micro_batch(): here earlier micro-batches would lose theirs"
            raise HDFError("zero_grad", "outside of a micro-batch's second pass", "inside", hint)
        if not now.ascending:
            now.cleared(self.param_groups, set_to_none)
        super().zero_grad(set_to_none)

    def _refuse(self, what: str) -> None:
        """Raise what is wrong where something is."""
        now, again = self.now, "clear the gradients by sam.zero_grad() and begin the step anew"
        if now.given_up:
            raise HDFError(what, "the gradients of a whole step", now.given_up, again)
        if now.ascending or now.aside is not None:
            raise HDFError(what, "one at a time", "one in another or ascend()", "leave the first")
        if not grads_of(self.param_groups):
            raise HDFError("gradients", "those of a backward pass", "none", "run one in ascend()")
