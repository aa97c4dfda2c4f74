"""Time and memory of the loss against its peers: python -m benchmarks.loss [--help].

Four tables, written to loss.json with a plot next to it (benchmarks/results by default):

* contrastive: forward and backward of the robust contrastive loss, dense and in tiles, against
  pytorch-metric-learning's SupConLoss on the same features (D = 128, 7 classes), N = 256 … 8,192.
  Medians of interleaved runs of one process; the memory is the peak beyond the inputs.
* memory: peak memory of the tiled loss at D = 256 up to N = 65,536.
* weights: exact χ² and KL-ball weights against 60 steps of bisection in float64.
* positives: share of anchors with a positive at batch 8 on a long-tailed class mix, by memory.

Every memory figure comes from a process of its own: the rise of the peak resident size (Linux).
"""

from __future__ import annotations

import argparse
import json
import math
import platform
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from hdf_modules.functional import dro_weights, robust_contrastive_loss
from hdf_modules.memory import FeatureMemory

SIZES = (256, 512, 1024, 2048, 4096, 8192)
# Class mix of DFEW's single-labelled clips, most to least frequent.
LONG_TAIL = (0.224, 0.218, 0.206, 0.168, 0.115, 0.061, 0.008)


def inputs(n: int, dimensions: int) -> tuple[Tensor, Tensor]:
    torch.manual_seed(0)
    return torch.randn(n, dimensions, requires_grad=True), torch.randint(7, (n,))


def contrastive(name: str) -> Callable[[Tensor, Tensor], Tensor]:
    if name == "supcon":
        from pytorch_metric_learning.losses import SupConLoss  # noqa: PLC0415

        return SupConLoss(temperature=0.1)
    block_size = None if name == "dense" else 512
    return lambda x, y: robust_contrastive_loss(x, y, block_size=block_size)


def run(loss: Callable[[Tensor, Tensor], Tensor], n: int, dimensions: int) -> float:
    features, target = inputs(n, dimensions)
    start = time.perf_counter()
    loss(features, target).backward()
    return time.perf_counter() - start


def peak(name: str, n: int, dimensions: int) -> float:
    """MB beyond the inputs, in a fresh process that has warmed up on a small batch."""
    code = f"from benchmarks.loss import measure; measure({name!r}, {n}, {dimensions})"
    done = subprocess.run(  # noqa: S603
        [sys.executable, "-c", code], check=True, capture_output=True, text=True
    )
    return float(done.stdout)


def measure(name: str, n: int, dimensions: int) -> None:
    loss = contrastive(name)
    run(loss, 64, dimensions)
    features, target = inputs(n, dimensions)
    Path("/proc/self/clear_refs").write_text("5")  # start the peak anew
    before = status("VmRSS")
    loss(features, target).backward()
    sys.stdout.write(str((status("VmHWM") - before) / 1e3))


def status(field: str) -> int:
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith(field))


