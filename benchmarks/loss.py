"""Time and memory of the loss against its peers: python -m benchmarks.loss [PART ...] [--help].

Parts, all by default; each puts its rows into its own section of loss.json in the output folder
(benchmarks/results), after which loss.md and loss.png are drawn anew from that file. Sizes not
measured this time keep their rows if those are of the same machine and versions:

contrastive  forward and backward of the robust contrastive loss, dense and in tiles, against
             pytorch-metric-learning's SupConLoss on the same features (D = 128, 7 classes).
             Median time of interleaved runs in one process.
memory       peak memory of the tiled loss at D = 256.
ranks        the tiled loss on one of several ranks that share a batch of --rank-size samples,
             communication left out. Median time of interleaved runs in one process.
weights      exact χ² and KL-ball weights against 60 steps of bisection in float64.
positives    share of anchors with a positive at batch 8 on a long-tailed mix of classes, by size
             of the feature memory.

Every memory figure comes from a process of its own that has run once on a small batch: the rise of
its peak resident size (Linux), inputs excluded, their gradient included. One thread on the CPU; on
a GPU (--device cuda), the allocator's peak.
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from benchmarks.loss_weights import Rows, positive_rows, seconds, weight_rows
from benchmarks.machine import describe
from hdf_modules.functional import robust_contrastive_loss
from hdf_modules.loss.contrastive import contrastive_term, normalize
from hdf_modules.loss.pairwise import Kernel, Split, log_denominators

NAMES = ("supcon", "dense", "tiles")
Loss = Callable[[Tensor, Tensor], Tensor]


def inputs(n: int, dimensions: int, device: str) -> tuple[Tensor, Tensor]:
    torch.manual_seed(0)
    features = torch.randn(n, dimensions).to(device).requires_grad_()
    return features, torch.randint(7, (n,)).to(device)


def contrastive(name: str) -> Loss:
    if name == "supcon":
        from pytorch_metric_learning.losses import SupConLoss  # noqa: PLC0415

        return SupConLoss(temperature=0.1)
    block_size = None if name == "dense" else 512
    return lambda features, target: robust_contrastive_loss(features, target, block_size=block_size)


def step(loss: Loss, features: Tensor, target: Tensor) -> None:
    features.grad = None
    loss(features, target).backward()


def peak(name: str, n: int, dimensions: int, device: str) -> float:
    """MB beyond the inputs, in a fresh process."""
    code = f"from benchmarks.loss import measure; measure({name!r}, {n}, {dimensions}, {device!r})"
    root = Path(__file__).parents[1]
    done = subprocess.run(  # noqa: S603
        [sys.executable, "-c", code], check=True, stdout=subprocess.PIPE, text=True, cwd=root
    )
    return float(done.stdout)


def measure(name: str, n: int, dimensions: int, device: str) -> None:
    """Print the peak of one forward and backward pass in MB; the body of `peak`'s process."""
    torch.set_num_threads(1)
    loss = contrastive(name)
    step(loss, *inputs(64, dimensions, device))
    features, target = inputs(n, dimensions, device)
    before = _begin(device)
    step(loss, features, target)
    after = torch.cuda.max_memory_allocated() if device == "cuda" else _resident("VmHWM")
    sys.stdout.write(str((after - before) / 1e6))


def _begin(device: str) -> int:
    """Start the peak anew; return the bytes in use."""
    if device == "cuda":
        torch.cuda.reset_peak_memory_stats()
        return torch.cuda.memory_allocated()
    Path("/proc/self/clear_refs").write_text("5")
    return _resident("VmRSS")


def _resident(field: str) -> int:
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(1024 * int(line.split()[1]) for line in lines if line.startswith(field))


def contrastive_rows(options: argparse.Namespace) -> Rows:
    rows = []
    for n in options.sizes:
        times: dict[str, list[float]] = {name: [] for name in NAMES}
        features, target = inputs(n, 128, options.device)
        for _ in range(max(5, min(100, 2**15 // n))):
            for name in NAMES:
                work = step, contrastive(name), features, target
                times[name].append(seconds(options.device, *work))
        row: dict[str, Any] = {"n": n}
        for name in NAMES:
            ms, mb = 1e3 * statistics.median(times[name]), peak(name, n, 128, options.device)
            row[name] = {"ms": ms, "mb": mb}
        rows.append(row)
    return rows


def memory_rows(options: argparse.Namespace) -> Rows:
    sizes = options.memory_sizes
    return [{"n": n, "mb": peak("tiles", n, 256, options.device)} for n in sizes]


def rank_rows(options: argparse.Namespace) -> Rows:
    features, target = inputs(options.rank_size, 128, options.device)
    kernel, counts = Kernel(0.1, 0.2), (1, 2, 4, 8)
    everything = log_denominators(normalize(features.detach()), features[:0], kernel, 512)
    times: dict[int, list[float]] = {count: [] for count in counts}

    def share(count: int) -> Loss:
        split = Split(slice(0, len(features) // count), lambda own: everything.clone())
        return partial(contrastive_term, kernel=kernel, memory=None, block_size=512, split=split)

    for _ in range(7):
        for count in counts:
            work = step, share(count), features, target
            times[count].append(seconds(options.device, *work))
    return [{"ranks": n, "ms": 1e3 * statistics.median(each)} for n, each in times.items()]


def merge(before: dict[str, Any] | None, rows: Rows) -> dict[str, Any]:
    """Replace rows of the same size and keep the others, unless they are another machine's."""

    def size(row: dict[str, Any]) -> tuple[Any, ...]:
        return tuple(value for value in row.values() if isinstance(value, int | str))

    machine = describe()
    kept = before["rows"] if before is not None and before["machine"] == machine else []
    merged = {size(row): row for row in [*kept, *rows]}
    return {"machine": machine, "rows": [merged[key] for key in sorted(merged)]}


PARTS: dict[str, Callable[[argparse.Namespace], Rows]] = {
    "contrastive": contrastive_rows,
    "memory": memory_rows,
    "ranks": rank_rows,
    "weights": weight_rows,
    "positives": positive_rows,
}


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(
        prog="loss.py", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = parser.add_argument
    add("parts", nargs="*", metavar="PART", help=f"some of {', '.join(PARTS)}; default all")
    add("--sizes", nargs="+", type=int, default=[256, 512, 1024, 2048, 4096, 8192])
    add("--memory-sizes", nargs="+", type=int, default=[4096, 8192, 16384, 32768, 65536])
    add("--rank-size", type=int, default=4096)
    add("--device", default="cpu", choices=("cpu", "cuda"))
    add("--output", type=Path, default=Path(__file__).parent / "results")
    options = parser.parse_args(arguments)
    unknown = [part for part in options.parts if part not in PARTS]
    if unknown:
        parser.error(f"PART: expected some of {', '.join(PARTS)}, found {', '.join(unknown)}")
    torch.set_num_threads(1)
    options.output.mkdir(parents=True, exist_ok=True)
    record = options.output / "loss.json"
    results = json.loads(record.read_text()) if record.exists() else {}
    for part in options.parts or PARTS:
        results[part] = merge(results.get(part), PARTS[part](options))
        record.write_text(json.dumps(results, indent=1) + "\n")
    from benchmarks import loss_report  # noqa: PLC0415 (the measured processes need no plots)

    loss_report.write(results, options.output)


if __name__ == "__main__":
    main()
