"""The options of SAM's benchmark, and what they start."""

from __future__ import annotations

from argparse import Namespace
from collections.abc import Callable
from typing import Any

import torch

from benchmarks.record import Part, add_parts, update
from benchmarks.sam import report, steps, waits

PARTS = {"steps": Part(steps.step_rows, ("model",)), "waits": Part(waits.wait_rows)}


def add_options(add: Callable[..., Any]) -> None:
    add_parts(add, PARTS)
    add("--models", nargs="+", choices=steps.MODELS, default=list(steps.MODELS))
    add("--rounds", type=int, default=40)
    add("--device", default="cpu", choices=("cpu", "cuda"))


def run(options: Namespace) -> None:
    torch.set_num_threads(1)
    path = options.output / f"sam_{options.device}.json"
    update(path, PARTS, options, report.write)
