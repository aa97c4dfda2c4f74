"""Time of a SAM step: python -m benchmarks.optimizer [--models NAME ...] [--help].

plain  one forward and backward pass and a step of AdamW
twice  two forward and backward passes and a step: what any SAM has to pay
peer   pytorch_optimizer's SAM around AdamW, by closures as its documentation shows
sam    this library's SAM around AdamW, with the model given: BatchNorm statistics are frozen and
       random states replayed in the second pass, which the peer does not do

Every method trains its own copy of the model on the same batch. In each round every method takes
one step, in an order that rotates. ``ms`` is the median over the rounds, and a ratio is the median
of the rounds' ratios, so that a slow spell of the machine falls on both sides. One thread on the
CPU. Results go to optimizer.json in the output folder (benchmarks/results), where models not
measured this time keep their rows, after which optimizer.md and optimizer.png are drawn from it.
"""

from __future__ import annotations

import argparse
import copy
import json
import statistics
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import AdamW
from torchvision.models import resnet18
from torchvision.models.video import r3d_18

from benchmarks.machine import describe
from examples.train.models import SmallVideoNet
from examples.train.report.style import colour, new_figure, styled
from hdf_modules import SAM

METHODS = ("plain", "twice", "peer", "sam")
RATIOS = (("twice", "plain"), ("peer", "plain"), ("sam", "plain"), ("sam", "peer"))
# Builder and input shape; on a GPU the batch is eight times as large.
MODELS: dict[str, tuple[Callable[..., nn.Module], tuple[int, ...]]] = {
    "small": (SmallVideoNet, (8, 3, 8, 40, 40)),
    "resnet18": (resnet18, (4, 3, 112, 112)),
    "r3d_18": (r3d_18, (2, 3, 4, 56, 56)),
}


def stepper(method: str, model: nn.Module, x: Tensor, y: Tensor) -> Callable[[], None]:
    """Return what takes one training step."""
    optimizer: Any = AdamW(model.parameters(), lr=1e-4)
    if method == "sam":
        optimizer = SAM(optimizer, rho=0.05, model=model)
    if method == "peer":
        from pytorch_optimizer import SAM as PEER  # noqa: PLC0415

        optimizer = PEER(model.parameters(), AdamW, rho=0.05, lr=1e-4)

    def closure() -> Tensor:
        optimizer.zero_grad()
        loss = nn.functional.cross_entropy(model(x), y)
        loss.backward()
        return loss

    def step() -> None:
        if method == "sam":
            optimizer.step(closure)
            return
        closure()
        if method == "peer":
            optimizer.step(closure)
            return
        if method == "twice":
            closure()
        optimizer.step()

    return step


def setting(name: str, device: str) -> tuple[nn.Module, Tensor, Tensor]:
    """Return a model and its batch."""
    torch.manual_seed(0)
    build, shape = MODELS[name]
    shape = (shape[0] * (8 if device == "cuda" else 1), *shape[1:])
    x, y = torch.randn(shape), torch.randint(7, shape[:1])
    return build(num_classes=7).to(device), x.to(device), y.to(device)


def measure(name: str, rounds: int, device: str) -> dict[str, Any]:
    """Return the row of one model."""
    model, x, y = setting(name, device)
    steps = {method: stepper(method, copy.deepcopy(model), x, y) for method in METHODS}
    times: dict[str, list[float]] = {method: [] for method in METHODS}
    for number in range(-2, rounds):  # two to warm up
        turn = number % len(METHODS)
        for method in (*METHODS[turn:], *METHODS[:turn]):
            spent = seconds(steps[method], device)
            if number >= 0:
                times[method].append(spent)
    row: dict[str, Any] = {"model": name, "input": list(x.shape), "rounds": rounds}
    row["ms"] = {method: 1e3 * statistics.median(each) for method, each in times.items()}
    row["ratios"] = {f"{a}/{b}": _ratio(times[a], times[b]) for a, b in RATIOS}
    return row


def seconds(step: Callable[[], None], device: str) -> float:
    start = time.perf_counter()
    step()
    if device == "cuda":
        torch.cuda.synchronize()
    return time.perf_counter() - start


def _ratio(above: list[float], below: list[float]) -> float:
    return statistics.median(a / b for a, b in zip(above, below, strict=True))


def write(results: dict[str, Any], folder: Path) -> None:
    """Draw table and plot."""
    machine, rows = results["machine"], results["rows"]
    packages = ("torch", "torchvision", "pytorch_optimizer")
    versions = ", ".join(f"{name} {machine['versions'][name]}" for name in packages)
    where = machine["gpu"] or f"{machine['processor']}, {machine['threads']} thread(s)"
    lines = [
        "# SAM: time of a step",
        "",
        f"{where}; Python {machine['python']}, {versions}.",
        "",
        "How it is measured: `python -m benchmarks.optimizer --help`. A ratio is the median of the",
        "rounds' own ratios. `twice` is the floor: two passes and one step.",
        "",
        f"| model | input | {' | '.join(f'{m}, ms' for m in METHODS)} | "
        + " | ".join(f"{a} / {b}" for a, b in RATIOS)
        + " |",
        "|---|---|" + "---:|" * (len(METHODS) + len(RATIOS)),
    ]
    for row in rows:
        shape = "×".join(map(str, row["input"]))
        times = " | ".join(f"{row['ms'][m]:.1f}" for m in METHODS)
        ratios = " | ".join(f"{row['ratios'][f'{a}/{b}']:.3f}" for a, b in RATIOS)
        lines.append(f"| {row['model']} | {shape} | {times} | {ratios} |")
    (folder / "optimizer.md").write_text("\n".join(lines) + "\n")
    _plot(rows, folder / "optimizer.png")


def _plot(rows: list[dict[str, Any]], path: Path) -> None:
    with styled():
        figure, axis = new_figure(6.5, 3.2)
        for place, method in enumerate(METHODS[1:]):
            at = [number + 0.27 * (place - 1) for number in range(len(rows))]
            heights = [row["ratios"][f"{method}/plain"] for row in rows]
            bars = axis.bar(at, heights, 0.25, label=method, color=colour(place))
            axis.bar_label(bars, fmt="%.2f", fontsize=8, label_type="center", color="white")
        axis.axhline(2.05, color="black", linewidth=0.8, linestyle=":", label="2.05")
        axis.set_xticks(range(len(rows)), [row["model"] for row in rows])
        axis.set(ylabel="× a plain step", ylim=(0, 2.9), title="Time of a step")
        axis.legend(ncols=4, fontsize=8, loc="upper center")
        figure.savefig(path, dpi=90)


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(
        prog="optimizer.py",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--models", nargs="+", choices=MODELS, default=list(MODELS))
    parser.add_argument("--rounds", type=int, default=40)
    parser.add_argument("--device", default="cpu", choices=("cpu", "cuda"))
    parser.add_argument("--output", type=Path, default=Path(__file__).parent / "results")
    options = parser.parse_args(arguments)
    torch.set_num_threads(1)
    options.output.mkdir(parents=True, exist_ok=True)
    record = options.output / "optimizer.json"
    before = json.loads(record.read_text()) if record.exists() else {}
    machine = describe()
    # rows of other models stay if they are of the same machine and versions
    rows = {row["model"]: row for row in before["rows"]} if before.get("machine") == machine else {}
    for name in options.models:
        rows[name] = measure(name, options.rounds, options.device)
    results = {"machine": machine, "rows": [rows[name] for name in MODELS if name in rows]}
    record.write_text(json.dumps(results, indent=1) + "\n")
    write(results, options.output)


if __name__ == "__main__":
    main()
