"""The options of the loss's benchmark, and what they start."""

from __future__ import annotations

from argparse import Namespace
from collections.abc import Callable
from typing import Any

import torch

from benchmarks.loss import contrastive, report, samples
from benchmarks.record import Part, add_parts, update

PARTS = {
    "contrastive": Part(contrastive.contrastive_rows, ("n",)),
    "memory": Part(contrastive.memory_rows, ("n",)),
    "ranks": Part(contrastive.rank_rows, ("ranks",)),
    "weights": Part(samples.weight_rows, ("n", "objective")),
    "positives": Part(samples.positive_rows, ("memory",)),
}


def add_options(add: Callable[..., Any]) -> None:
    add_parts(add, PARTS)
    add("--sizes", nargs="+", type=int, default=[256, 512, 1024, 2048, 4096, 8192])
    add("--memory-sizes", nargs="+", type=int, default=[4096, 8192, 16384, 32768, 65536])
    add("--rank-size", type=int, default=4096)
    add("--device", default="cpu", choices=("cpu", "cuda"))


def run(options: Namespace) -> None:
    torch.set_num_threads(1)
    path = options.output / f"loss_{options.device}.json"
    update(path, PARTS, options, report.write)
