"""One training from its options to its report; of several folds, one after the other.

The run's folder gets ``last.pt`` (to resume), ``best.pt`` (the weights of the epoch with the best
validation UAR), ``run.json`` (options, history, test results) and ``report.html``.
"""

from __future__ import annotations

import argparse
import json
import shlex
import statistics
import sys
from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import Any

import torch
from torch import nn

from examples.train import checkpoint, distributed, environment
from examples.train.build import batches, build
from examples.train.data.clips import ClipDataset
from examples.train.data.splits import Splits, open_splits
from examples.train.engine import Trainer, predict, train_epoch, unwrapped
from examples.train.metrics import Predictions, scores, tables
from examples.train.options import FREE, parse
from examples.train.progress import Progress
from examples.train.report.page import write_report
from hdf_modules import HDFError

Scores = dict[str, float]


def main(arguments: list[str] | None = None) -> list[Scores]:
    """Run the command line; returns the test scores of every fold, one unless there are several."""
    options = parse(arguments)
    device = distributed.pick_device(options.device)
    with distributed.process_group(device):
        progress = Progress(distributed.rank() > 0, _again(options, arguments))
        folds = _folds(options)
        stale = [fold.output for fold in folds] if options.overwrite else []
        found = [run(fold, device, progress, stale[i:]) for i, fold in enumerate(folds)]
        if len(found) > 1 and distributed.rank() == 0:
            record = {"folds": dict(zip(options.fold, found, strict=True)), **_spread(found)}
            checkpoint.write_text(options.output / "folds.json", json.dumps(record, indent=1))
            progress.folds(record)
    return found


def _again(options: argparse.Namespace, arguments: list[str] | None) -> str:
    """The command that goes on with a run; several folds go on by themselves."""
    words = sys.argv[1:] if arguments is None else arguments
    kept = [word for word in words if word not in ("--resume", "--overwrite")]
    launcher = "python" if distributed.world_size() == 1 else "torchrun …"
    more = ["--resume"] if len(options.fold) == 1 else []
    return f"{launcher} -m examples.train {shlex.join([*kept, *more])}"


def _folds(options: argparse.Namespace) -> list[argparse.Namespace]:
    """The options of each fold. Several have a folder each, and those that were begun go on."""
    runs = [argparse.Namespace(**vars(options) | {"fold": fold}) for fold in options.fold]
    if len(runs) > 1:
        for one in runs:
            one.output = options.output / f"fold{one.fold}"
            one.resume = not one.overwrite and (one.output / "last.pt").exists()
    return runs


def _spread(found: list[Scores]) -> dict[str, Scores]:
    """Mean and standard deviation of every score."""
    columns = {name: [fold[name] for fold in found] for name in found[0]}
    return {
        "mean": {name: statistics.fmean(values) for name, values in columns.items()},
        "std": {name: statistics.stdev(values) for name, values in columns.items()},
    }


def run(
    options: argparse.Namespace,
    device: torch.device,
    progress: Progress,
    stale: Sequence[Path] = (),
) -> Scores:
    """Train and test once; returns WAR and UAR of the test clips.

    What is in the stale folders goes as soon as there is data to train on: this run's, and those
    of later folds, which would otherwise be gone on with after a stop.
    """
    with _in_folder(options):
        torch.manual_seed(options.seed)
        splits = open_splits(options)
        progress.left_out(splits.left_out)
        trainer = build(options, splits, device)
        for folder in stale if distributed.rank() == 0 else ():
            checkpoint.forget(folder)
        with progress.resumable(options.output / "last.pt"):
            history = fit(options, splits, trainer, progress)
            return finish(options, splits, trainer, history, progress)


def _in_folder(options: argparse.Namespace) -> AbstractContextManager[None]:
    """The run's folder, for this run alone; an earlier run in it is not written over unasked."""
    if distributed.rank() > 0:
        return nullcontext()
    last = options.output / "last.pt"
    if last.exists() and not (options.resume or options.overwrite):
        hint = "pass --resume to go on with it, --overwrite to start anew"
        raise HDFError("--output", "a new folder", f"a run in {last}", hint)
    return checkpoint.alone_in(options.output)


