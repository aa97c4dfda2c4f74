"""One run: train a setting without one source, then measure it."""

from __future__ import annotations

import hashlib
import os
import time
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import models
import torch
from data.clips import ClipDataset
from engine import Trainer, predict, train_epoch
from torch import Tensor, nn
from torch.optim.lr_scheduler import OneCycleLR
from torch.utils.data import DataLoader

import hdf_modules
from benchmarks.evidence import clips
from benchmarks.evidence.clips import VALIDATION_NAMES as UNSEEN
from benchmarks.evidence.controls import Projected, SqueezeExcitation, build_attention
from benchmarks.evidence.measures import cosines, degradation, measures
from benchmarks.evidence.presets import Preset
from benchmarks.evidence.settings import Setting
from hdf_modules import SAM, HeterogeneityAwareLoss, attach, with_features
from hdf_modules.adapters.registry import find_adapter

Weights = dict[str, Tensor]
_TRAINED_BY = (
    "model",
    "size",
    "frames",
    "train_clips",
    "epochs",
    "batch_size",
    "lr",
    "weight_decay",
)


def run(
    setting: Setting, preset: Preset, held_out: str, seed: int, store: Path, *, test: bool
) -> dict[str, Any]:
    """Train and measure; a dictionary of plain values.

    Args:
        setting: the row of the ablation.
        preset: the budget.
        held_out: source that is not trained on.
        seed: of the weights and the order of the clips; the clips are the same for every seed.
        store: folder of the drawn clips.
        test: measure the test clips, else the validation clips.
    """
    seen = tuple(name for name in clips.NAMES if name != held_out)
    began = time.perf_counter()
    weights = start(preset, held_out, seed, store)
    trainer, history = _train(
        setting, preset, clips.pool(preset, store, "train", seen), seed, weights
    )
    trained = time.perf_counter() - began
    ask = partial(_ask, trainer, preset)
    result: dict[str, Any] = {
        "history": history,
        "parameters": sum(p.numel() for p in trainer.model.parameters() if p.requires_grad),
        "strengths": [
            round(float(p.detach()), 4)
            for name, p in trainer.model.named_parameters()
            if name.endswith(".strength")
        ],
        "training_seconds": round(trained, 1),
        "environment": environment(),
    }
    if not test:
        val = partial(clips.pool, preset, store, "val")
        return result | {"validation": {"seen": ask(val(seen)), "unseen": ask(val(UNSEEN))}}
    corrupted = partial(clips.corrupted, preset, store, seen)
    measured = {
        "seen": ask(clips.pool(preset, store, "test", seen)),
        "unseen": ask(clips.pool(preset, store, "test", [held_out])),
        "corruption": degradation(lambda *variant: float(ask(corrupted(*variant))["uar"])),
    }
    return result | {"test": measured}


def environment() -> dict[str, str]:
    """What the numbers also depend on a little: versions, processor and the drawn clips."""
    return {
        "hdf_modules": hdf_modules.__version__,
        "torch": torch.__version__,
        "processor": torch.backends.cpu.get_cpu_capability(),
        "device": torch.cuda.get_device_name() if torch.cuda.is_available() else "CPU",
        "clips": clips.drawing(),
    }


def start(preset: Preset, held_out: str, seed: int, store: Path) -> Weights:
    """The baseline's weights after ``start_epochs``, from disk after the first time."""
    first = replace(preset, epochs=preset.start_epochs)
    parts = (getattr(first, name) for name in _TRAINED_BY)
    digest = hashlib.sha256(repr((clips.drawing(), *parts)).encode()).hexdigest()[:10]
    path = store / "starts" / f"{held_out}-{seed}-{digest}.pt"
    if not path.exists():
        seen = [name for name in clips.NAMES if name != held_out]
        train = clips.pool(preset, store, "train", seen)
        trainer, _ = _train(Setting("start"), first, train, seed)
        path.parent.mkdir(parents=True, exist_ok=True)
        part = path.with_suffix(f".{os.getpid()}.part")
        torch.save(trainer.model.state_dict(), part)
        part.replace(path)
    weights: Weights = torch.load(path, weights_only=True)
    return weights


