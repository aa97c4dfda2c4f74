"""The Markdown table, the plots and the list of the search, from the records alone."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import numpy as np
from matplotlib.figure import Figure
from report.style import PALETTE, new_figure, styled

from benchmarks.evidence.corruptions import CORRUPTIONS, SEVERITIES
from benchmarks.evidence.presets import Preset
from benchmarks.evidence.records import Record
from benchmarks.evidence.settings import BASELINE, Setting
from benchmarks.evidence.summary import METRICS, Difference, difference, values

Records = dict[str, list[Record]]

_HEAD = (
    "| Row | Runs | Seen UAR | Unseen UAR | Δ seen UAR | Δ unseen UAR | Unseen WAR | Worst source "
    "| Worst class | Corruption loss | Δ corrupted UAR |"
)


def write(found: Records, rows: Mapping[str, Setting], preset: Preset, folder: Path) -> None:
    """Write table and plots; rows without a record are left out, unfinished ones say so."""
    found = {name: found[name] for name in rows if name in found}
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "heterogeneity.md").write_text(table(found, rows, preset))
    with styled():
        _differences(found, rows).savefig(folder / "heterogeneity_differences.png", dpi=130)
        _corruptions(found, rows).savefig(folder / "heterogeneity_corruptions.png", dpi=130)


def table(found: Records, rows: Mapping[str, Setting], preset: Preset) -> str:
    """The whole ablation in Markdown."""
    short = [name for name in rows if len(found.get(name, [])) < preset.seeds]
    lines = [
        "# Heterogeneity: the ablation",
        "",
        f"Means over {preset.seeds} runs per row, each with its own seed and source left out; in "
        "percent. Δ: paired difference from the baseline with its 95% bootstrap interval. What "
        "is measured, and how to run it: `python benchmarks/heterogeneity.py --help`.",
        "",
    ]
    if short:
        lines += [f"**Unfinished**: fewer runs in {', '.join(short)}; see the column Runs.", ""]
    lines += [_HEAD, "|---|" + "---:|" * (_HEAD.count("|") - 2)]
    lines += [_row(rows[name].label, found[name], found[BASELINE]) for name in found]
    lines += ["", *_settings(found, rows, preset)]
    return "\n".join(lines) + "\n"


def print_search(found: Records) -> None:
    """Print the candidates, best first, by mean validation UAR of seen and unseen styles."""
    ranked = sorted(found, key=lambda name: -_choice(found[name]))
    print(f"{'candidate':32} runs   mean   seen unseen")
    for name in ranked:
        seen, unseen = (
            float(np.mean([r["validation"][part]["uar"] for r in found[name]]))
            for part in ("seen", "unseen")
        )
        mean = _choice(found[name])
        print(f"{name:32} {len(found[name]):4} {mean:6.1f} {seen:6.1f} {unseen:6.1f}")


def _choice(records: list[Record]) -> float:
    parts = [[r["validation"][part]["uar"] for r in records] for part in ("seen", "unseen")]
    return float(np.mean(parts))


def _row(label: str, records: list[Record], baseline: list[Record]) -> str:
    means = {name: f"{values(records, name).mean():.1f}" for name in METRICS}
    gaps = {name: difference(records, baseline, name) for name in METRICS}
    cells = [
        label,
        str(len(records)),
        means["seen UAR"],
        means["unseen UAR"],
        _interval(gaps["seen UAR"]),
        _interval(gaps["unseen UAR"]),
        means["unseen WAR"],
        means["worst source"],
        means["worst class"],
        means["corruption loss"],
        _interval(gaps["corrupted UAR"]),
    ]
    return "| " + " | ".join(cells) + " |"


def _interval(gap: Difference) -> str:
    if gap.low == gap.high:
        return "–"
    return f"{gap.mean:+.1f} [{gap.low:+.1f}, {gap.high:+.1f}]"


def _settings(found: Records, rows: Mapping[str, Setting], preset: Preset) -> list[str]:
    lines = ["## Hyper-parameters", "", f"Budget of every row: `{preset}`.", ""]
    lines += [f"- {rows[name].label}: {rows[name].describe()}" for name in found]
    return lines


def _differences(found: Records, rows: Mapping[str, Setting]) -> Figure:
    """Paired differences from the baseline, every run a dot."""
    names = [name for name in found if name != BASELINE]
    metrics = ("seen UAR", "unseen UAR", "corrupted UAR")
    figure, axes = new_figure(11, 1.2 + 0.3 * len(names), 1, len(metrics), sharey=True)
    for axis, metric, colour in zip(axes, metrics, PALETTE[1:], strict=False):
        for place, name in enumerate(reversed(names)):
            gap = difference(found[name], found[BASELINE], metric)
            dots = [difference([record], found[BASELINE], metric).mean for record in found[name]]
            axis.plot(dots, [place] * len(dots), ".", color="#b8bec9", markersize=5)
            axis.plot([gap.low, gap.high], [place, place], color=colour, linewidth=2)
            axis.plot(gap.mean, place, "o", color=colour, markersize=6)
        axis.axvline(0, color="#444", linewidth=1)
        axis.set_title(f"Δ {metric}, points")
    axes[0].set_yticks(range(len(names)), [rows[name].label for name in reversed(names)])
    return figure


def _corruptions(found: Records, rows: Mapping[str, Setting]) -> Figure:
    """Mean UAR of every corruption over the severities, and the paired gain over the baseline."""
    names, kinds = list(found), list(CORRUPTIONS)
    uars = np.array([[_mean_uar(found[name], kind) for kind in kinds] for name in names])
    figure, axis = new_figure(10, 1.4 + 0.3 * len(names))
    gain = uars - uars[names.index(BASELINE)]
    reach = max(1.0, float(np.abs(gain).max()))
    image = axis.imshow(gain, cmap="RdBu", vmin=-reach, vmax=reach, aspect="auto")
    for (row, column), uar in np.ndenumerate(uars):
        axis.text(column, row, f"{uar:.0f}", ha="center", va="center", fontsize=8)
    axis.set_xticks(range(len(kinds)), kinds, rotation=30, ha="right")
    axis.set_yticks(range(len(names)), [rows[name].label for name in names])
    axis.grid(False)
    axis.set_title(f"UAR under corruption, mean of severities {SEVERITIES[0]} to {SEVERITIES[-1]}")
    figure.colorbar(image, ax=axis, label="difference from the baseline, points")
    return figure


def _mean_uar(records: list[Record], kind: str) -> float:
    return float(np.mean([record["test"]["corruption"]["uar"][kind] for record in records]))
