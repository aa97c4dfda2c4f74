"""Any loss as one value per sample, with what its own mean needs."""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import dataclass, fields, replace
from typing import Any

import torch
from torch import Tensor, nn

from hdf_modules.errors import Checks, HDFError, check_groups, check_soft_labels
from hdf_modules.loss.one_number import is_made_of, one_by_one

_REGRESSION = (nn.MSELoss, nn.L1Loss, nn.SmoothL1Loss, nn.HuberLoss, nn.PoissonNLLLoss)
_SEVERAL_LABELS = (nn.BCELoss, nn.BCEWithLogitsLoss, nn.MultiLabelSoftMarginLoss)

WITHOUT_LABELS = (
    "features come with a target that is no label: the contrastive term is left out; "
    "give it labels=, or say contrastive=None"
)


@dataclass(frozen=True)
class Samples:
    """What the loss knows about the samples of a batch, a row each.

    Attributes:
        losses: one value per sample, class weights included, float32 at least.
        elements: how many elements of the target each value is the mean of; 0 if it is ignored.
        normalizer: what each sample adds to the denominator of the base loss's mean, so that
            this mean is Σ losses·elements / Σ normalizer.
        labels: class ids or soft labels, where the target is either.
        groups: group ids, where given.
        features: normalised features, where given.
        counts: one more than the largest class id and group id, where the host knows them.
    """

    losses: Tensor
    elements: Tensor
    normalizer: Tensor
    labels: Tensor | None = None
    groups: Tensor | None = None
    features: Tensor | None = None
    counts: tuple[int | None, int | None] = (None, None)

    def __getitem__(self, rows: Tensor | slice) -> Samples:
        """Select rows of everything."""
        values = {field.name: getattr(self, field.name) for field in fields(self)}
        chosen: Any = {k: v[rows] for k, v in values.items() if isinstance(v, Tensor)}
        return replace(self, **chosen)


def concentration(weights: Tensor) -> dict[str, Tensor]:
    """Effective sample size (Σw)²/Σw² (Kish, 1965) and the largest weight."""
    squares = weights.square().sum()
    size = weights.sum().square() / squares.where(squares > 0, 1)
    largest = weights.max() if len(weights) else weights.sum()
    return {"effective_sample_size": size, "largest_weight": largest}


def shares_of(weights: Tensor, samples: Samples) -> dict[str, Tensor]:
    """Share of the weight per class (soft labels: in proportion) and per group."""
    found = {}
    ids = ("class", samples.labels), ("group", samples.groups)
    for (name, labels), known in zip(ids, samples.counts, strict=True):
        if labels is None:
            continue
        if labels.ndim == 2:
            mass = weights @ labels.to(weights)
        else:
            largest = known is None and len(labels) > 0
            size = int(labels.max()) + 1 if largest else known or 0
            mass = weights.new_zeros(size).index_add(0, labels, weights)
        total = mass.sum()
        found[name] = mass / total.where(total > 0, 1)
    return found


class Plateau:
    """Counts the steps in a row at which all features point one way and the classes are at chance.

    At chance: the cross-entropy is no lower than that of the best constant prediction, which is the
    entropy of the classes. The count stays on the device, to be read where a host waits anyway.

    Args:
        base: the loss, which counts if it is cross-entropy: of others, chance is not known.
    """

    cosine, patience = 0.95, 200
    message = (
        f"all features have been alike (mean cosine above {cosine}) and the classification at "
        f"chance for {patience} steps: training is on a plateau, or the features have collapsed; "
        "watch terms['mean_cosine'], weigh the contrastive term less (beta), or warm up more slowly"
    )

    def __init__(self, base: object) -> None:
        self.counts, self.steps = isinstance(base, nn.CrossEntropyLoss), torch.tensor(0)

    def see(self, batch: Samples, loss: Tensor, shares: dict[str, Tensor]) -> dict[str, Tensor]:
        """Return the mean cosine of different samples; count the step if shares are given."""
        if batch.features is None:
            return {}
        features, pairs = batch.features.detach(), len(batch.features) * (len(batch.features) - 1)
        together = features.sum(0).square().sum() - features.square().sum()
        cosine = together / max(pairs, 1)
        if self.counts and "class" in shares:
            at_chance = loss.detach() >= torch.special.entr(shares["class"]).sum()
            self.steps = (self.steps.to(cosine.device) + 1) * (at_chance & (cosine > self.cosine))
        return {"mean_cosine": cosine}


