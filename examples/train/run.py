"""Train a video network on drawn or real faces with everything this library offers.

    python -m examples.train --output runs/demo
    python -m examples.train --output runs/demo --resume
    torchrun --nproc-per-node 2 -m examples.train --output runs/two

The run's folder gets ``last.pt`` (to resume), ``best.pt`` (the weights of the epoch with the best
validation UAR), ``run.json`` (options, history, test results) and ``report.html``.
"""

from __future__ import annotations

import argparse
import json
import math
from pathlib import Path
from typing import Any

import torch
from torch import nn
from torch.optim.lr_scheduler import LambdaLR
from torch.utils.data import DataLoader
from torch.utils.data.distributed import DistributedSampler

from examples.train import checkpoint, distributed, models
from examples.train.data.clips import ClipDataset
from examples.train.data.splits import Splits, open_splits
from examples.train.engine import Trainer, predict, train_epoch, unwrapped
from examples.train.metrics import Predictions, by_group, confusion, recalls, scores
from examples.train.options import FREE, parse
from examples.train.progress import Progress
from examples.train.report import write_report
from hdf_modules import SAM, HDFError, HeterogeneityAwareLoss, with_features


def main(arguments: list[str] | None = None) -> Path:
    """Run the command line; returns the report's path."""
    options = parse(arguments)
    options.output.mkdir(parents=True, exist_ok=True)
    device = distributed.pick_device(options.device)
    with distributed.process_group(device):
        torch.manual_seed(options.seed)
        progress = Progress(quiet=distributed.rank() > 0)
        with progress.waiting("Preparing clips"):
            splits = open_splits(options)
        progress.left_out(splits.left_out)
        trainer = build(options, splits, device)
        history = fit(options, splits, trainer, progress)
        return finish(options, splits, trainer, history, progress)


def build(options: argparse.Namespace, splits: Splits, device: torch.device) -> Trainer:
    """Put model, loss, optimizer and schedule together: the part to copy into one's own script."""
    model = models.build(
        options.model, len(splits.classes), options.frames, pretrained=options.pretrained
    )
    if options.attention:
        perturbation = None if options.perturbation == "none" else options.perturbation
        models.add_attention(
            model, options.frames, consistency=options.consistency, perturbation=perturbation
        )
    model = with_features(model).to(device)
    if options.across_groups and len(splits.groups) < 2:
        expected = "data of several sources, scenes or actors"
        raise HDFError("--across-groups", expected, f"one group, {splits.groups[0]!r}")
    criterion = HeterogeneityAwareLoss(
        nn.CrossEntropyLoss(label_smoothing=options.label_smoothing),
        weighting=None if options.weighting == "none" else options.weighting,
        level=options.level,
        alpha=options.alpha,
        beta=options.beta,
        temperature=options.temperature,
        eta=options.eta,
        bottleneck=options.bottleneck,
        across_groups=options.across_groups,
        memory=options.memory,
    ).to(device)
    optimizer: torch.optim.Optimizer = torch.optim.AdamW(
        model.parameters(), options.lr, weight_decay=options.weight_decay
    )
    if options.sam:
        optimizer = SAM(optimizer, options.rho, model=model)
    return Trainer(
        _distribute(model, device),
        criterion,
        optimizer,
        _schedule(optimizer, options.epochs * len(_loader(splits.train, options))),
        torch.amp.GradScaler(device.type, enabled=options.amp and device.type == "cuda"),
        device,
        options.amp,
        options.contrastive,
        options.clip_grad,
        options.rescale,
    )


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


def _loader(dataset: ClipDataset, options: argparse.Namespace) -> DataLoader[Any]:
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


