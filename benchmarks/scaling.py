"""g, λ_CE and λ_SC over a training run, and in a model ten times larger: -m benchmarks.scaling.

The small video network of the examples, and the same with √10 times its widths, are trained on the
drawn clips with SAM and the heterogeneity-aware loss, whose balance follows the gradient norm g.
Settings of the balance:

as published  λ_CE = α g/(g+1), λ_SC = β/(g+1)
EMA           g is a moving average that keeps 0.9 of its past
√P            g counts in units of √P, P the number of parameters (grad_norm_unit=√P)
√(P/P₀)       the unit that carries a balance over from a model of P₀ parameters, here the small one

Every run has the same seed, clips and batches. Results go to scaling.json in the output folder
(benchmarks/results), after which scaling.md and scaling.png are drawn from that file.
"""

from __future__ import annotations

import argparse
import json
import statistics
from pathlib import Path
from typing import Any

import torch
from torch.utils.data import DataLoader

from benchmarks.machine import describe
from examples.train.data.clips import ClipDataset
from examples.train.data.synthetic import SyntheticClips
from examples.train.models import SmallVideoNet
from examples.train.report.style import colour, new_figure, styled
from hdf_modules import SAM, HeterogeneityAwareLoss, with_features

ALPHA, BETA, FLOOR = 10.0, 0.1, 0.1  # the floor is low, to show what g does to λ_CE
SETTINGS = ("as published", "EMA", "√P", "√(P/P₀)")
SERIES = {"gradient_norm": "g", "lambda_ce": "λ_CE", "lambda_sc": "λ_SC"}


def network(width: int) -> SmallVideoNet:
    """Return the examples' network with this many channels in its first stage."""
    widths = tuple(round(width * factor) for factor in (1, 1.5, 3, 6))
    return SmallVideoNet(7, widths)


def parameters(width: int) -> int:
    return sum(p.numel() for p in network(width).parameters())


def balance(setting: str, size: int, reference: int) -> dict[str, float]:
    """Return the loss's options of a setting, for a model of ``size`` parameters."""
    return {
        "as published": {},
        "EMA": {"grad_norm_smoothing": 0.9},
        "√P": {"grad_norm_unit": size**0.5},
        "√(P/P₀)": {"grad_norm_unit": (size / reference) ** 0.5},
    }[setting]


def train(
    width: int, clips: ClipDataset, epochs: int, options: dict[str, float]
) -> dict[str, list[float]]:
    """Train one model; return g and both λ of every step, and the classification term."""
    torch.manual_seed(0)
    model = with_features(network(width))
    criterion = HeterogeneityAwareLoss(alpha=ALPHA, beta=BETA, floor=FLOOR, **options)  # type: ignore[arg-type]
    sam = SAM(torch.optim.AdamW(model.parameters(), lr=1e-3), model=model)
    loader = DataLoader(clips, 8 if len(clips) < 64 else 16, shuffle=True, drop_last=True)
    steps: dict[str, list[float]] = {name: [] for name in (*SERIES, "classification")}
    for clips.epoch in range(epochs):
        for batch in loader:
            sam.zero_grad()
            logits, features = model(batch["clip"])
            criterion(logits, batch["label"], features).backward()
            steps["classification"].append(float(criterion.terms["classification"]))
            with sam.ascend(criterion):
                logits, features = model(batch["clip"])
                criterion(logits, batch["label"], features).backward()
            sam.step()
            found: tuple[Any, ...] = (
                sam.grad_norm,
                criterion.scaling.lambda_ce,
                criterion.scaling.lambda_sc,
            )
            for name, value in zip(SERIES, found, strict=True):
                steps[name].append(float(value))
    return {name: [float(f"{value:.7g}") for value in series] for name, series in steps.items()}