def build(setting: Setting, preset: Preset, classes: int, weights: Weights | None) -> nn.Module:
    """The network of a setting: the baseline's with those weights, and what the setting adds."""
    model = models.build(preset.model, classes, preset.frames)
    if weights is not None:
        model.load_state_dict(weights)
    model = model.to(memory_format=torch.channels_last_3d)
    width = [m for m in model.modules() if isinstance(m, nn.Linear)][-1].in_features
    stages = getattr(model, "attention_stages", None)
    if setting.stages is not None:
        stages = stages or find_adapter(model).find_stages(model, preset.frames, None)
        stages = [stages[place] for place in setting.stages]
    if setting.attention is not None:
        factory = partial(build_attention, **setting.attention)
        attach(model, preset.frames, stages=stages, factory=factory)
    if setting.squeeze_excitation:
        attach(model, preset.frames, stages=stages, factory=SqueezeExcitation)
    model = with_features(model)
    if setting.projection is not None:
        model = Projected(model, width, setting.projection)
    return model


def _train(
    setting: Setting, preset: Preset, train: clips.Pool, seed: int, weights: Weights | None = None
) -> tuple[Trainer, list[dict[str, float]]]:
    torch.manual_seed(seed)
    dataset = ClipDataset(train, preset.frames, training=True, seed=seed)
    loader: DataLoader[Any] = DataLoader(
        dataset,
        preset.batch_size,
        shuffle=True,
        drop_last=True,
        collate_fn=_channels_last,
        generator=torch.Generator().manual_seed(seed),
    )
    epochs = round(preset.epochs * setting.budget)
    model = build(setting, preset, len(train.classes), weights)
    trainer = _trainer(setting, preset, model, epochs * len(loader))
    history = []
    for epoch in range(epochs):
        dataset.epoch = epoch
        summary = train_epoch(trainer, loader, lambda *_: None)
        steps = trainer.history()
        means = {name: sum(step[name] for step in steps) / len(steps) for name in steps[0]}
        history.append({name: round(value, 4) for name, value in (summary | means).items()})
    return trainer, history


def _trainer(setting: Setting, preset: Preset, model: nn.Module, steps: int) -> Trainer:
    device = torch.device(preset.device)
    model = model.to(device)
    criterion = HeterogeneityAwareLoss(**setting.loss).to(device)
    groups = parameter_groups(model, preset.lr, setting.strength_rate)
    rates = [group["lr"] for group in groups]
    optimizer: torch.optim.Optimizer = torch.optim.AdamW(groups, weight_decay=preset.weight_decay)
    if setting.rho:
        optimizer = SAM(optimizer, setting.rho, adaptive=setting.adaptive, model=model)
    return Trainer(
        model,
        criterion,
        optimizer,
        OneCycleLR(optimizer, rates, total_steps=steps, pct_start=0.1, cycle_momentum=False),
        torch.amp.GradScaler(device.type, enabled=preset.amp and device.type == "cuda"),
        device,
        preset.amp,
        setting.contrastive,
        rescale=setting.rescale,
    )


def parameter_groups(model: nn.Module, lr: float, rate: float) -> list[dict[str, Any]]:
    """The attention's strengths apart from all other parameters, with ``rate`` times their rate."""
    named = list(model.named_parameters())
    groups = [
        {"params": [p for name, p in named if not name.endswith(".strength")], "lr": lr},
        {"params": [p for name, p in named if name.endswith(".strength")], "lr": rate * lr},
    ]
    return [group for group in groups if group["params"]]


def _ask(trainer: Trainer, preset: Preset, pool: clips.Pool) -> dict[str, Any]:
    dataset = ClipDataset(pool, preset.frames)
    loader: DataLoader[Any] = DataLoader(dataset, 64, collate_fn=_channels_last)
    found = predict(trainer.model, loader, trainer.device, preset.amp)
    return measures(found, pool) | {"cosine": cosines(found)}


def _channels_last(items: list[dict[str, Any]]) -> dict[str, Tensor]:
    """Collate in the memory format that 3D convolutions are fastest in."""
    batch: dict[str, Tensor] = torch.utils.data.default_collate(items)
    batch["clip"] = batch["clip"].contiguous(memory_format=torch.channels_last_3d)
    return batch