def contrastive_table(largest: int) -> list[dict[str, Any]]:
    rows = []
    for n in (size for size in SIZES if size <= largest):
        losses = {name: contrastive(name) for name in ("supcon", "dense", "tiles")}
        times: dict[str, list[float]] = {name: [] for name in losses}
        for _ in range(max(3, min(20, 8192 // n))):
            for name, loss in losses.items():
                times[name].append(run(loss, n, 128))
        row: dict[str, Any] = {"n": n}
        for name in losses:
            row[name] = {"ms": 1e3 * statistics.median(times[name]), "mb": peak(name, n, 128)}
        rows.append(row)
        print(row)
    return rows


def memory_table(largest: int) -> list[dict[str, float]]:
    sizes = [n for n in (4096, 8192, 16384, 32768, 65536) if n <= largest]
    rows = [{"n": n, "mb": peak("tiles", n, 256)} for n in sizes]
    print(rows)
    return rows


def bisection(losses: Tensor, objective: str, radius: float) -> Tensor:
    """What a solver without closed form does: bisect η or log τ, 60 steps, in float64."""
    losses = losses.double() - losses.max()
    n, width = len(losses), -float(losses.min())
    low, high = (-40.0, 40.0) if objective == "kl-ball" else (-width * (1 + n), 0.0)
    for _ in range(60):
        middle = (low + high) / 2
        if objective == "kl-ball":
            weights = (losses * math.exp(middle)).softmax(0)
            spread = float((weights * (weights * n).clamp(min=1e-300).log()).sum())
        else:
            weights = (losses - middle).clamp(min=0)
            weights = weights / weights.sum()
            spread = float(((n * weights - 1) ** 2).sum() / (2 * n))
        low, high = (middle, high) if spread < radius else (low, middle)
    return weights


def weights_table() -> list[dict[str, Any]]:
    rows = []
    for n in (32, 1024, 65536):
        losses = torch.randn(n, generator=torch.Generator().manual_seed(n))
        for objective in ("chi2", "kl-ball"):
            times: dict[str, list[float]] = {"exact": [], "bisection": []}
            for _ in range(9):
                for name, solve in (("exact", dro_weights), ("bisection", bisection)):
                    start = time.perf_counter()
                    solve(losses, objective, 0.5)
                    times[name].append(time.perf_counter() - start)
            gap = dro_weights(losses.double(), objective, 0.5) - bisection(losses, objective, 0.5)
            row = {name: 1e3 * statistics.median(each) for name, each in times.items()}
            rows.append(
                {"n": n, "objective": objective, **row, "difference": float(gap.abs().max())}
            )
            print(rows[-1])
    return rows


def positives_table() -> list[dict[str, float]]:
    torch.manual_seed(0)
    target = torch.multinomial(torch.tensor(LONG_TAIL), 8 * 500, replacement=True).split(8)
    rows = []
    for size in (0, 8, 32, 128, 512):
        memory, found = FeatureMemory(size), 0
        for labels in target:
            past = memory(torch.zeros(8, 1), labels, advance=True)
            keys = labels if past is None else torch.cat([labels, past[1]])
            found += int(((labels[:, None] == keys).sum(1) > 1).sum())
        rows.append({"memory": size, "share": found / (8 * 500)})
    print(rows)
    return rows


def plot(results: dict[str, Any], path: Path) -> None:
    import matplotlib.pyplot as plt  # noqa: PLC0415

    figure, axes = plt.subplots(1, 4, figsize=(17, 3.6), layout="constrained")
    table = results["contrastive"]
    for name in ("supcon", "dense", "tiles"):
        for axis, unit in ((axes[0], "ms"), (axes[1], "mb")):
            axis.loglog([r["n"] for r in table], [r[name][unit] for r in table], "o-", label=name)
            axis.set(xlabel="N", ylabel=unit, title=f"contrastive, D = 128: {unit}")
            axis.legend()
    memory, positives = results["memory"], results["positives"]
    axes[2].loglog([r["n"] for r in memory], [r["mb"] for r in memory], "o-")
    axes[2].set(xlabel="N", ylabel="MB", title="tiles, D = 256: peak extra memory")
    axes[3].plot([str(r["memory"]) for r in positives], [r["share"] for r in positives], "o-")
    axes[3].set(xlabel="memory", ylabel="share", title="anchors with a positive, batch 8")
    figure.savefig(path)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    parser.add_argument("--largest", type=int, default=65536, help="largest N")
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "results")
    options = parser.parse_args()
    torch.set_num_threads(1)
    machine = {"torch": torch.__version__, "machine": platform.machine(), "threads": 1}
    results = {
        "machine": machine,
        "weights": weights_table(),
        "positives": positives_table(),
        "contrastive": contrastive_table(options.largest),
        "memory": memory_table(options.largest),
    }
    options.out.mkdir(parents=True, exist_ok=True)
    (options.out / "loss.json").write_text(json.dumps(results, indent=1))
    plot(results, options.out / "loss.png")


if __name__ == "__main__":
    main()
