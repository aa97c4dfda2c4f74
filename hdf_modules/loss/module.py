"""The loss of the distribution-aware scaling module, around any classification loss."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from functools import partial
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn

from hdf_modules.errors import (
    HDFError,
    check_batch,
    check_finite,
    check_labels,
    former_keywords,
    number,
)
from hdf_modules.loss.balance import Balance, as_balance
from hdf_modules.loss.contrastive import (
    RobustContrastive,
    as_contrastive,
    covariance_trace,
    normalize,
)
from hdf_modules.loss.distributed import meet
from hdf_modules.loss.pairwise import Split
from hdf_modules.loss.per_sample import (
    WITHOUT_LABELS,
    PerSampleLoss,
    Plateau,
    Reading,
    Samples,
    by_class,
    concentration,
    shares_of,
)
from hdf_modules.loss.weighting import AnyWeighting, as_weighting
from hdf_modules.sam.second_pass import SECOND_PASS, UNTOLD


class HeterogeneityAwareLoss(nn.Module):
    r"""Weighted classification loss plus robust contrastive loss plus information bottleneck.

    Cui et al., 2025 (arXiv:2507.15765), Figure 2, the distribution-aware scaling module::

        L = λ_CE Σ_i w_i l_i + λ_SC ( mean_i L_D-SC(i) + b Tr Cov(Z) )

    with l_i the base loss of sample i, w its distributionally robust weights
    (`functional.dro_weights`), L_D-SC from `functional.robust_contrastive_loss`, Z the normalised
    features, and λ_CE = α g/(g+1), λ_SC = β/(g+1) from the gradient norm g given to
    `rescale` (α and β until then), see `GradientNorm`. Without features the second term is absent.

    Samples whose target is the base's ``ignore_index`` leave the whole loss: they have no
    label, so they are neither positives nor negatives nor anchors, and they get no weight.

    Under ``torch.distributed`` every rank returns the loss of the batch of all ranks, whose sizes
    may differ and be zero; its gradient is world size times the rank's share, so that DDP's average
    is the gradient of one process on the whole batch. All ranks call it together, in training mode;
    in evaluation mode nothing is gathered, and group weights, memory and ramps do not move.

    Deviations from the released code, which cannot run as published: the bottleneck is added (there
    it is subtracted), λ follows g (there it is constant) above a floor, and w in the contrastive
    term lives on the cosine.

    Args:
        base: a loss of ``torch.nn`` or another module with ``reduction`` (overridden on a copy,
            whose parameters are then this module's), or a callable (logits, target) → losses
            (B,). Default cross-entropy.
        weighting: ``None`` (the base loss's own mean, class weights and label smoothing included),
            a part of `hdf_modules.loss` (`KL`, `KLBall`, `Chi2`, `CVaR`, `GroupDRO`, `Trim`), the
            name of one (``"kl"``, ``"kl-ball"``, ``"chi2"``, ``"cvar"``, ``"group"``: with its
            defaults), or a callable from detached losses (n,) to weights (n,). Class weights
            multiply the losses that are weighted.
        contrastive: `RobustContrastive`; ``"robust"``: with its defaults; ``None``: no such term.
        bottleneck: b ≥ 0, share of the covariance trace.
        balance: `GradientNorm` or `Fixed`, or ``"gradient-norm"``, ``"fixed"`` for their defaults.
        gather: whether ``torch.distributed`` ranks form one batch. The losses and features are
            gathered; each rank then visits the pairs of its own anchors alone.

    Parts are copied, so that one may serve several losses, each with a state of its own.

    Attributes:
        terms: detached parts of the last call, scalars: ``classification``, ``contrastive``,
            ``bottleneck``, ``lambda_ce``, ``lambda_sc``, ``effective_sample_size``,
            ``largest_weight``; with features ``mean_cosine`` (above 0.95 and at chance for 200
            steps: one warning); after a call inside `frozen` ``sharpness_gap``, L(w+ε) − L(w).
        shares: detached shares of the weight per ``"class"`` and per ``"group"``, vectors.

    Raises:
        HDFError: for an option out of range; in ``forward`` for tensors that do not fit and, by
            index and rank, for losses or features that are inf or NaN. All ranks raise together.
            Values are checked on the device and read together: the host waits once in a step. In a
            second pass over the same tensors it does not: what is wrong there the next call raises.

    Example:
        >>> criterion = HeterogeneityAwareLoss(weighting="cvar")
        >>> logits = torch.tensor([[2.0, 0.0], [0.0, 1.0], [1.0, 0.0], [0.0, 0.0]])
        >>> criterion(logits, torch.tensor([0, 1, 1, 0]))
        tensor(1.0032)
    """

    @former_keywords(
        level="weighting=CVaR(level), KL(level), KLBall(level), Chi2(level) or GroupDRO(level)",
        alpha="balance=GradientNorm(alpha=…)",
        beta="balance=GradientNorm(beta=…)",
        floor="balance=GradientNorm(floor=…)",
        grad_norm_smoothing="balance=GradientNorm(smoothing=…)",
        grad_norm_unit="balance=GradientNorm(unit=…)",
        temperature="contrastive=RobustContrastive(temperature=…)",
        eta="contrastive=RobustContrastive(eta=…)",
        memory="contrastive=RobustContrastive(memory=…)",
        across_groups="contrastive=RobustContrastive(across_groups=…)",
        block_size="contrastive=RobustContrastive(block_size=…)",
        trim="weighting=Trim(weighting, share)",
        adjustment="weighting=GroupDRO(adjustment=…)",
        joint_groups="weighting=GroupDRO(by_class=…)",
    )
    def __init__(
        self,
        base: Callable[[Tensor, Tensor], Tensor] | None = None,
        *,
        weighting: AnyWeighting = None,
        contrastive: RobustContrastive | str | None = "robust",
        bottleneck: float = 0.1,
        balance: Balance | str = "gradient-norm",
        gather: bool = True,
    ) -> None:
        super().__init__()
        self.base = PerSampleLoss(nn.CrossEntropyLoss() if base is None else base)
        self.weighting = as_weighting(weighting)
        self.contrastive = as_contrastive(contrastive)
        self.bottleneck = number("bottleneck", bottleneck, zero=True)
        self.balance, self.gather = as_balance(balance), gather
        self.terms: dict[str, Tensor] = {}
        self.shares: dict[str, Tensor] = {}
        self._parts: tuple[Tensor, Tensor] | None = None
        self._plateau = Plateau(self.base.base)
        self._reading = Reading()
        self._frozen = self._repeats = False
        self._warned: set[str] = set()

    def forward(
        self,
        logits: Tensor,
        target: Tensor,
        features: Tensor | None = None,
        groups: Tensor | None = None,
        labels: Tensor | None = None,
    ) -> Tensor:
        """Return the scalar loss, float32 at least.

        Args:
            logits: what the base loss takes, (B, …).
            target: what the base loss takes: class ids (B,), soft labels (B, K) ≥ 0 that sum to 1,
                several labels (B, K) in [0, 1] for a binary loss, or values to regress.
            features: penultimate features (B, D), any length; ``None`` leaves the contrastive and
                the bottleneck term out.
            groups: ids (B,) in 0 … 65535 for ``weighting="group"``, ``across_groups`` and `shares`.
            labels: class ids (B,) or soft labels (B, K) of the contrastive term, where they are not
                the target: it has no positives among values that are regressed, is then left out,
                and warns once.
        """
        self._repeats = self._frozen or (SECOND_PASS.get() and self._untold())
        prepare = partial(self._prepare, logits, target, features, groups, labels)
        several = dist.is_available() and dist.is_initialized() and dist.get_world_size() > 1
        if self.training and self.gather and several:
            mine, ranks = meet(prepare, logits.device)
            batch, split = ranks.gather_samples(mine), ranks.split
        else:
            batch, ranks, split = prepare(), None, None
        advance = self.training and not self._repeats
        seen = replace(batch, losses=batch.losses.detach())
        weights = self.weighting(seen, advance)
        self.terms |= concentration(weights)
        self.shares = shares_of(weights, seen)
        parts = [(weights * batch.losses).sum(), *self._representation(batch, split, advance)]
        self.terms |= self._plateau.see(batch, parts[0], self.shares if advance else {})
        return self._combine(*(parts if ranks is None else map(ranks.share, parts)))

    def rescale(self, grad_norm: float | Tensor) -> None:
        """Set λ_CE and λ_SC from the norm of the loss's gradient, a number or a 0-dim tensor.

        What ``clip_grad_norm_`` returns will do; under DDP it has to be equal on every rank.
        """
        self.balance.update(grad_norm)

    @contextmanager
    def frozen(self) -> Iterator[None]:
        """Inside, a batch is seen a second time: group weights, memory and ramps do not move.

        For the second pass of sharpness-aware minimisation; `SAM` does it by itself.
        """
        before, self._frozen = self._frozen, True
        try:
            yield
        finally:
            self._frozen = before

    def log_dict(self, prefix: str = "") -> dict[str, float]:
        """Return `terms` as numbers for a logger; the device waits once.

        Compare runs by ``classification``: the whole falls with λ, the contrastive may be negative.
        """
        values = [value.double() for value in self.terms.values()]
        numbers = torch.stack(values).tolist() if values else []
        return {prefix + name: number for name, number in zip(self.terms, numbers, strict=True)}

    def extra_repr(self) -> str:
        """Return the options that no submodule shows."""
        return f"bottleneck={self.bottleneck}, gather={self.gather}"

    def _prepare(self, logits: Tensor, target: Tensor, *optional: Tensor | None) -> Samples:
        """Check everything and return the samples that are not ignored."""
        features, groups, labels = optional
        given, checks = (target, groups, labels), self._reading.checks
        check_batch(logits, target, features, groups, checks)
        across_groups = self.contrastive is not None and self.contrastive.across_groups
        if features is not None and groups is None and across_groups:
            raise HDFError("groups", "ids (B,) for across_groups=True", None, "pass groups=sources")
        if not (target.is_floating_point() or target.dtype == torch.bool):
            target = target.long()  # uint8 and int16 would wrap, some losses refuse them
        groups = None if groups is None else groups.long()
        contrasts = features is not None and self.contrastive is not None
        if labels is None:
            labels = self.base.labels_in(target, contrasts, checks)
        else:
            check_labels(labels, len(logits))
        if contrasts and labels is None:
            self._warn(WITHOUT_LABELS)
        samples = self.base(logits, target, checks)
        check_finite("losses", samples.losses, checks)
        if groups is not None and self.weighting.by_class:
            groups = by_class(groups, target, logits, checks)
        features = None if features is None else normalize(features)
        samples = replace(samples, labels=labels, groups=groups, features=features)
        steps = self._plateau.steps
        samples, lasted = self._reading.read(given, samples, steps, self._repeats)
        if lasted >= Plateau.patience:
            self._warn(Plateau.message)
        return samples

    def _untold(self) -> bool:
        """Freeze in a second pass of a SAM that was not told of this loss."""
        if self.training and any(getattr(part, "remembers", False) for part in self.modules()):
            self._warn(UNTOLD)
        return True

    def _warn(self, message: str) -> None:
        if message not in self._warned:
            self._warned.add(message)
            warnings.warn(message, stacklevel=5)

    def _load_from_state_dict(self, state_dict: dict[str, Any], prefix: str, *args: Any) -> None:
        """Read the names of 0.1 too: ``scaling`` is the balance, ``memory`` of the contrastive."""
        own = self.state_dict(prefix=prefix)
        names = {"scaling.": "balance.", "memory.": "contrastive.memory."}
        unused = len(state_dict.get(f"{prefix}memory.features", ())) == 0
        for old, new in names.items():
            for key in [key for key in state_dict if key.startswith(prefix + old)]:
                value, name = state_dict.pop(key), key.replace(prefix + old, prefix + new, 1)
                if name in own or (old == "memory." and not unused):
                    state_dict[name] = value
        super()._load_from_state_dict(state_dict, prefix, *args)

    def _representation(
        self, batch: Samples, split: Split | None, advance: bool
    ) -> tuple[Tensor, Tensor]:
        """Return the contrastive and the bottleneck term, zero where they are absent."""
        features, labels = batch.features, batch.labels
        zero = torch.zeros((), device=batch.losses.device)
        if features is None:
            return zero, zero
        bottleneck = covariance_trace(features)
        if self.contrastive is None or labels is None:
            return zero, bottleneck
        return self.contrastive((features, labels, batch.groups), split, advance), bottleneck

    def _combine(self, classification: Tensor, contrastive: Tensor, bottleneck: Tensor) -> Tensor:
        lambda_ce, lambda_sc = self.balance.lambda_ce, self.balance.lambda_sc
        representation = contrastive + self.bottleneck * bottleneck
        self.terms |= {
            "classification": classification.detach(),
            "contrastive": contrastive.detach(),
            "bottleneck": bottleneck.detach(),
            "lambda_ce": lambda_ce.to(classification.device, copy=True),
            "lambda_sc": lambda_sc.to(classification.device, copy=True),
        }
        parts = classification.detach(), representation.detach()
        if self._repeats and self._parts is not None:  # λ may have moved in between: use one λ
            rises = [after - before for after, before in zip(parts, self._parts, strict=True)]
            self.terms["sharpness_gap"] = lambda_ce * rises[0] + lambda_sc * rises[1]
        else:
            self._parts = parts
        return lambda_ce * classification + lambda_sc * representation
