"""The options of the scaling benchmark, and what they start."""

from __future__ import annotations

from argparse import Namespace
from collections.abc import Callable
from typing import Any

import torch

from benchmarks.record import Part, add_parts, update
from benchmarks.scaling import report, runs

PARTS = {"runs": Part(runs.run_rows)}


def add_options(add: Callable[..., Any]) -> None:
    add_parts(add, PARTS)
    add("--widths", nargs="+", type=int, default=[16, 51], help="channels of the first stage")
    add("--clips", type=int, default=192)
    add("--epochs", type=int, default=10)
    add("--size", type=int, default=20, help="side of the frames in pixels")
    add("--frames", type=int, default=4)


def run(options: Namespace) -> None:
    torch.set_num_threads(1)
    path = options.output / "scaling.json"
    update(path, PARTS, options, report.write)
