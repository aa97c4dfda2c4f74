"""The module alone: against the literal order of operations, and against reading and writing x."""

from __future__ import annotations

import statistics
import subprocess
import sys
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from benchmarks.cost.timing import (
    Case,
    copies,
    inference,
    interleaved,
    ratio,
    saved_bytes,
    training,
)
from benchmarks.literal import LiteralAttention
from hdf_modules import DistributionalAttention

# Batch, channels, frames, height and width behind the stages of X3D.
SHAPES = (
    (8, 24, 16, 28, 28),
    (8, 48, 16, 14, 14),
    (8, 96, 16, 14, 14),
    (8, 96, 16, 7, 7),
    (2, 24, 16, 56, 56),
)
Row = dict[str, Any]


def attention(channels: int, frames: int, device: str) -> DistributionalAttention:
    """Our module away from its start, where r = 0."""
    module = DistributionalAttention(channels, frames, device=device)
    torch.nn.init.constant_(module.frequency.spread_scale, 0.1)
    if module.strength is not None:
        torch.nn.init.constant_(module.strength, 0.5)
    return module


def floor(xs: list[Tensor]) -> Case:
    """Read x twice and write it once, into memory that is there already."""
    y = torch.empty_like(xs[0])

    def run(number: int) -> None:
        x = xs[number % len(xs)]
        x.sum()
        torch.mul(x, 1.5, out=y)

    return run


def module_row(
    shape: tuple[int, ...], device: str, rounds: int, limit: float, *, compiled: bool
) -> Row:
    """Times of one shape: the floor, ours eager and compiled, half precision, literal."""
    torch.manual_seed(0)
    _, channels, frames, *_ = shape
    x = torch.randn(shape, device=device)
    ours = attention(channels, frames, device)
    cases = {"floor": floor(copies(x))} | _both("eager", ours, x)
    if compiled:
        torch.compiler.reset()
        mode = "reduce-overhead" if device == "cuda" else None  # CUDA graphs
        cases |= _both("compiled", torch.compile(ours, mode=mode, dynamic=False), x)
    last = x.to(memory_format=torch.channels_last_3d)
    cases |= _both("bf16", ours, x.bfloat16()) | _both("channels_last", ours, last)
    row: Row = {"shape": list(shape), "saved": {}}
    row["saved"]["ours"] = saved_bytes(ours, x) / x.nbytes - 1
    theirs, released = LiteralAttention(channels, frames).to(device), x.transpose(1, 2).contiguous()
    cases |= _both("literal", theirs, released)
    row["saved"]["literal"] = saved_bytes(theirs, released) / x.nbytes - 1
    times = interleaved(cases, device, rounds, limit)
    row["ms"] = {name: statistics.median(values) for name, values in times.items()}
    row["floors"] = {
        name: ratio(times, name, "floor") for name in cases if name.endswith("forward")
    }
    row["speed"] = {
        name: ratio(times, f"literal {name.partition(' ')[2]}", name)
        for name in cases
        if name.startswith(("eager", "compiled"))
    }
    return row


def _both(name: str, module: Any, x: Tensor) -> dict[str, Case]:
    xs = copies(x)
    return {
        f"{name} forward": inference(module, xs),
        f"{name} forward+backward": training(module, xs),
    }


def sweep_rows(device: str, rounds: int, limit: float) -> list[Row]:
    """Cost along each axis, the others at the middle shape."""
    base = {"batch": 4, "time": 16, "channels": 48, "side": 14}
    values = {
        "batch": (1, 2, 4, 8, 16, 32),
        "time": (4, 8, 16, 32, 64),
        "channels": (24, 48, 96, 192, 384),
        "side": (7, 14, 28, 42),  # beyond 32 MB the C library asks the system anew every time
    }
    rows = []
    for axis, points in values.items():
        cases: dict[str, Case] = {}
        for value in points:
            size = base | {axis: value}
            shape = size["batch"], size["channels"], size["time"], size["side"], size["side"]
            x, module = torch.randn(shape, device=device), attention(shape[1], shape[2], device)
            cases |= _both(str(value), module, x)
        times = interleaved(dict(reversed(cases.items())), device, rounds, limit)
        for value in points:
            elements = value**2 if axis == "side" else value
            row: Row = {"axis": axis, "value": value, "elements": elements}
            row["ms"] = {
                kind: statistics.median(times[f"{value} {kind}"])
                for kind in ("forward", "forward+backward")
            }
            rows.append(row)
    return rows


def import_row(repeats: int = 7) -> Row:
    """Milliseconds that the package takes beyond ``import torch``, in fresh processes."""
    code = (
        "import time, torch; t = time.perf_counter(); import hdf_modules; "
        "print(1e3 * (time.perf_counter() - t))"
    )
    root = Path(__file__).parents[2]
    found = [
        float(
            subprocess.run(  # noqa: S603
                [sys.executable, "-c", code], check=True, capture_output=True, text=True, cwd=root
            ).stdout
        )
        for _ in range(repeats)
    ]
    return {"ms": statistics.median(found)}