def fit(
    options: argparse.Namespace, splits: Splits, trainer: Trainer, progress: Progress
) -> dict[str, Any]:
    """Train, validate and save every epoch; returns the history."""
    history: dict[str, Any] = {"epochs": [], "steps": []}
    torch.manual_seed(options.seed + distributed.rank())
    if options.resume:
        history = _resume(options, splits, trainer)
    loader, classes = batches(splits.train, options), len(splits.classes)
    last = min(options.epochs, options.stop_after or options.epochs)
    for epoch in range(len(history["epochs"]), last):
        splits.train.epoch = epoch
        loader.sampler.set_epoch(epoch)  # type: ignore[attr-defined]
        with progress.epoch(epoch + 1, options.epochs, len(loader)) as report:
            train = train_epoch(trainer, loader, report)
        found = _predict(trainer, splits.val, options, "validation")
        val = scores(found.predicted, found.labels, classes)
        steps = trainer.history()
        history["steps"] += steps
        # the whole loss changes its weights as it goes: epochs are compared by their cross-entropy
        train["loss"] = sum(step["classification"] for step in steps) / len(steps)
        history["epochs"].append({"train": train, "val": val | {"loss": _cross_entropy(found)}})
        progress.validated(val, last - epoch - 1)
        _save(options, trainer, history, splits)
    return history


def _predict(
    trainer: Trainer, clips: ClipDataset, options: argparse.Namespace, what: str
) -> Predictions:
    loader = batches(clips, options)
    return predict(trainer.model, loader, trainer.device, options.amp, what)


def _cross_entropy(found: Predictions) -> float:
    return float(nn.functional.cross_entropy(found.logits, found.labels))


def _save(
    options: argparse.Namespace, trainer: Trainer, history: dict[str, Any], splits: Splits
) -> None:
    states = distributed.gather(checkpoint.random_state())
    if distributed.rank() == 0:
        if best_epoch(history) == len(history["epochs"]) - 1:
            best = {"model": unwrapped(trainer.model).state_dict(), "classes": splits.classes}
            checkpoint.save(best | {"options": _plain(options)}, options.output / "best.pt")
        whole: dict[str, Any] = {"history": history, "random": states}
        whole |= {"options": _plain(options), "clips": splits.fingerprint}
        checkpoint.save(trainer.state_dict() | whole, options.output / "last.pt")


def _resume(options: argparse.Namespace, splits: Splits, trainer: Trainer) -> dict[str, Any]:
    parts = ("options", "random", "history", *trainer.state_dict())
    state = checkpoint.load(options.output / "last.pt", *parts)
    now = _plain(options)
    changed = [name for name, value in state["options"].items() if now.get(name) != value]
    changed = [name for name in changed if name not in FREE]
    if changed or len(state["random"]) != distributed.world_size():
        found = ", ".join(f"{name}={now.get(name)!r}" for name in changed)
        world = f"{distributed.world_size()} processes" if not changed else found
        hint = "repeat the run's options, or start anew with --overwrite"
        raise HDFError("resume", "the options and processes the run began with", world, hint)
    if state.get("clips", splits.fingerprint) != splits.fingerprint:  # others were held out then
        hint = "give it the same data again, or start anew with --overwrite"
        raise HDFError("resume", "the clips the run began with", "others", hint)
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
) -> Scores:
    """Test the best epoch, write results and report; returns WAR and UAR."""
    if distributed.world_size() > 1:
        torch.distributed.barrier()  # the best weights are written by one process
    best = checkpoint.load(options.output / "best.pt", "model")
    unwrapped(trainer.model).load_state_dict(best["model"])
    found = _predict(trainer, splits.test, options, "test")
    test = tables(found, splits.classes, splits.test.source.groups)
    if distributed.rank() == 0:
        record = {"options": _plain(options), **history, "test": test}
        record |= {"best_epoch": best_epoch(history), "left_out": list(splits.left_out)}
        record["environment"] = environment.describe(trainer.device)
        checkpoint.write_text(options.output / "run.json", json.dumps(record, indent=1))
        page = options.output / "report.html"
        write_report(page, record, found, splits.test, unwrapped(trainer.model))
        progress.done(test, page)
    return {name: test[name] for name in ("war", "uar")}
