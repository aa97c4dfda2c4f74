"""One run: train a setting without one source, then measure it."""

from __future__ import annotations

import time
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim.lr_scheduler import OneCycleLR
from torch.utils.data import DataLoader

import hdf_modules
from benchmarks.evidence import clips
from benchmarks.evidence.controls import FrameGain, SqueezeExcitation, build_attention
from benchmarks.evidence.gates import looked
from benchmarks.evidence.measures import cosines, degradation, measures
from benchmarks.evidence.sets import DATA
from benchmarks.evidence.settings import Preset, Setting
from benchmarks.machine import sources
from examples.train import models
from examples.train.data.clips import ClipDataset
from examples.train.engine import Trainer, predict, train_epoch
from examples.train.metrics import Predictions
from hdf_modules import SAM, HeterogeneityAwareLoss, attach, with_features
from hdf_modules.loss import (
    KL,
    Chi2,
    CVaR,
    Fixed,
    GradientNorm,
    GroupDRO,
    Ramp,
    RobustContrastive,
)


def run(
    setting: Setting,
    preset: Preset,
    held_out: str,
    seed: int,
    store: Path,
    *,
    test: bool,
    gates: bool = False,
) -> dict[str, Any]:
    """Train and measure; a dictionary of plain values.

    Args:
        setting: the row of the ablation.
        preset: the budget.
        held_out: source that is not trained on.
        seed: of the weights, the order of the clips and, of real faces, the people in the splits.
        store: folder of the drawn clips.
        test: measure the test clips, else the validation clips.
        gates: measure the gates over the test clips too.
    """
    chosen = DATA[preset.data]
    seen = tuple(name for name in chosen.names if name != held_out)
    began = time.perf_counter()
    pool = partial(clips.pool, preset, store, seed=seed)
    train = pool("train", seen)
    trainer, history = _train(setting, preset, train, seed)
    trained = time.perf_counter() - began
    ask = partial(_ask, trainer, preset)
    result: dict[str, Any] = {
        "fit": _accuracy(_predict(trainer, preset, train)),
        "history": history,
        "parameters": sum(p.numel() for p in trainer.model.parameters() if p.requires_grad),
        "strengths": [
            round(float(p.detach()), 4)
            for name, p in trainer.model.named_parameters()
            if name.endswith(".strength")
        ],
        "training_seconds": round(trained, 1),
        "environment": environment(preset),
    }
    if not test:
        unseen = pool("unseen", chosen.validation_names)
        return result | {"validation": {"seen": ask(pool("val", seen)), "unseen": ask(unseen)}}
    measured = {"seen": ask(pool("test", seen)), "unseen": ask(pool("unseen", [held_out]))}
    if preset.corrupted_clips:
        corrupted = partial(clips.corrupted, preset, store, seen, seed=seed)
        measured["corruption"] = degradation(lambda *variant: ask(corrupted(*variant))["uar"])
    if gates:
        pools = {"seen": pool("test", seen), "unseen": pool("unseen", [held_out])}
        model, uar = trainer.model, lambda part: float(ask(part)["uar"])
        result["validation"] = ask(pool("val", seen))
        result["gates"] = looked(model, uar, pools, preset.frames)
    return result | {"test": measured}


def environment(preset: Preset) -> dict[str, str]:
    """What the numbers also depend on: versions, code, processor and the clips."""
    return {
        "hdf_modules": hdf_modules.__version__,
        "torch": torch.__version__,
        "processor": torch.backends.cpu.get_cpu_capability(),
        "device": torch.cuda.get_device_name() if torch.cuda.is_available() else "CPU",
        "clips": clips.drawing(DATA[preset.data]),
        "sources": sources(),
    }


def build(setting: Setting, preset: Preset, classes: int) -> nn.Module:
    """The network of a setting: the baseline's, drawn first, and what the setting adds."""
    model = models.build(preset.model, classes, preset.frames).to(
        memory_format=torch.channels_last_3d
    )
    stages = getattr(model, "attention_stages", None)
    if setting.attention is not None:
        factory = partial(build_attention, **setting.attention)
        attach(model, preset.frames, stages=stages, factory=factory)
    for wanted, control in (
        (setting.squeeze_excitation, SqueezeExcitation),
        (setting.frame_gain, FrameGain),
    ):
        if wanted:
            attach(model, preset.frames, stages=stages, factory=control)
    return with_features(model)


