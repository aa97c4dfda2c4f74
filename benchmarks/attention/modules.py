"""The module alone: against the literal order of operations, and against reading and writing x."""

from __future__ import annotations

import statistics
from argparse import Namespace
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor

from benchmarks.attention.literal import LiteralAttention
from benchmarks.measure import (
    Case,
    captured,
    copies,
    in_a_fresh_process,
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
from hdf_modules import DistributionalAttention

# Batch, channels, frames, height and width behind the stages of X3D.
SHAPES = (
    (8, 24, 16, 28, 28),
    (8, 48, 16, 14, 14),
    (8, 96, 16, 14, 14),
    (8, 96, 16, 7, 7),
    (2, 24, 16, 56, 56),
)


OURS = ("eager", "reference", "captured", "compiled")  # the two in the middle on a GPU alone


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


def module_rows(options: Namespace) -> Iterator[dict[str, Any]]:
    """Times of each shape: the floor, ours eager and compiled, half precision, literal."""
    for shape in SHAPES[: options.shapes]:
        yield _module_row(shape, options)


def _module_row(shape: tuple[int, ...], options: Namespace) -> dict[str, Any]:
    torch.manual_seed(0)
    shape, device = (options.batch or shape[0], *shape[1:]), options.device
    _, channels, frames, *_ = shape
    x = torch.randn(shape, device=device)
    ours = attention(channels, frames, device)
    xs = copies(x)
    cases = {"floor": floor(xs)} | _both("eager", ours, x)
    if device == "cuda":
        cases |= {k: _by_equations(case) for k, case in _both("reference", ours, x).items()}
        graphs = {"floor": cases["floor"]} | _both("captured", ours, x)
        cases |= {k: captured(case, len(xs)) for k, case in graphs.items()}
    if not options.eager:
        torch.compiler.reset()
        mode = "reduce-overhead" if device == "cuda" else None  # CUDA graphs
        cases |= _both("compiled", torch.compile(ours, mode=mode, dynamic=False), x)
    last = x.to(memory_format=torch.channels_last_3d)
    cases |= _both("bf16", ours, x.bfloat16()) | _both("channels_last", ours, last)
    theirs, released = LiteralAttention(channels, frames).to(device), x.transpose(1, 2).contiguous()
    cases |= _both("literal", theirs, released)
    times = interleaved(cases, device, options.rounds, options.spread)
    peaks = {
        name: peak(cases[f"{case} forward+backward"], device) * 1e6 / x.nbytes
        for name, case in (("ours", "eager"), ("literal", "literal"))
    }
    return {
        "shape": list(shape),
        "peak": peaks,  # the result and the gradient of x among it
        "saved": {
            "ours": saved_bytes(ours, x) / x.nbytes - 1,
            "literal": saved_bytes(theirs, released) / x.nbytes - 1,
        },
        "ms": medians(times),
        "floors": {name: ratio(times, name, "floor") for name in cases if name.endswith("forward")},
        "speed": {
            name: ratio(times, f"literal {name.partition(' ')[2]}", name)
            for name in cases
            if name.startswith(OURS)
        },
    }


def _both(name: str, module: Any, x: Tensor) -> dict[str, Case]:
    xs = copies(x)
    return {
        f"{name} forward": inference(module, xs),
        f"{name} forward+backward": training(module, xs),
    }


def _by_equations(case: Case) -> Case:
    def run(number: int) -> None:
        with without_kernels():
            case(number)

    return run


def sweep_rows(options: Namespace) -> Rows:
    """Cost along each axis, the others at the middle shape."""
    base = {"batch": 4, "time": 16, "channels": 48, "side": 14}
    values = {
        "batch": (1, 2, 4, 8, 16, 32),
        "time": (4, 8, 16, 32, 64),
        "channels": (24, 48, 96, 192, 384),
        "side": (7, 14, 28, 42),  # beyond 32 MB the C library asks the system anew every time
    }
    device, rows = options.device, []
    for axis, points in values.items():
        cases: dict[str, Case] = {}
        for value in points:
            size = base | {axis: value}
            shape = size["batch"], size["channels"], size["time"], size["side"], size["side"]
            x, module = torch.randn(shape, device=device), attention(shape[1], shape[2], device)
            cases |= _both(str(value), module, x)
        backwards = dict(reversed(cases.items()))
        ms = medians(interleaved(backwards, device, options.rounds, options.spread))
        for value in points:
            elements = value**2 if axis == "side" else value
            times = {kind: ms[f"{value} {kind}"] for kind in ("forward", "forward+backward")}
            rows.append({"axis": axis, "value": value, "elements": elements, "ms": times})
    return rows


def import_rows(options: Namespace, repeats: int = 7) -> Rows:
    """Milliseconds that the package takes beyond ``import torch``, in fresh processes."""
    code = (
        "import time, torch; t = time.perf_counter(); import hdf_modules; "
        "print(1e3 * (time.perf_counter() - t))"
    )
    return [{"ms": statistics.median(in_a_fresh_process(code) for _ in range(repeats))}]
