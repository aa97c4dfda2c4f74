"""Table and plot of what SAM costs, from the record alone."""

from __future__ import annotations

from pathlib import Path

from benchmarks.markdown import page, table
from benchmarks.record import Record, Rows
from benchmarks.sam.steps import METHODS, RATIOS
from examples.train.report.style import colour, new_figure, styled

_NOTE = """ A ratio is the median of the
rounds' own ratios. `twice` is the floor: two passes and one step."""


def write(record: Record, path: Path) -> None:
    """Draw table and plot beside the record."""
    text = page("What SAM costs", "sam", record, {"steps": _steps, "waits": _waits}, _NOTE)
    path.with_suffix(".md").write_text(text)
    if "steps" in record:
        _plot(record["steps"]["rows"], path.with_suffix(".png"))


def _steps(rows: Rows) -> list[str]:
    methods = [method for method in METHODS if method in rows[0]["ms"]]
    ratios = [(a, b) for a, b in RATIOS if f"{a}/{b}" in rows[0]["ratios"]]
    head = ["model", "input", *(f"{m}, ms" for m in methods), *(f"{a} / {b}" for a, b in ratios)]
    cells = [
        [
            row["model"],
            "×".join(map(str, row["input"])),
            *(f"{row['ms'][m]:.1f}" for m in methods),
            *(f"{row['ratios'][f'{a}/{b}']:.3f}" for a, b in ratios),
        ]
        for row in rows
    ]
    return ["## Time of a step", "", *table(head, cells, text=(0, 1))]


def _waits(rows: Rows) -> list[str]:
    kinds = "loss", "loss and SAM"
    cells = [[row["setting"], *(str(sum(row[kind].values())) for kind in kinds)] for row in rows]
    head = ["setting", *(f"waits in a step, {kind}" for kind in kinds)]
    return ["## How often the host waits for the device", "", *table(head, cells)]


def _plot(rows: Rows, path: Path) -> None:
    with styled():
        figure, axis = new_figure(6.5, 3.2)
        for place, method in enumerate(METHODS[1:]):
            if method not in rows[0]["ms"]:
                continue
            at = [number + 0.27 * (place - 1) for number in range(len(rows))]
            heights = [row["ratios"][f"{method}/plain"] for row in rows]
            bars = axis.bar(at, heights, 0.25, label=method, color=colour(place))
            axis.bar_label(bars, fmt="%.2f", fontsize=8, label_type="center", color="white")
        axis.axhline(2.05, color="black", linewidth=0.8, linestyle=":", label="2.05")
        axis.set_xticks(range(len(rows)), [row["model"] for row in rows])
        axis.set(ylabel="× a plain step", ylim=(0, 2.9), title="Time of a step")
        axis.legend(ncols=4, fontsize=8, loc="upper center")
        figure.savefig(path, dpi=90)