class Reading:
    """Reads checks and sizes of each batch together.

    The same tensors in a second pass have the same sizes, and nothing is read then: its checks are
    read in the next step. Copies begin anew.

    Attributes:
        checks: those that were not read yet.
    """

    def __init__(self) -> None:
        self.checks = Checks()
        self._given: Any = None
        self._names: list[tuple[int, int]] = []
        self._numbers: list[int] = []

    def __reduce__(self) -> Any:
        """Copy as a new one."""
        return Reading, ()

    def read(
        self, given: tuple[Tensor | None, ...], samples: Samples, steps: Tensor, again: bool
    ) -> tuple[Samples, int]:
        """Raise what the checks found, or return the samples that count, and the steps.

        Args:
            given: the tensors that the sizes depend on.
            samples: of the batch.
            steps: on a plateau.
            again: whether this may be a second pass.
        """
        names = [(id(x), -1 if x.is_inference() else x._version) for x in given if x is not None]
        counted = samples.elements > 0
        if not (again and names == self._names):
            self._names = []  # whatever is raised
            self._numbers = self.checks.read(*self._sizes(samples, counted, steps))
            self._given, self._names = given, names  # held, so that the names stay theirs
        count, seen, *counts = self._numbers
        samples = replace(samples, counts=(counts[0], counts[1]))
        if count < len(counted):
            samples = samples[(~counted).to(torch.uint8).argsort(stable=True)[:count]]
        return samples, seen

    @staticmethod
    def _sizes(samples: Samples, counted: Tensor, steps: Tensor) -> list[Tensor]:
        sizes = [counted.sum(), steps]
        for ids in (samples.labels, samples.groups):
            if ids is None or ids.ndim == 2 or len(ids) == 0:
                sizes.append(counted.new_zeros(()))
            else:
                sizes.append(ids.where(counted, -1).max() + 1)
        return sizes


