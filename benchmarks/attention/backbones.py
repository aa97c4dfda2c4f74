"""Whole networks: what each module adds to a backbone when it stands behind every stage."""

from __future__ import annotations

from argparse import Namespace
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from benchmarks.attention.peers import FACTORIES
from benchmarks.machine import missing
from benchmarks.measure import (
    Case,
    inference,
    interleaved,
    medians,
    peak,
    ratio,
    saved_bytes,
    training,
    without_kernels,
)
from benchmarks.record import Rows
from hdf_modules import DistributionalAttention, attach

FRAMES, SIDE = 16, 112


def _x3d_s() -> nn.Module:
    from pytorchvideo.models.x3d import create_x3d  # noqa: PLC0415

    return create_x3d(input_clip_length=FRAMES, input_crop_size=SIDE, depth_factor=2.2)


def _r3d_18() -> nn.Module:
    from torchvision.models.video import r3d_18  # noqa: PLC0415

    return r3d_18()


def _timm(name: str, **options: Any) -> Callable[[], nn.Module]:
    def build() -> nn.Module:
        import timm  # noqa: PLC0415

        return timm.create_model(name, **options)

    return build


BACKBONES: dict[str, Callable[[], nn.Module]] = {
    "X3D-S": _x3d_s,
    "r3d_18": _r3d_18,
    "resnet18": _timm("resnet18"),
    "ViT-S": _timm("vit_small_patch16_224", img_size=SIDE),
}
PACKAGES = {"X3D-S": "pytorchvideo", "r3d_18": "torchvision"}  # of those that are not timm's
FOLDED = ("resnet18", "ViT-S")  # take frames, (b t) c h w
FIXED_LENGTH = ("literal",)  # cannot stand behind stages that halve the frames, as r3d_18's do
APART = ("non-local",)  # fills gigabytes: what runs next to it is slower for it
VARIANTS = ("bare", "ours", "ours compiled", *(name for name in FACTORIES if name != "ours"))


def build(backbone: str, variant: str, device: str) -> nn.Module:
    """The backbone with a variant's modules behind its stages."""
    torch.manual_seed(0)
    model = BACKBONES[backbone]()
    if variant != "bare":
        attach(model, FRAMES, factory=FACTORIES[variant.removesuffix(" compiled")])
    for module in model.modules():
        if isinstance(module, DistributionalAttention) and module.strength is not None:
            nn.init.constant_(module.strength, 0.1)
            if variant == "ours compiled":
                module.compile(dynamic=False)
    # Each stage is compiled apart, for training and for inference: more often than dynamo expects.
    torch._dynamo.config.recompile_limit = 64
    return model.to(device)


def sample(backbone: str, clips: int, device: str) -> Tensor:
    if backbone in FOLDED:
        return torch.randn(clips * FRAMES, 3, SIDE, SIDE, device=device)
    return torch.randn(clips, 3, FRAMES, SIDE, SIDE, device=device)


def backbone_rows(options: Namespace) -> Iterator[dict[str, Any]]:
    """One row a network, precision and variant; networks that are not installed are left out."""
    for name in options.backbones:
        if not missing(name, PACKAGES.get(name, "timm")):
            for precision in options.precisions:
                yield from _rows(name, precision, options)


def _rows(backbone: str, precision: str, options: Namespace) -> Rows:
    """Ratios are medians over rounds in which every variant ran."""
    torch.compiler.reset()  # what it compiled for the last network it would look through here
    clips, device = options.clips, options.device
    x = sample(backbone, clips, device)
    left_out = FIXED_LENGTH if backbone == "r3d_18" else ()
    variants = [
        name
        for name in options.variants
        if name not in left_out and not (options.eager and "compiled" in name)
    ]
    models = {name: build(backbone, name, device) for name in variants}
    cast = partial(torch.autocast, device, torch.bfloat16, enabled=precision == "bfloat16")
    with cast():
        rows = {name: _static(name, model.eval(), x) for name, model in models.items()}
        kinds = {"inference": {name: inference(model, [x]) for name, model in models.items()}}
        if not options.no_training:
            kinds["training"] = {name: _step(model, x) for name, model in models.items()}
    kinds = {
        kind: {name: _under(cast, case) for name, case in cases.items()}
        for kind, cases in kinds.items()
    }
    for kind, cases in kinds.items():
        for model in models.values():
            model.train(kind == "training")
        for group in _groups(variants):
            chosen = {name: cases[name] for name in group}
            times = interleaved(chosen, device, options.rounds, options.spread, calls=1)
            for name, ms in medians(times).items():
                if kind not in rows[name]:
                    rows[name][kind] = {
                        "ms": ms,
                        "ratio": ratio(times, name, group[0]),
                        "clips_per_second": 1e3 * clips / ms,
                        "peak_mb": peak(cases[name], device),
                    }
    named = {"backbone": backbone, "clips": clips, "precision": precision}
    return [named | row for row in rows.values()]


def _under(cast: Callable[[], torch.autocast], case: Case) -> Case:
    """Autocast holds forward and backward of every call, as a training loop's cache wants it."""

    def run(number: int) -> None:
        with cast():
            case(number)

    return run


def _groups(variants: list[str]) -> list[list[str]]:
    """The variants that are timed side by side, each with the first one."""
    together = [name for name in variants if name not in APART]
    return [together, *([variants[0], name] for name in variants[1:] if name in APART)]


def _static(name: str, model: nn.Module, x: Tensor) -> dict[str, Any]:
    gflops = _gflops(model, x)
    model.train()
    saved = saved_bytes(model, x) if not name.endswith("compiled") else None
    model.eval()
    return {
        "variant": name,
        "parameters": sum(p.numel() for p in model.parameters()),
        "gflops": gflops,
        "saved_mb": None if saved is None else saved / 1e6,
    }


def _gflops(model: nn.Module, x: Tensor) -> float:
    """Operations of the equations: those of kernels are seen by no counter."""
    torch.compiler.set_stance("force_eager")
    with without_kernels(), torch.inference_mode(), FlopCounterMode(display=False) as counter:
        model(x)
    torch.compiler.set_stance("default")
    return counter.get_total_flops() / 1e9


def _step(model: nn.Module, x: Tensor) -> Case:
    model.train()
    return training(model, [x], needs_input=False)