def build_loss(setting: Setting, steps: int) -> HeterogeneityAwareLoss:
    """The loss of a setting: options that the data files name flat, made into its parts.

    A level of two numbers goes from the first to the second over the first half of the steps.
    """
    given: dict[str, Any] = {"alpha": 1.0, "beta": 0.1} | setting.loss

    def some(*names: str) -> dict[str, Any]:
        return {name: given.pop(name) for name in names if name in given}

    # Drawn rows were recorded with the gradient through the weights, which then was the only way.
    contrastive = {"weight_gradient": True} | some("temperature", "eta", "memory", "across_groups")
    contrastive |= some("weight_gradient")
    balance = some("alpha", "beta", "floor")
    by_class = {"by_class": given.pop("joint_groups")} if "joint_groups" in given else {}
    if "weighting" in given:
        kinds = {"kl": KL, "chi2": Chi2, "cvar": CVaR, "group": GroupDRO}
        level = given.pop("level")
        if isinstance(level, list):
            level = Ramp(*level, steps=steps // 2)
        given["weighting"] = kinds[given["weighting"]](level, **by_class)
    if not setting.contrastive:
        given |= {"contrastive": None, "bottleneck": 0.0}
    else:
        given["contrastive"] = RobustContrastive(**contrastive)
    if not setting.rescale:
        given["balance"] = Fixed(balance["alpha"], balance["beta"])
    else:
        given["balance"] = GradientNorm(**balance)
    return HeterogeneityAwareLoss(**given)


def _train(
    setting: Setting, preset: Preset, train: clips.Pool, seed: int
) -> tuple[Trainer, list[dict[str, float]]]:
    torch.manual_seed(seed)
    pictures = DATA[preset.data].pictures
    dataset = ClipDataset(train, preset.frames, training=True, augmented=pictures, seed=seed)
    loader: DataLoader[Any] = DataLoader(
        dataset,
        preset.batch_size,
        shuffle=True,
        drop_last=True,
        collate_fn=collate,
        generator=torch.Generator().manual_seed(seed),
    )
    epochs = round(preset.epochs * setting.budget)
    model = build(setting, preset, len(train.classes))
    steps = epochs * len(loader)
    criterion = build_loss(setting, steps)
    trainer = _trainer(setting, preset, model, criterion, steps)
    history = []
    for epoch in range(epochs):
        dataset.epoch = epoch
        summary = train_epoch(trainer, loader, lambda *_: None)
        terms = trainer.history()
        means = {name: sum(step[name] for step in terms) / len(terms) for name in terms[0]}
        history.append({name: round(value, 4) for name, value in (summary | means).items()})
    return trainer, history


def _trainer(
    setting: Setting,
    preset: Preset,
    model: nn.Module,
    criterion: HeterogeneityAwareLoss,
    steps: int,
) -> Trainer:
    device = torch.device(preset.device)
    model, criterion = model.to(device), criterion.to(device)
    optimizer: torch.optim.Optimizer = torch.optim.AdamW(
        model.parameters(), preset.lr, weight_decay=preset.weight_decay
    )
    if setting.rho:
        optimizer = SAM(optimizer, setting.rho, model=model)
    return Trainer(
        model,
        criterion,
        optimizer,
        OneCycleLR(optimizer, preset.lr, total_steps=steps, pct_start=0.1, cycle_momentum=False),
        torch.amp.GradScaler(device.type, enabled=preset.amp and device.type == "cuda"),
        device,
        preset.amp,
    )


def _ask(trainer: Trainer, preset: Preset, pool: clips.Pool) -> dict[str, Any]:
    found = _predict(trainer, preset, pool)
    return measures(found, pool) | {"cosine": cosines(found)}


def _predict(trainer: Trainer, preset: Preset, pool: clips.Pool) -> Predictions:
    dataset = ClipDataset(pool, preset.frames)
    loader: DataLoader[Any] = DataLoader(dataset, 64, collate_fn=collate)
    return predict(trainer.model, loader, trainer.device, preset.amp)


def _accuracy(found: Predictions) -> float:
    return round(100 * float((found.predicted == found.labels).float().mean()), 2)


def collate(items: list[dict[str, Any]]) -> dict[str, Tensor]:
    """Collate in the memory format that 3D convolutions are fastest in."""
    batch: dict[str, Tensor] = torch.utils.data.default_collate(items)
    batch["clip"] = batch["clip"].contiguous(memory_format=torch.channels_last_3d)
    return batch