class PerSampleLoss(nn.Module):
    """A base loss without its reduction.

    Args:
        base: a module with a ``reduction`` (every loss of ``torch.nn``), deep-copied so that the
            original stays as it is; or any callable (logits, target) → losses of shape (B,), or
            one number that is the mean or the sum over the samples: it is then evaluated for each
            alone, by ``torch.func.vmap`` or, where that cannot enter it, one after the other.
            Losses of several elements per sample are averaged over them, or summed where the base
            says ``reduction="batchmean"``.

    Raises:
        HDFError: for what is no loss, and in ``forward`` if the base returns neither a value per
            sample nor one that is made of theirs.
    """

    base: Callable[[Tensor, Tensor], Tensor]

    def __init__(self, base: Callable[[Tensor, Tensor], Tensor]) -> None:
        super().__init__()
        if isinstance(base, type) or not callable(base):
            found = f"the class {base.__name__}" if isinstance(base, type) else repr(base)
            hint = f"write {base.__name__}()" if isinstance(base, type) else ""
            raise HDFError("base", "a loss: a module or a function (logits, target)", found, hint)
        self.one_number = False  # what the base was seen to return
        self.sums = getattr(base, "reduction", None) == "batchmean"
        self.reducible = isinstance(base, nn.Module) and hasattr(base, "reduction")
        if self.reducible:
            base = copy.deepcopy(base)
            base.reduction = "none"  # type: ignore[attr-defined]
        self.base = base

    def forward(self, logits: Tensor, target: Tensor, checks: Checks) -> Samples:
        """Return losses, elements and normalizer of all samples; ignored ones have 0 of each."""
        target = self._safe_ids(logits, target, checks)
        raw = self._raw(logits, target)
        counted = self._counted(raw, target)
        normalizer = (self._class_weights(raw, target) * counted).flatten(1).sum(1)
        # An ignored target may give inf or NaN in a third party's loss: it must not reach the sum.
        total = raw.where(counted, 0).flatten(1).sum(1)
        elements = counted.flatten(1).sum(1).to(raw.dtype)
        if self.sums:
            elements = normalizer = torch.ones_like(total)
        return Samples(total / elements.clamp(min=1), elements, normalizer)

    def labels_in(self, target: Tensor, needed: bool, checks: Checks) -> Tensor | None:
        """Return the target where it says which samples are alike: class ids or soft labels.

        Args:
            target: of this loss.
            needed: whether floats (B, K) that may be values as well have to be labels.
            checks: take in whether they are.

        Raises:
            HDFError: for floats (B, K) that are neither soft labels nor known to be regressed.
        """
        base = self.base
        if not target.is_floating_point():
            return target if target.ndim == 1 and target.dtype != torch.bool else None
        one_of_many = isinstance(base, nn.CrossEntropyLoss)
        if target.ndim != 2 or isinstance(base, _REGRESSION) or not (needed or one_of_many):
            return None
        hint = (
            "" if one_of_many else "pass labels= or contrastive=None, where the target is no label"
        )
        shares = not isinstance(base, _SEVERAL_LABELS)
        check_soft_labels(target, shares=shares, hint=hint, checks=checks)
        return target

    def _safe_ids(self, logits: Tensor, target: Tensor, checks: Checks) -> Tensor:
        """Replace class ids out of range, which on a GPU would end the process without a word."""
        base = self.base
        hard = target.dtype == torch.long and target.numel() > 0 and logits.ndim > 1
        if not (hard and isinstance(base, nn.CrossEntropyLoss | nn.NLLLoss)):
            return target
        wrong = ((target < 0) | (target >= logits.shape[1])) & (target != base.ignore_index)

        def error() -> HDFError:
            expected = f"class ids in 0 .. {logits.shape[1] - 1}, as logits have classes"
            hint = "number the classes from 0, or mark what to leave out by the base's ignore_index"
            return HDFError("target", expected, int(target[wrong][0]), hint)

        checks.append((wrong, error))
        return target.where(~wrong, 0)

    def _raw(self, logits: Tensor, target: Tensor) -> Tensor:
        raw = None if self.one_number else self.base(logits, target)
        if raw is None or (isinstance(raw, Tensor) and raw.ndim == 0 and len(target)):
            rows = one_by_one(self.base, logits, target)
            if raw is not None:
                self.one_number = is_made_of(rows, raw)
            raw = rows
        found = f"shape {tuple(raw.shape)}" if isinstance(raw, Tensor) else type(raw).__name__
        if not isinstance(raw, Tensor) or raw.ndim == 0 or len(raw) != len(target):
            raise HDFError(
                "base",
                f"a loss that returns one value per sample, shape ({len(target)},)",
                found,
                "do not average in it: return the losses before .mean(), or set its reduction",
            )
        if raw.ndim > 1 and not self.reducible:
            raise HDFError("base", f"shape ({len(target)},)", found, "average over the other axes")
        if not raw.is_floating_point():
            raise HDFError("base", "floating point losses", raw.dtype, "return them as .float()")
        return raw.to(torch.promote_types(raw.dtype, torch.float32)).reshape(*raw.shape, 1)

    def _counted(self, raw: Tensor, target: Tensor) -> Tensor:
        """Mask of the elements whose target is not ``ignore_index``."""
        ignored = getattr(self.base, "ignore_index", None)
        if ignored is None or target.is_floating_point() or target.shape != raw.shape[:-1]:
            return torch.ones_like(raw, dtype=torch.bool)
        return (target != ignored)[..., None]

    def _class_weights(self, raw: Tensor, target: Tensor) -> Tensor:
        """Class weights as the mean of torch's own losses divides by them: of class ids only."""
        base = self.base
        if not isinstance(base, nn.CrossEntropyLoss | nn.NLLLoss):
            return torch.ones_like(raw)
        if base.weight is None or target.is_floating_point():
            return torch.ones_like(raw)
        ids = target.where(target != base.ignore_index, 0)
        return base.weight.to(raw.dtype)[ids][..., None]


def by_class(groups: Tensor, target: Tensor, logits: Tensor, checks: Checks) -> Tensor:
    """Number the pairs of group and class."""
    classes = target if target.ndim == 1 else target.argmax(1)
    pairs = groups * logits.shape[1] + classes.clamp(min=0)  # an ignore_index may be negative
    check_groups(pairs, len(groups), checks)
    return pairs
