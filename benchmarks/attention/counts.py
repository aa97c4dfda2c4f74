"""Launches of the kernels and the bytes they move, counted without a GPU: nothing is launched."""

from __future__ import annotations

from argparse import Namespace
from typing import Any
from unittest.mock import patch

import torch
from torch import Tensor

from benchmarks.attention.modules import SHAPES
from benchmarks.record import Rows
from hdf_modules import DistributionalAttention

# What each kernel writes, by the names of its arguments; it reads the others.
WRITTEN = {
    "statistics": ("sums", "peaks", "spots", "total"),
    "gates": ("place", "bins", "by_time", "steps", "spectrum", "moments"),
    "readout": ("spreads", "maps", "taps"),
    "multiply": ("y", "frequency"),
    "reductions": ("row_sums", "position_sums", "spectrum"),
    "gates_backward": (
        *("work", "mean_grad", "peak_grad", "grads"),
        *("mixed_grad", "marks", "readout_grads"),
    ),
    "spectrum_backward": ("mixed_grad", "taps", "grads"),
    "gradient": ("out",),
}


def launches(shape: tuple[int, ...], dtype: torch.dtype) -> list[dict[str, Any]]:
    """Name, bytes read and bytes written of each launch of forward and backward.

    A tensor counts once in a launch, as what is read again is in a cache.
    """
    from hdf_modules.attention.kernels import launch  # noqa: PLC0415 (imports the compiler)

    module, x = DistributionalAttention(shape[1], shape[2]), torch.empty(shape, dtype=dtype)
    axes, weights, found = module.layout.bind(x, shape[2]), module._weights(x), []

    def count(kernel: Any, _: int, arguments: tuple[Any, ...], __: Any) -> None:
        written, row = WRITTEN[kernel.__name__], {"read": 0, "written": 0}
        for name, value in zip(kernel.arg_names, arguments, strict=False):
            parts = value if isinstance(value, tuple) else (value,)
            size = sum(
                part.numel() * part.element_size() for part in parts if isinstance(part, Tensor)
            )
            row["written" if name in written else "read"] += size
        found.append({"kernel": kernel.__name__, **row})

    with patch.object(launch, "start", count):
        _, kept = launch.forward(x, axes, weights, module.options)  # type: ignore[arg-type]
        launch.backward(x, x, axes, weights, module.options, kept)  # type: ignore[arg-type]
    return found


def count_rows(options: Namespace) -> Rows:
    """Launches and megabytes of each shape, and how many floors these are.

    The floor of forward reads x twice and writes it once; that of backward reads x once and its
    gradient twice, and writes once.
    """
    rows = []
    for batch, *rest in SHAPES[: options.shapes]:
        shape = (options.batch or batch, *rest)
        for dtype in (torch.float32, torch.bfloat16):
            found = launches(shape, dtype)
            size = torch.Size(shape).numel() * dtype.itemsize
            row: dict[str, Any] = {"shape": list(shape), "dtype": str(dtype).removeprefix("torch.")}
            for kind, part, least in (("forward", found[:4], 3), ("backward", found[4:], 4)):
                moved = {way: sum(each[way] for each in part) for way in ("read", "written")}
                row[kind] = {
                    "launches": len(part),
                    "read_mb": moved["read"] / 1e6,
                    "written_mb": moved["written"] / 1e6,
                    "floors": sum(moved.values()) / (least * size),
                }
            rows.append(row)
    return rows