def write(results: dict[str, Any], folder: Path) -> None:
    """Draw table and plot."""
    machine = results["machine"]
    sizes = {model["name"]: model["parameters"] for model in results["models"]}
    lines = [
        "# Gradient-driven scaling: g, λ_CE and λ_SC over a run",
        "",
        f"{results['steps']} steps, one seed; Python {machine['python']}, "
        f"torch {machine['versions']['torch']}. How it is made: "
        "`python -m benchmarks.scaling --help`.",
        "",
        "Medians over the first and over the last quarter of the steps; jitter is the median",
        "change of λ_CE from one step to the next in the last quarter. "
        f"α = {ALPHA:g}, β = {BETA:g}, λ_CE ≥ α/10.",
        "",
        _growth(results),
        "",
        "| model | parameters | balance | g, first | g, last | λ_CE, first | λ_CE, last "
        "| λ_SC, last | jitter | cross-entropy, last |",
        "|---|---:|---|---:|---:|---:|---:|---:|---:|---:|",
    ]
    for run in results["runs"]:
        g, ce, sc, loss = (run["steps"][name] for name in (*SERIES, "classification"))
        jitter = statistics.median(
            abs(a - b) for a, b in zip(_last(ce)[1:], _last(ce), strict=False)
        )
        cells = [
            f"{_first(g):.2f}",
            f"{statistics.median(_last(g)):.2f}",
            f"{_first(ce):.2f}",
            f"{statistics.median(_last(ce)):.2f}",
            f"{statistics.median(_last(sc)):.4f}",
            f"{jitter:.3f}",
            f"{statistics.median(_last(loss)):.3f}",
        ]
        name = run["model"]
        lines.append(f"| {name} | {sizes[name]:,} | {run['setting']} | {' | '.join(cells)} |")
    (folder / "scaling.md").write_text("\n".join(lines) + "\n")
    _plot(results, folder / "scaling.png")


def _growth(results: dict[str, Any]) -> str:
    """Say by how much g grew with the model."""
    small, large = results["models"][0], results["models"][-1]
    medians = [
        statistics.median(run["steps"]["gradient_norm"])
        for model in (small, large)
        for run in results["runs"]
        if (run["model"], run["setting"]) == (model["name"], SETTINGS[0])
    ]
    times = large["parameters"] / small["parameters"]
    return (
        f"With {times:.1f} times the parameters, g over the whole run, as published, has "
        f"{medians[1] / medians[0]:.2f} times the median; √(P/P₀) = {times**0.5:.2f}."
    )


def _first(series: list[float]) -> float:
    return statistics.median(series[: max(1, len(series) // 4)])


def _last(series: list[float]) -> list[float]:
    return series[-max(2, len(series) // 4) :]


def _plot(results: dict[str, Any], path: Path) -> None:
    models = results["models"]
    with styled():
        figure, axes = new_figure(12, 5.6, len(models), len(SERIES), sharex=True, sharey="col")
        for row, model in zip(axes, models, strict=True):
            runs = [run for run in results["runs"] if run["model"] == model["name"]]
            for axis, (name, label) in zip(row, SERIES.items(), strict=True):
                for place, run in enumerate(runs):
                    axis.plot(run["steps"][name], color=colour(place), lw=1.1, label=run["setting"])
                axis.set(title=f"{label}, {model['parameters']:,} parameters")
                axis.set_yscale("linear" if name == "lambda_ce" else "log")
        for axis in axes[-1]:
            axis.set_xlabel("step")
        axes[0, 0].legend(ncols=2, fontsize=8)
        figure.savefig(path, dpi=90)


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(
        prog="scaling.py", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = parser.add_argument
    add("--widths", nargs="+", type=int, default=[16, 51], help="channels of the first stage")
    add("--clips", type=int, default=192)
    add("--epochs", type=int, default=10)
    add("--size", type=int, default=20, help="side of the frames in pixels")
    add("--frames", type=int, default=4)
    add("--output", type=Path, default=Path(__file__).parent / "results")
    options = parser.parse_args(arguments)
    torch.set_num_threads(1)
    source = SyntheticClips("train", options.clips, options.size)
    clips = ClipDataset(source, options.frames, training=True, cache=source.render())
    sizes = {f"width {width}": parameters(width) for width in options.widths}
    runs: list[dict[str, Any]] = []
    for width, (name, size) in zip(options.widths, sizes.items(), strict=True):
        for setting in SETTINGS:
            found = balance(setting, size, next(iter(sizes.values())))
            steps = train(width, clips, options.epochs, found)
            runs.append({"model": name, "setting": setting, **found, "steps": steps})
    results = {
        "machine": describe(),
        "steps": len(runs[0]["steps"]["gradient_norm"]),
        "models": [{"name": name, "parameters": size} for name, size in sizes.items()],
        "runs": runs,
    }
    options.output.mkdir(parents=True, exist_ok=True)
    (options.output / "scaling.json").write_text(json.dumps(results) + "\n")
    write(results, options.output)


if __name__ == "__main__":
    main()