def fit(
    options: argparse.Namespace, splits: Splits, trainer: Trainer, progress: Progress
) -> dict[str, Any]:
    """Train, validate and save every epoch; returns the history."""
    history: dict[str, Any] = {"epochs": [], "steps": []}
    torch.manual_seed(options.seed + distributed.rank())
    if options.resume:
        history = _resume(options, trainer)
    loader, classes = _loader(splits.train, options), len(splits.classes)
    last = min(options.epochs, options.stop_after or options.epochs)
    for epoch in range(len(history["epochs"]), last):
        splits.train.epoch = epoch
        loader.sampler.set_epoch(epoch)  # type: ignore[attr-defined]
        with progress.epoch(epoch + 1, options.epochs, len(loader)) as report:
            train = train_epoch(trainer, loader, report)
        found = predict(trainer.model, _loader(splits.val, options), trainer.device, options.amp)
        val = scores(found.predicted, found.labels, classes)
        steps = trainer.history()
        history["steps"] += steps
        # the whole loss changes its weights as it goes: epochs are compared by their cross-entropy
        train["loss"] = sum(step["classification"] for step in steps) / len(steps)
        history["epochs"].append({"train": train, "val": val | {"loss": _cross_entropy(found)}})
        progress.validated(val)
        _save(options, trainer, history, splits.classes)
    return history


def _cross_entropy(found: Predictions) -> float:
    return float(nn.functional.cross_entropy(found.logits, found.labels))


def _save(
    options: argparse.Namespace,
    trainer: Trainer,
    history: dict[str, Any],
    classes: tuple[str, ...],
) -> None:
    states = distributed.gather(checkpoint.random_state())
    if distributed.rank() == 0:
        if best_epoch(history) == len(history["epochs"]) - 1:
            best = {"model": unwrapped(trainer.model).state_dict(), "classes": classes}
            checkpoint.save(best | {"options": _plain(options)}, options.output / "best.pt")
        whole = {"history": history, "random": states, "options": _plain(options)}
        checkpoint.save(trainer.state_dict() | whole, options.output / "last.pt")


def _resume(options: argparse.Namespace, trainer: Trainer) -> dict[str, Any]:
    state = checkpoint.load(options.output / "last.pt")
    now = _plain(options)
    changed = [name for name, value in state["options"].items() if now.get(name) != value]
    changed = [name for name in changed if name not in FREE]
    if changed or len(state["random"]) != distributed.world_size():
        found = ", ".join(f"{name}={now.get(name)!r}" for name in changed)
        world = f"{distributed.world_size()} processes" if not changed else found
        raise HDFError("resume", "the options and processes the run began with", world)
    trainer.load_state_dict(state)
    checkpoint.set_random_state(state["random"][distributed.rank()])
    return state["history"]


def _plain(options: argparse.Namespace) -> dict[str, Any]:
    return {name: str(v) if isinstance(v, Path) else v for name, v in vars(options).items()}


def best_epoch(history: dict[str, Any]) -> int:
    """The epoch with the best validation UAR; of equals, that with the least cross-entropy."""
    ranks = [(epoch["val"]["uar"], -epoch["val"]["loss"]) for epoch in history["epochs"]]
    return ranks.index(max(ranks))


def finish(
    options: argparse.Namespace,
    splits: Splits,
    trainer: Trainer,
    history: dict[str, Any],
    progress: Progress,
) -> Path:
    """Test the best epoch and write results and report."""
    if distributed.world_size() > 1:
        torch.distributed.barrier()  # the best weights are written by one process
    unwrapped(trainer.model).load_state_dict(checkpoint.load(options.output / "best.pt")["model"])
    found = predict(trainer.model, _loader(splits.test, options), trainer.device, options.amp)
    path: Path = options.output / "report.html"
    if distributed.rank() == 0:
        run = {"options": _plain(options), **history, "test": test_results(found, splits)}
        run["best_epoch"], run["left_out"] = best_epoch(history), list(splits.left_out)
        (options.output / "run.json").write_text(json.dumps(run, indent=1))
        with progress.waiting("Writing the report"):
            write_report(path, run, found, splits.test, unwrapped(trainer.model))
        progress.done(run["test"], path)
    return path


def test_results(found: Predictions, splits: Splits) -> dict[str, Any]:
    """Test figures as plain values."""
    classes, groups = splits.classes, splits.test.source.groups
    recall = recalls(found.predicted, found.labels, len(classes)).tolist()
    return scores(found.predicted, found.labels, len(classes)) | {
        "classes": list(classes),
        "recall": [None if math.isnan(value) else 100 * value for value in recall],
        "groups": by_group(found, groups, len(classes)),
        "confusion": confusion(found.predicted, found.labels, len(classes)).tolist(),
        "labels": found.labels.tolist(),
        "predicted": found.predicted.tolist(),
        "group_of": found.groups.tolist(),
    }
