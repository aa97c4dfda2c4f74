"""The two figures of the ablation."""

from __future__ import annotations

import numpy as np
from matplotlib.figure import Figure

from benchmarks.evidence.corruptions import CORRUPTIONS, SEVERITIES
from benchmarks.evidence.records import Record
from benchmarks.evidence.settings import BASELINE, Setting
from benchmarks.evidence.summary import FEWEST, Run, difference
from examples.train.report.style import PALETTE, new_figure


def differences(found: dict[str, list[Run]], rows: dict[str, Setting]) -> Figure:
    """Paired differences from the baseline, every run a dot."""
    base = found[BASELINE]
    names = [name for name in found if name != BASELINE]
    last = "corrupted UAR" if "corrupted UAR" in base[0] else "worst source"
    metrics = ("seen UAR", "unseen UAR", last)
    figure, axes = new_figure(11, 1.2 + 0.3 * len(names), 1, len(metrics), sharey=True)
    for axis, metric, colour in zip(axes, metrics, PALETTE[1:], strict=False):
        for place, name in enumerate(reversed(names)):
            gap = difference(found[name], base, metric)
            dots = [difference([run], base, metric).mean for run in found[name]]
            axis.plot(dots, [place] * len(dots), ".", color="#b8bec9", markersize=5)
            if gap.runs >= FEWEST:
                axis.plot([gap.low, gap.high], [place, place], color=colour, linewidth=2)
            axis.plot(gap.mean, place, "o", color=colour, markersize=6)
        axis.axvline(0, color="#444", linewidth=1)
        axis.set_title(f"Δ {metric}, points")
    labels = [f"{rows[name].label} ({len(found[name])} runs)" for name in reversed(names)]
    axes[0].set_yticks(range(len(names)), labels)
    return figure


def corruptions(found: dict[str, list[Record]], rows: dict[str, Setting]) -> Figure:
    """Mean UAR of every corruption over the severities, and the paired gain over the baseline."""
    names, kinds = list(found), list(CORRUPTIONS)
    uars = np.array([[_mean_uar(found[name], kind) for kind in kinds] for name in names])
    same = [_like(found[BASELINE], found[name]) for name in names]
    base = np.array([[_mean_uar(records, kind) for kind in kinds] for records in same])
    figure, axis = new_figure(10, 1.4 + 0.3 * len(names))
    gain = uars - base
    reach = max(1.0, float(np.abs(gain).max()))
    image = axis.imshow(gain, cmap="RdBu", vmin=-reach, vmax=reach, aspect="auto")
    for (row, column), uar in np.ndenumerate(uars):
        ink = "white" if abs(gain[row, column]) > 0.6 * reach else "black"
        axis.text(column, row, f"{uar:.0f}", ha="center", va="center", fontsize=8, color=ink)
    axis.set_xticks(range(len(kinds)), kinds, rotation=30, ha="right")
    axis.set_yticks(range(len(names)), [rows[name].label for name in names])
    axis.grid(False)
    axis.set_title(f"UAR under corruption, mean of severities {SEVERITIES[0]} to {SEVERITIES[-1]}")
    figure.colorbar(image, ax=axis, label="Δ, points")
    return figure


def _like(records: list[Record], others: list[Record]) -> list[Record]:
    """Those records whose seed the others have too."""
    seeds = {record["seed"] for record in others}
    return [record for record in records if record["seed"] in seeds]


def _mean_uar(records: list[Record], kind: str) -> float:
    return float(np.mean([record["test"]["corruption"]["uar"][kind] for record in records]))
