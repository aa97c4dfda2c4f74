"""Model, loss, optimizer, schedule and batches put together: the part to copy into one's own."""

from __future__ import annotations

import argparse
import ast
import inspect
from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch import nn
from torch.optim.lr_scheduler import LambdaLR
from torch.utils.data import DataLoader
from torch.utils.data.distributed import DistributedSampler

from examples.train import distributed, models
from examples.train.data.clips import ClipDataset
from examples.train.data.splits import Splits
from examples.train.engine import Trainer
from hdf_modules import (
    SAM,
    DistributionalAttention,
    HDFError,
    HeterogeneityAwareLoss,
    with_features,
)
from hdf_modules.loss import (
    KL,
    Chi2,
    CVaR,
    Fixed,
    GradientNorm,
    GroupDRO,
    KLBall,
    Ramp,
    RobustContrastive,
    Trim,
)


def build(options: argparse.Namespace, splits: Splits, device: torch.device) -> Trainer:
    """Put model, loss, optimizer and schedule together: the part to copy into one's own script."""
    if len(splits.classes) < 2:
        raise HDFError("--classes", "at least two classes", f"{', '.join(splits.classes)} alone")
    model = network(options, len(splits.classes)).to(device)
    criterion = HeterogeneityAwareLoss(
        nn.CrossEntropyLoss(label_smoothing=options.label_smoothing),
        weighting=part("--weighting", options.weighting),
        contrastive=part("--contrastive", options.contrastive),
        bottleneck=options.bottleneck,
        balance=part("--balance", options.balance),
    ).to(device)
    across = criterion.contrastive is not None and criterion.contrastive.across_groups
    if across and len(splits.groups) < 2:
        expected = "data of several sources, scenes or actors for across_groups"
        hint = "drop across_groups"
        raise HDFError("--contrastive", expected, f"one group, {splits.groups[0]!r}", hint)
    optimizer: torch.optim.Optimizer = torch.optim.AdamW(
        model.parameters(), options.lr, weight_decay=options.weight_decay
    )
    if options.rho:
        optimizer = SAM(optimizer, options.rho, model=model)
    return Trainer(
        _distribute(model, device),
        criterion,
        optimizer,
        _schedule(optimizer, options.epochs * len(batches(splits.train, options))),
        torch.amp.GradScaler(device.type, enabled=options.amp and device.type == "cuda"),
        device,
        options.amp,
        options.clip_grad,
    )


def network(options: argparse.Namespace, num_classes: int) -> nn.Module:
    """The backbone with attention, giving (logits, features)."""
    model = models.build(options.model, num_classes, options.frames, pretrained=options.pretrained)
    attention = part("--attention", options.attention)
    if isinstance(attention, str):
        raise HDFError("--attention", "none or DistributionalAttention(…)", attention)
    if attention is not None:
        models.add_attention(model, options.frames, attention)
    return with_features(model)


def _distribute(model: nn.Module, device: torch.device) -> nn.Module:
    if distributed.world_size() == 1:
        return model
    return nn.parallel.DistributedDataParallel(model, [device] if device.type == "cuda" else None)


def _schedule(optimizer: torch.optim.Optimizer, steps: int) -> LambdaLR:
    """Warm up over a twentieth of the run, then a half cosine."""
    warm = max(1, steps // 20)

    def factor(step: int) -> float:
        cosine = (
            0.5 + 0.5 * torch.cos(torch.tensor(torch.pi * min(1.0, step / max(1, steps)))).item()
        )
        return min((step + 1) / warm, cosine)

    return LambdaLR(optimizer, factor)


def batches(dataset: ClipDataset, options: argparse.Namespace) -> DataLoader[Any]:
    """Batches of this process; a sampler whose order depends on seed and epoch alone."""
    world, rank = distributed.world_size(), distributed.rank()
    workers = 0 if dataset.cache is not None else options.workers
    common: dict[str, Any] = {"batch_size": options.batch_size, "num_workers": workers}
    if not dataset.training:
        return DataLoader(dataset, sampler=range(rank, len(dataset), world), **common)
    sampler: DistributedSampler[Any] = DistributedSampler(dataset, world, rank, seed=options.seed)
    # batch normalisation cannot train on a single clip, so a short last batch is dropped
    drop = len(sampler) > options.batch_size
    return DataLoader(dataset, sampler=sampler, drop_last=drop, **common)


def part(flag: str, text: str) -> Any:
    """A part of the library from the words that make it in Python; ``none`` is None.

    Args:
        flag: for the error.
        text: ``none``; a call of one of :data:`PARTS` with plain values and other parts; or a
            name that the library itself knows, which is returned.

    Raises:
        HDFError: for anything else, and for arguments that do not fit.

    Example:
        >>> part("--weighting", "Trim(CVaR(Ramp(1, 0.5, steps=1000)), 0.1)").share
        0.1
        >>> part("--weighting", "cvar")
        'cvar'
    """

    def value(node: ast.expr) -> Any:
        if not isinstance(node, ast.Call):
            return ast.literal_eval(node)
        keywords = {str(word.arg): value(word.value) for word in node.keywords}
        return PARTS[node.func.id](*map(value, node.args), **keywords)  # type: ignore[attr-defined]

    if "(" not in text:
        return None if text == "none" else text
    try:
        return value(ast.parse(text, mode="eval").body)
    except HDFError:
        raise
    except (AttributeError, KeyError, SyntaxError, TypeError, ValueError) as error:
        expected = f"none, a name, or calls of {', '.join(PARTS)}"
        found = f"{text}: {type(error).__name__}: {error}"
        raise HDFError(flag, expected, found, "write it as in --help") from error


def _attention(**options: Any) -> Callable[..., DistributionalAttention]:
    inspect.signature(DistributionalAttention).bind(1, 1, **options)  # a name it lacks is told now
    return partial(DistributionalAttention, **options)


_LOSS = (KL, KLBall, Chi2, CVaR, GroupDRO, Trim, Ramp, RobustContrastive, GradientNorm, Fixed)
# What an option may call.
PARTS: dict[str, Callable[..., Any]] = {
    "DistributionalAttention": _attention,
    **{kind.__name__: kind for kind in _LOSS},
}
