"""Table and plot of g and λ, from the record alone."""

from __future__ import annotations

from pathlib import Path
from statistics import median
from typing import Any

from benchmarks.markdown import table
from benchmarks.record import Record, Rows
from benchmarks.scaling.runs import ALPHA, BETA, SERIES, SETTINGS
from examples.train.report.style import PLAIN, colour, new_figure, styled

_HEAD = (
    "model",
    "parameters",
    "balance",
    "g, first",
    "g, last",
    "λ_CE, first",
    "λ_CE, last",
    "λ_SC, last",
    "jitter",
    "cross-entropy, last",
)


def write(record: Record, path: Path) -> None:
    """Draw table and plot beside the record."""
    machine, runs = record["runs"]["machine"], record["runs"]["rows"]
    lines = [
        "# Gradient-driven scaling: g, λ_CE and λ_SC over a run",
        "",
        f"{len(runs[0]['steps']['gradient_norm'])} steps, one seed; Python {machine['python']}, "
        f"torch {machine['versions']['torch']}. How it is made: "
        "`python -m benchmarks scaling --help`.",
        "",
        "Medians over the first and over the last quarter of the steps; jitter is the median",
        "change of λ_CE from one step to the next in the last quarter. "
        f"α = {ALPHA:g}, β = {BETA:g}, λ_CE ≥ α/10.",
        "",
        _growth(runs),
        "",
        *table(_HEAD, map(_cells, runs), text=(0, 2)),
    ]
    path.with_suffix(".md").write_text("\n".join(lines) + "\n")
    _plot(runs, path.with_suffix(".png"))


def _cells(run: dict[str, Any]) -> list[str]:
    g, ce, sc, loss = (run["steps"][name] for name in (*SERIES, "classification"))
    steps = zip(_last(ce)[1:], _last(ce), strict=False)
    return [
        run["model"],
        f"{run['parameters']:,}",
        run["setting"],
        f"{median(g[: max(1, len(g) // 4)]):.2f}",
        f"{median(_last(g)):.2f}",
        f"{median(ce[: max(1, len(ce) // 4)]):.2f}",
        f"{median(_last(ce)):.2f}",
        f"{median(_last(sc)):.4f}",
        f"{median(abs(after - before) for after, before in steps):.3f}",
        f"{median(_last(loss)):.3f}",
    ]


def _growth(runs: Rows) -> str:
    """Say by how much g grew with the model."""
    published = [run for run in runs if run["setting"] == SETTINGS[0]]
    small, large = published[0], published[-1]
    growth = median(large["steps"]["gradient_norm"]) / median(small["steps"]["gradient_norm"])
    times = large["parameters"] / small["parameters"]
    return (
        f"With {times:.1f} times the parameters, g over the whole run, as published, has "
        f"{growth:.2f} times the median; √(P/P₀) = {times**0.5:.2f}."
    )


def _last(series: list[float]) -> list[float]:
    return series[-max(2, len(series) // 4) :]


def _plot(runs: Rows, path: Path) -> None:
    sizes = list(dict.fromkeys(run["parameters"] for run in runs))
    with styled():
        figure, axes = new_figure(12, 5.6, len(sizes), len(SERIES), sharex=True, sharey="col")
        for row, size in zip(axes, sizes, strict=True):
            chosen = [run for run in runs if run["parameters"] == size]
            for axis, (name, label) in zip(row, SERIES.items(), strict=True):
                for place, run in enumerate(chosen):
                    axis.plot(run["steps"][name], color=colour(place), lw=1.1, label=run["setting"])
                axis.set(title=f"{label}, {size:,} parameters")
                axis.set_yscale("linear" if name == "lambda_ce" else "log")
                axis.yaxis.set_major_formatter(PLAIN)
        for axis in axes[-1]:
            axis.set_xlabel("step")
        axes[0, 0].legend(ncols=2, fontsize=8)
        figure.savefig(path, dpi=90)
