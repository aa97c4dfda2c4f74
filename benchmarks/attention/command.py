"""The options of the attention benchmark, and what they start."""

from __future__ import annotations

from argparse import Namespace
from collections.abc import Callable
from typing import Any

import torch

from benchmarks.attention import backbones, counts, modules, report
from benchmarks.measure import keep_freed_memory
from benchmarks.record import Part, add_parts, update

PARTS = {
    "modules": Part(modules.module_rows),
    "sweep": Part(modules.sweep_rows),
    "counts": Part(counts.count_rows),
    "backbones": Part(backbones.backbone_rows, ("backbone", "clips", "precision", "variant")),
    "import": Part(modules.import_rows),
}


def add_options(add: Callable[..., Any]) -> None:
    add_parts(add, PARTS)
    add("--device", default="cpu", choices=("cpu", "cuda"))
    add("--threads", type=int, default=2)
    add("--rounds", type=int, default=15)
    add("--spread", type=float, default=0.5, help="repeat runs less stable than this")
    add("--batch", type=int, help="of every shape of `modules`")
    add("--shapes", type=int, default=len(modules.SHAPES), help="how many of them")
    add("--eager", action="store_true", help="compile nothing")
    add("--backbones", nargs="+", default=list(backbones.BACKBONES), choices=backbones.BACKBONES)
    add("--variants", nargs="+", default=list(backbones.VARIANTS), choices=backbones.VARIANTS)
    add("--precisions", nargs="+", default=["float32"], choices=("float32", "bfloat16"))
    add("--clips", type=int, default=1, help="in a batch of `backbones`")
    add("--no-training", action="store_true", help="inference alone in `backbones`")


def run(options: Namespace) -> None:
    torch.set_num_threads(options.threads)
    keep_freed_memory()
    path = options.output / f"attention_{options.device}.json"
    update(path, PARTS, options, report.write)
