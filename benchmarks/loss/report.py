"""Tables and plots of what the loss costs, from the record alone."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

from benchmarks.markdown import page, table
from benchmarks.record import Record, Rows
from examples.train.report.style import PLAIN, colour, new_figure, styled

LABELS = {
    "supcon": "SupConLoss",
    "dense": "robust, dense",
    "tiles": "robust, tiles of 512",
}
_COLUMNS = {"supcon": "SupCon", "dense": "dense", "tiles": "tiles"}


def write(record: Record, path: Path) -> None:
    """Draw tables and plots beside the record; parts that were not run are left out."""
    path.with_suffix(".md").write_text(page("The loss: time and memory", "loss", record, _TABLES))
    with styled():
        figure, grid = new_figure(13, 7.4, 2, 3)
        axes = iter(grid.flat)
        for part in (part for part in _PLOTS if part in record):
            _PLOTS[part](record[part]["rows"], axes)
        for unused in axes:
            unused.set_axis_off()
        figure.savefig(path.with_suffix(".png"), dpi=75)


def _contrastive(rows: Rows) -> list[str]:
    title = "## Contrastive loss, forward and backward, D = 128"
    text = (
        "`robust_contrastive_loss` against pytorch-metric-learning's `SupConLoss`; in brackets the "
        "share of the peer's."
        if "supcon" in rows[0]
        else "`robust_contrastive_loss`; pytorch-metric-learning was not there to compare it with."
    )
    names = [name for name in _COLUMNS if name in rows[0]]
    head = ["N", *(f"{_COLUMNS[name]}, {unit}" for unit in ("ms", "MB") for name in names)]
    cells = [[str(row["n"]), *_units(row, "ms"), *_units(row, "mb")] for row in rows]
    return [title, "", text, "", *table(head, cells, text=())]


def _units(row: dict[str, Any], unit: str) -> list[str]:
    ours = [row[name][unit] for name in ("dense", "tiles")]
    if "supcon" not in row:
        return [f"{value:.1f}" for value in ours]
    peer = row["supcon"][unit]
    return [f"{peer:.1f}", *(f"{value:.1f} ({value / peer:.2f})" for value in ours)]


def _memory(rows: Rows) -> list[str]:
    title = "## Peak memory of the tiled loss, D = 256"
    head = ["N", "MB", "bytes per feature entry", "N × N in float32, MB"]
    cells = [
        [
            str(row["n"]),
            f"{row['mb']:.0f}",
            f"{row['mb'] * 1e6 / (row['n'] * 256):.0f}",
            f"{row['n'] ** 2 * 4e-6:.0f}",
        ]
        for row in rows
    ]
    return [title, "", *table(head, cells, text=())]


def _ranks(rows: Rows) -> list[str]:
    title = "## The tiled loss on one of several ranks that share a batch"
    cells = [
        [str(row["ranks"]), f"{row['ms']:.0f}", f"{row['ms'] / rows[0]['ms']:.2f}"] for row in rows
    ]
    text = "Each visits the pairs of its own samples; those with other ranks' are visited by both."
    return [title, "", text, "", *table(["ranks", "ms", "share of one rank's"], cells, text=())]


def _weights(rows: Rows) -> list[str]:
    title = "## Worst-case weights, radius 0.5"
    text = "Difference: the largest, in units of the uniform weight 1/n."
    head = ["n", "objective", "exact, ms", "bisection, ms", "ratio", "difference"]
    cells = [
        [
            str(row["n"]),
            row["objective"],
            f"{row['exact']:.2f}",
            f"{row['bisection']:.2f}",
            f"{row['exact'] / row['bisection']:.2f}",
            f"{row['difference']:.0e}",
        ]
        for row in rows
    ]
    return [title, "", text, "", *table(head, cells, text=())]


def _positives(rows: Rows) -> list[str]:
    title = "## Anchors with a positive, batch 8, DFEW's mix of classes"
    head = ["memory", "all classes", "rarest class"]
    cells = [
        [str(row["memory"]), f"{100 * row['share']:.1f}%", f"{100 * row['rarest']:.1f}%"]
        for row in rows
    ]
    return [title, "", *table(head, cells, text=())]


def _plot_contrastive(rows: Rows, axes: Any) -> None:
    sizes = [row["n"] for row in rows]
    for unit, title in (("ms", "Contrastive: time, ms"), ("mb", "Contrastive: peak memory, MB")):
        axis = next(axes)
        for index, (name, label) in enumerate(LABELS.items()):
            if name in rows[0]:
                values = [row[name][unit] for row in rows]
                axis.plot(sizes, values, "o-", color=colour(index), label=label)
        _log(axis, sizes, title)
        axis.legend()


def _plot_memory(rows: Rows, axes: Any) -> None:
    axis, sizes = next(axes), [row["n"] for row in rows]
    axis.plot(sizes, [row["mb"] for row in rows], "o-", color=colour(2), label="tiles of 512")
    line = [n * rows[-1]["mb"] / sizes[-1] for n in sizes]
    axis.plot(sizes, line, ":", color=colour(0), label="in proportion to N")
    axis.plot(sizes, [n**2 * 4e-6 for n in sizes], "--", color=colour(3), label="one N × N matrix")
    _log(axis, sizes, "Tiles, D = 256: peak memory, MB")
    axis.legend()


def _plot_ranks(rows: Rows, axes: Any) -> None:
    axis, counts = next(axes), [row["ranks"] for row in rows]
    axis.plot(counts, [row["ms"] for row in rows], "o-", color=colour(2), label="tiles of 512")
    line = [rows[0]["ms"] / count for count in counts]
    axis.plot(counts, line, ":", color=colour(0), label="one rank's, divided")
    _log(axis, counts, "Work of a rank in one batch: time, ms")
    axis.set_xlabel("ranks")
    axis.legend()


def _plot_weights(rows: Rows, axes: Any) -> None:
    axis = next(axes)
    for index, objective in enumerate(sorted({row["objective"] for row in rows})):
        chosen = [row for row in rows if row["objective"] == objective]
        sizes = [row["n"] for row in chosen]
        for solver, style in (("exact", "o-"), ("bisection", "o--")):
            values = [row[solver] for row in chosen]
            axis.plot(sizes, values, style, color=colour(index), label=f"{objective}, {solver}")
    _log(axis, sizes, "Worst-case weights: time, ms")
    axis.legend()


def _plot_positives(rows: Rows, axes: Any) -> None:
    axis, sizes = next(axes), [str(row["memory"]) for row in rows]
    for index, (key, label) in enumerate((("share", "all classes"), ("rarest", "rarest class"))):
        axis.plot(sizes, [100 * row[key] for row in rows], "o-", color=colour(index), label=label)
    axis.set(title="Anchors with a positive, batch 8, %", xlabel="memory, samples", ylim=(0, 103))
    axis.legend()


def _log(axis: Any, sizes: list[int], title: str) -> None:
    axis.set(title=title, xlabel="N", xscale="log", yscale="log")
    axis.yaxis.set_major_formatter(PLAIN)
    axis.set_xticks(sizes, [str(n) for n in sizes], rotation=45)
    axis.minorticks_off()


_TABLES: dict[str, Callable[[Rows], list[str]]] = {
    "contrastive": _contrastive,
    "memory": _memory,
    "ranks": _ranks,
    "weights": _weights,
    "positives": _positives,
}
_PLOTS: dict[str, Callable[[Rows, Any], None]] = {
    "contrastive": _plot_contrastive,
    "memory": _plot_memory,
    "ranks": _plot_ranks,
    "weights": _plot_weights,
    "positives": _plot_positives,
}
